"""`realign runs`: list, show, report; and what a run's folder says of its state."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import orjson
import pytest

from realign_cluster.cli.main import run as realign
from realign_cluster.cli.runs import train_facts
from realign_cluster.coordinator.run_status import find_runs, locate_run, run_status, statuses
from realign_cluster.coordinator.train_status import TrainStatus
from realign_cluster.domain.errors import UsageError
from realign_cluster.store.run_folder import RunFolder, to_toml

from .made_runs import MadeNode, make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    nodes = [MadeNode("fast", 4000.0), MadeNode("slow", 2000.0)]
    whole = make_run(tmp_path / "runs" / "whole", rows=400, nodes=nodes)
    rows = {"in": 400, "kept": 300, "dropped": 100, "failed": 0}
    summary = {
        "state": "complete",
        "rows": rows,
        "wall_seconds": 9.5,
        "rows_per_second": 42.0,
        "efficiency": {"warm": 0.97},
    }
    (whole / "summary.json").write_bytes(orjson.dumps(summary))
    request = {"kinds": ["loglik"], "model": "models/tiny"}
    (whole / "run.toml").write_text(to_toml({"command": "realign curate x.jsonl", "request": request}))
    make_run(tmp_path / "runs" / "deep" / "cut", rows=2000, nodes=nodes, sittings=(3.0,))
    (tmp_path / "runs" / "not-a-run").mkdir()
    return tmp_path / "runs"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_list_finds_runs_at_any_depth(root: Path, capsys: pytest.CaptureFixture[str]):
    assert sorted(path.name for path in find_runs(root)) == ["cut", "whole"]
    assert realign(["runs", "list", "--root", str(root), "--json"]) == 0
    *runs, last = lines(capsys)
    assert last == {"event": "summary", "runs": 2, "unreadable": 0}
    assert {(run["name"], run["state"]) for run in runs} == {("whole", "complete"), ("cut", "incomplete")}
    assert realign(["runs", "list", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert "deep/cut" in text
    assert "complete" in text


def test_list_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert realign(["runs", "list", "--root", str(tmp_path / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out


def test_a_damaged_run_is_listed_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "not-a-run" / "ledger.sqlite").write_bytes(b"not a database at all, but long enough to be looked at")
    found, unreadable = statuses(root)
    assert len(found) == 2
    assert [path.name for path, _ in unreadable] == ["not-a-run"]
    assert realign(["runs", "list", "--root", str(root)]) == 0
    assert "not the ledger of a run" in capsys.readouterr().err


def test_show_of_a_complete_run(root: Path, capsys: pytest.CaptureFixture[str]):
    page = root / "whole" / "report.html"
    realign(["runs", "report", "whole", "--root", str(root)])
    assert capsys.readouterr().out == f"{page}\n"
    assert realign(["runs", "show", "whole", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert f"    report  {page}\n" in text
    for said in (
        "complete",
        "400 in: 300 kept, 100 dropped, 0 failed",
        "efficiency 97.0%",
        "realign curate x.jsonl",
        "fast",
    ):
        assert said in text


def test_show_of_a_run_that_was_cut_says_how_to_go_on(root: Path, capsys: pytest.CaptureFixture[str]):
    assert realign(["runs", "show", str(root / "deep" / "cut")]) == 0
    text = capsys.readouterr().out
    assert "to do" in text
    assert "realign runs resume" in text
    assert "killed, or going on" in text
    assert "live" in text


def test_a_run_that_somebody_holds_is_running_and_stays_undisturbed(root: Path):
    assert run_status(root / "whole").state == "complete"
    with RunFolder.hold(root / "whole"):
        status = run_status(root / "whole")
        assert status.state == "running"
        assert f"process {os.getpid()}" in status.holder
        descriptor = os.open(root / "whole" / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):  # still held
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)


def test_report_prints_where_it_is(root: Path, capsys: pytest.CaptureFixture[str]):
    assert realign(["runs", "report", "whole", "--root", str(root)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == (root / "whole" / "report.html").absolute()
    assert "400 rows in" in path.read_text()
    assert realign(["runs", "report", "whole", "--root", str(root), "--json"]) == 0
    assert lines(capsys) == [{"event": "summary", "report": str(path)}]


@pytest.mark.parametrize("verb", ["show", "resume", "report"])
def test_an_unknown_run_is_a_usage_error_that_lists_what_there_is(
    root: Path, verb: str, capsys: pytest.CaptureFixture[str]
):
    assert realign(["runs", verb, "whole2", "--root", str(root)]) == 2
    text = capsys.readouterr().err
    assert "did you mean 'whole'" in text
    assert "deep/cut" in text


def test_a_name_is_looked_for_as_a_path_first(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    assert locate_run("whole", Path("elsewhere")) == Path("whole")
    with pytest.raises(UsageError, match="no run"):
        locate_run("not-a-run", root)


@pytest.mark.parametrize("verb", ["list", "show", "resume", "report"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]):
    assert realign(["runs", verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"realign runs {verb}" in text


def test_a_training_that_is_incomplete_says_how_it_goes_on():
    status = TrainStatus(
        name="cut", folder=Path("/runs/cut"), state="incomplete", holder="", steps_done=3, sittings=(), summary={},
        request={"hostfile": "two-macs.json", "settings": {"steps": 9}}, command="realign train ...",
    )  # fmt: skip
    facts = train_facts(status)
    assert facts["steps"] == "3 of 9"
    assert facts["go on"].startswith("realign runs resume /runs/cut; ")
    assert facts["go on"].endswith("first: realign-launch --hostfile two-macs.json up")
