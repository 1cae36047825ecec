"""Histories of runs made by the real scheduler and ledger in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.coordinator.events_file import read_events, write_events
from realign_cluster.coordinator.history import History, read_history
from realign_cluster.domain.efficiency import LOAD, RECOVERY, TAIL
from realign_cluster.store.ledger_reader import LedgerReader

from .made_runs import Fault, MadeNode, make_run


def history(folder: Path) -> History:
    ledger = LedgerReader(folder / "ledger.sqlite")
    try:
        return read_history(ledger)
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> History:
    nodes = [MadeNode("fast", 4000.0, 1.0), MadeNode("slow", 2000.0, 2.0)]
    return history(make_run(tmp_path_factory.mktemp("runs") / "undisturbed", rows=6000, nodes=nodes))


def test_every_row_is_there_once(undisturbed: History):
    assert sum(commit.rows for commit in undisturbed.commits) == 6000
    assert {commit.node for commit in undisturbed.commits} == {"fast", "slow"}
    assert all(0 <= commit.at <= undisturbed.seconds for commit in undisturbed.commits)


def test_an_undisturbed_run_is_efficient_and_says_where_the_rest_went(undisturbed: History):
    found = undisturbed.efficiency
    assert found.warm is not None
    assert 0.95 < found.warm <= 1.0
    assert found.cold is not None
    assert found.cold < found.warm
    assert sum(found.losses.values()) == pytest.approx(1 - found.warm, abs=1e-9)
    assert found.losses[RECOVERY] == 0
    assert found.seconds_by_node["slow"][LOAD] == pytest.approx(2.0)
    assert found.seconds_by_node["slow"].get(TAIL, 0.0) < 1.0


def test_shares_follow_speed_and_presence(undisturbed: History):
    work = {
        name: sum(commit.cost for commit in undisturbed.commits if commit.node == name) for name in ("fast", "slow")
    }
    share = work["fast"] / sum(work.values())
    assert undisturbed.calibrated_shares()["fast"] == pytest.approx(2 / 3)
    assert share == pytest.approx(undisturbed.expected_shares()["fast"], abs=0.02)


def test_faults_are_told_counted_and_charged(tmp_path: Path):
    nodes = [MadeNode("fast", 4000.0), MadeNode("slow", 2000.0), MadeNode("third", 1000.0)]
    faults = [Fault(8.0, "fast", "worker", 2.0), Fault(14.0, "slow", "node", 6.0)]
    found = history(make_run(tmp_path / "faults", rows=6000, nodes=nodes, faults=faults))
    assert sum(commit.rows for commit in found.commits) == 6000
    assert found.counts["fast"].worker_exits == 1
    assert found.counts["slow"].losses == 1
    troubles = [(incident.kind, incident.node) for incident in found.incidents if incident.trouble]
    assert troubles[:2] == [("worker", "fast"), ("lost", "slow")]
    assert found.efficiency.seconds_by_node["fast"][RECOVERY] >= 2.0
    assert found.efficiency.losses[RECOVERY] > 0
    ready = [incident.text for incident in found.incidents if (incident.node, incident.kind) == ("slow", "ready")]
    assert [text.split(":")[0] for text in ready] == ["ready", "back"]


def test_a_killed_coordinator_makes_a_second_sitting_and_no_row_is_lost(tmp_path: Path):
    nodes = [MadeNode("fast", 4000.0), MadeNode("slow", 2000.0)]
    found = history(make_run(tmp_path / "killed", rows=6000, nodes=nodes, sittings=(12.0, float("inf"))))
    assert len(found.sittings) == 2
    assert found.sittings[0].end == found.sittings[1].begin  # the time between does not count
    assert sum(commit.rows for commit in found.commits) == 6000
    assert [incident.text for incident in found.incidents if incident.kind == "opened"] == [
        "taken up again (sitting 2)"
    ]
    assert found.efficiency.warm is not None
    assert found.efficiency.warm < 1.0


def test_events_file_has_every_event_with_its_commands(tmp_path: Path):
    folder = make_run(tmp_path / "events", rows=500, nodes=[MadeNode("only", 3000.0)])
    ledger = LedgerReader(folder / "ledger.sqlite")
    try:
        written = write_events(ledger, folder / "events.jsonl")
        recorded = list(ledger.events())
    finally:
        ledger.close()
    lines = list(read_events(folder / "events.jsonl"))
    assert written == len(lines) == len(recorded)
    assert lines[0]["kind"] == "RunOpened"
    assert lines[0]["time"].endswith("Z")
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    commits = [command for line in lines for command in line["commands"] if command["kind"] == "Commit"]
    loaded = next(line for line in lines if line["kind"] == "UnitsLoaded")
    assert loaded["rows"] == 500
    assert len(commits) == loaded["units"]
