from __future__ import annotations

import io
import sys

import orjson
import pytest
from rich.console import Console

from realign_cluster.coordinator.dashboard import (
    JsonDashboard,
    LiveDashboard,
    LogDashboard,
    duration_text,
    make_dashboard,
    render_snapshot,
    summary_line,
)
from realign_cluster.coordinator.progress import NodeLine, ProgressSnapshot

NODES = (
    NodeLine(
        name="m4max-1", state="computing", share=0.655, expected_share=0.66, rows_done=650, rows_per_second=212.4,
        in_flight="unit 12, 256 rows", memory_bytes=2**30, memory_limit_bytes=2**34,
    ),
    NodeLine(name="m3ultra-1", state="lost", detail="no beat for [3.0] s", retries=2),
)  # fmt: skip


def at(rows: int, phase: str = "scoring") -> ProgressSnapshot:
    return ProgressSnapshot(
        phase=phase,  # type: ignore[arg-type]
        rows_done=rows,
        rows_total=1000,
        rows_per_second=300.0,
        seconds_left=65.0,
        nodes=NODES,
        retries=1,
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_json_if_asked_live_on_a_terminal_lines_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(make_dashboard(json_lines=True), JsonDashboard)
    assert isinstance(make_dashboard(stderr=Terminal()), LiveDashboard)
    assert isinstance(make_dashboard(stderr=io.StringIO()), LogDashboard)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_dashboard(stderr=Terminal()), LogDashboard)


def test_log_lines_are_few_and_become_fewer():
    out, clock = io.StringIO(), Clock()
    dashboard = LogDashboard(out, clock)
    dashboard.start("curate")
    for rows in range(600):
        dashboard.update(at(rows))
        clock.now += 0.25  # 150 s in all
    lines = [line for line in out.getvalue().splitlines() if "scoring" in line]
    assert 25 < len(lines) < 55
    dashboard.update(at(1000, "writing"))  # a new phase is said at once
    assert "writing 1,000/1,000" in out.getvalue()


def test_a_log_line_says_how_far_how_fast_and_who():
    out = io.StringIO()
    LogDashboard(out, Clock()).update(at(650))
    text = out.getvalue()
    assert "scoring 650/1,000 rows (65%), 300 rows/s, 1 min 05 s left, 1 retry" in text
    assert "m4max-1 computing 65.5% 212 rows/s 1.0/16 GiB; m3ultra-1 lost (no beat for [3.0] s) 2 retries" in text


def test_json_is_lines_on_stdout_only():
    out, err, clock = io.StringIO(), io.StringIO(), Clock()
    dashboard = JsonDashboard(out, err, clock)
    dashboard.start("curate")
    dashboard.update(at(1))
    dashboard.update(at(2))  # within a second: not shown
    clock.now += 1.1
    dashboard.update(at(3))
    dashboard.note("m3ultra-1 is lost", "warning")
    dashboard.event("summary", {"state": "complete"})
    dashboard.stop()
    events = [orjson.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "progress", "note", "summary"]
    assert [event["rows_done"] for event in events if event["event"] == "progress"] == [1, 3]
    assert events[1]["nodes"][0]["name"] == "m4max-1"
    assert "warning: m3ultra-1 is lost" in err.getvalue()
    assert "{" not in err.getvalue()


def test_the_live_table_shows_every_node_and_takes_markup_as_text():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    console.print(render_snapshot("curate a.jsonl", at(650)))
    text = out.getvalue()
    for said in (
        "curate a.jsonl",
        "65.0%",
        "m4max-1",
        "65.5%",
        "unit 12, 256 rows",
        "1.0/16 GiB",
        "no beat for [3.0] s",
    ):
        assert said in text


def test_live_stops_twice_and_keeps_notes():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    dashboard = LiveDashboard(console)
    dashboard.start("curate")
    dashboard.update(at(10))
    dashboard.note("a [bold]note[/bold]")
    dashboard.stop()
    dashboard.stop()
    assert "a [bold]note[/bold]" in out.getvalue()
    assert "m4max-1" in out.getvalue()


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("json_lines", [True, False])
def test_a_reader_that_went_away_does_not_end_the_run(json_lines: bool):
    dashboard = make_dashboard(json_lines=json_lines, stderr=Gone(), stdout=Gone())
    dashboard.start("curate")
    dashboard.update(at(1))
    dashboard.note("x", "error")
    dashboard.event("summary", {})
    dashboard.stop()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0 s"), (8.2, "8 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min")]
)
def test_durations(seconds: float, shown: str):
    assert duration_text(seconds) == shown


def test_before_the_total_is_known():
    line = summary_line(ProgressSnapshot(phase="scanning", rows_done=120_000, seconds_elapsed=3, message="a.jsonl"))
    assert line == "scanning 120,000 rows, 3 s elapsed, a.jsonl"


def test_nothing_is_printed_to_the_real_streams_by_choosing(capsys: pytest.CaptureFixture[str]):
    make_dashboard(json_lines=True, stdout=sys.stdout, stderr=sys.stderr)
    assert capsys.readouterr() == ("", "")
