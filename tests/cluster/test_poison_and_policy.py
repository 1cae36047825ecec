"""Rows that kill their worker, calibrations that lie, a run replayed from its ledger, a disk that is really full."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.planning import open_calibrations
from realign_cluster.domain.events import Grant, NodeReady, Quarantine, Split, Tick
from realign_cluster.domain.ids import Epoch
from realign_cluster.domain.replay import replay
from tests.cluster.conftest import made_rows
from tests.cluster.kit import (
    TINY_MODEL,
    CurateCluster,
    committed_units,
    ledger,
    output_bytes,
    summary,
    wait_until,
    write_rows,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

SCORING = ("--model", str(TINY_MODEL), "--score", "loglik", "--plain")


def test_poison_rows_are_quarantined_alone(cluster: CurateCluster, tmp_path: Path) -> None:
    """One row kills whatever computes it, one raises: both end in failed/, everything else is scored."""
    rows: list[dict[str, object]] = [dict(row) for row in made_rows(240)]
    rows[40]["__realign_fault__"] = "kill"
    rows[200]["__realign_fault__"] = "raise"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    run = tmp_path / "run"
    for name in ("gamma", "delta"):
        cluster.start(name, environment={"REALIGN_FAULTS": "1"})
    done = cluster.run(
        cluster.command(path, run, *SCORING, "--reproducible", hosts=cluster.hostfile("gamma", "delta")), timeout=170
    )
    assert done.returncode == 0, done.stderr
    found = summary(run)
    assert found["state"] == "complete"
    assert found["rows"] == {"in": 240, "kept": 238, "dropped": 0, "failed": 2}
    failed = [json.loads(line) for part in (run / "failed").iterdir() for line in part.read_text().splitlines()]
    assert {row["__realign_fault__"] for row in failed} == {"kill", "raise"}
    assert all(set(row["error"]) == {"code", "message"} for row in failed)
    assert "2 rows could not be scored" in done.stderr
    reader = ledger(run)
    try:
        commands = [command for recorded in reader.events() for command in recorded.commands]
    finally:
        reader.close()
    assert sum(isinstance(command, Quarantine) for command in commands) == 2
    assert any(isinstance(command, Split) for command in commands)


def test_replay_gives_the_same_commands(pair: CurateCluster, rows_file: Path, tmp_path: Path) -> None:
    """A real run with a worker killed in it, replayed through the domain from its ledger."""
    run = tmp_path / "run"
    process = pair.spawn(pair.command(rows_file, run, *SCORING))
    wait_until(lambda: committed_units(run) >= 3, 60, "the first units")
    for pid in pair.daemons["alpha"].worker_pids():
        os.kill(pid, 9)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    reader = ledger(run)
    try:
        recorded = list(reader.events(Epoch(1)))
    finally:
        reader.close()
    again = list(replay(item.event for item in recorded))
    assert len(recorded) > 20
    for item, (event, commands) in zip(recorded, again, strict=True):
        assert event == item.event
        assert commands == item.commands, f"event {item.seq}: {event}"
    assert any(isinstance(item.event, Tick) for item in recorded) or len(recorded) > 20


@pytest.mark.soak
def test_falsified_calibration_is_seen_and_corrected(pair: CurateCluster, tmp_path: Path) -> None:
    """Leases follow the stored calibration at first, then what the node really does."""
    rows_file = write_rows(tmp_path / "rows.jsonl", made_rows(2400))  # enough units for a lease to be near its share
    first = tmp_path / "first"
    done = pair.run(pair.command(rows_file, first, *SCORING))
    assert done.returncode == 0, done.stderr
    _falsify(pair.home, {"alpha": 6.5, "beta": 0.35 * 10})
    fair = _first_grants(first)
    run = tmp_path / "run"
    done = pair.run(pair.command(rows_file, run, *SCORING))
    assert done.returncode == 0, done.stderr
    ready, granted = _first_grants(run)
    told = ready["alpha"] / (ready["alpha"] + ready["beta"])
    assert told == pytest.approx(0.65, abs=0.01)
    share = granted["alpha"] / (granted["alpha"] + granted["beta"])
    assert share == pytest.approx(told, rel=0.10)
    assert fair[0]["alpha"] / sum(fair[0].values()) != pytest.approx(told, abs=0.02)
    nodes = summary(run)["nodes"]
    busy = {name: node["busy_seconds"] for name, node in nodes.items()}
    assert max(busy.values()) / min(busy.values()) < 1.6, "shares did not recover: one node was busy much longer"


def test_job_environment_and_priority_reach_the_worker(pair: CurateCluster, rows_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ("--env", "MLX_METAL_PREALLOCATE=1", "--env", "OMP_WAIT_POLICY=passive", "--nice", "5")
    process = pair.spawn(pair.command(rows_file, run, *SCORING, *asked))
    wait_until(lambda: committed_units(run) >= 1, 60, "the first unit")
    workers = [psutil.Process(pid) for daemon in pair.daemons.values() for pid in daemon.worker_pids()]
    assert [worker.nice() for worker in workers if _job_of(worker)] == [5] * len(pair.daemons)
    assert all(worker.environ()["MLX_METAL_PREALLOCATE"] == "1" for worker in workers if _job_of(worker))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def _job_of(worker: psutil.Process) -> bool:
    return "OMP_WAIT_POLICY" in worker.environ()


def _falsify(home: ClusterHome, factors: dict[str, float]) -> None:
    """Both nodes are as fast as the mean; the store is made to say otherwise."""
    store = open_calibrations(home)
    try:
        found = [item for item in store.everything(now=datetime.now(UTC)) if item.node_name in factors]
        latest = {item.node_name: item for item in reversed(found)}
        mean = sum(item.current.cost_per_second for item in latest.values()) / len(latest)
        for name, item in latest.items():
            told = item.calibration.model_copy(
                update={"cost_per_second": mean * factors[name] / 5, "measured_at": datetime.now(UTC).isoformat()}
            )
            store.put(item.key, name, told)
    finally:
        store.close()


def _first_grants(run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Speed each node joined with, and the cost of its first lease."""
    reader = ledger(run)
    try:
        recorded = list(reader.events(Epoch(1)))
        costs: dict[int, float] = {}
        for item in recorded:
            for unit in (
                getattr(item.event, "units", ()) if not isinstance(getattr(item.event, "units", 0), int) else ()
            ):
                costs[unit.unit] = unit.cost
        ready = {}
        granted: dict[str, float] = {}
        for item in recorded:
            if isinstance(item.event, NodeReady):
                ready.setdefault(str(item.event.node), item.event.cost_per_second)
            for command in item.commands:
                if isinstance(command, Grant) and str(command.node) not in granted:
                    granted[str(command.node)] = sum(costs[unit] for _, unit in command.attempts)
        return ready, granted
    finally:
        reader.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        pytest.skip("a disk of its own needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


@pytest.mark.soak
def test_full_disk_pauses_the_run(pair: CurateCluster, rows_file: Path, small_disk: Path, tmp_path: Path) -> None:
    """While the coordinator's disk is full nothing is handed out or acknowledged; with room again the run goes on."""
    expected = tmp_path / "calm"
    done = pair.run(pair.command(rows_file, expected, *SCORING, "--reproducible"))
    assert done.returncode == 0, done.stderr
    run = small_disk / "run"
    process = pair.spawn(pair.command(rows_file, run, *SCORING, "--reproducible"))
    wait_until(lambda: committed_units(run) >= 3, 60, "the first units")
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * (1 << 20))
        except OSError:
            pass

    def steady() -> bool:
        before = committed_units(run)
        wait_until(lambda: True, 0.1)
        return not wait_for_change(run, before, 3.0)

    wait_until(steady, 30, "the pause")
    assert process.poll() is None
    ballast.unlink()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "full" in errors
    assert output_bytes(run) == output_bytes(expected)


def wait_for_change(run: Path, before: int, seconds: float) -> bool:
    try:
        wait_until(lambda: committed_units(run) != before, seconds)
    except AssertionError:
        return False
    return True
