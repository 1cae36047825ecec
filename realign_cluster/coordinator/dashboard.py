"""Progress of a run on a terminal, in a log, or as JSON lines: `make_dashboard` chooses.

Knows nothing of nodes, ledgers or RPC: only snapshots and notes. People read standard error, scripts standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TextIO

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from realign_cluster.coordinator.progress import Dashboard, Level, NodeLine, ProgressSnapshot

LEVEL_STYLE: dict[Level, str] = {"debug": "dim", "info": "", "warning": "yellow", "error": "bold red"}
STATE_STYLE = {
    "computing": "green",
    "training": "green",
    "idle": "cyan",
    "connecting": "dim",
    "loading": "blue",
    "measuring": "blue",
    "restarting": "yellow",
    "lost": "red",
    "set aside": "red",
    "refused": "red",
}
FIRST_LOG_SECONDS = 2.0  # between two log lines; grows with the run, so that a night's log stays readable
LONGEST_LOG_SECONDS = 30.0
JSON_SECONDS = 1.0


def make_dashboard(
    *,
    json_lines: bool = False,
    stderr: TextIO | None = None,
    stdout: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Dashboard:
    """JSON lines if asked for, a live table if standard error is a terminal, plain log lines otherwise."""
    err = stderr if stderr is not None else sys.stderr
    out = stdout if stdout is not None else sys.stdout
    if json_lines:
        return JsonDashboard(out, err, clock)
    console = Console(file=err)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDashboard(console)
    return LogDashboard(err, clock)


class LiveDashboard:
    """A table that redraws itself four times a second, with the notes scrolling above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._title = ""
        self._snapshot: ProgressSnapshot | None = None

    def start(self, title: str) -> None:
        self._title = title
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=4,
            redirect_stdout=False,
            transient=False,
        )
        self._live.start()

    def update(self, snapshot: ProgressSnapshot) -> None:
        self._snapshot = snapshot

    def note(self, message: str, level: Level = "info") -> None:
        if level == "debug":
            return
        line = Text.assemble((f"{datetime.now():%H:%M:%S} ", "dim"), (message, LEVEL_STYLE[level]))
        self._console.print(line, soft_wrap=True)

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        del name, fields

    def stop(self) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        if self._snapshot is None:
            return Text(self._title, style="bold")
        return render_snapshot(self._title, self._snapshot)


class LogDashboard:
    """One line every few seconds: for files, pipes, CI and `nohup`."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._started = clock()
        self._next = self._started
        self._phase = ""
        self._states: dict[str, str] = {}

    def start(self, title: str) -> None:
        self._started = self._next = self._clock()
        self._write(title, "info")

    def update(self, snapshot: ProgressSnapshot) -> None:
        now = self._clock()
        if snapshot.phase == self._phase and now < self._next:
            return
        self._phase = snapshot.phase
        self._next = now + min(max(FIRST_LOG_SECONDS, (now - self._started) / 20), LONGEST_LOG_SECONDS)
        self._write(summary_line(snapshot), "info")
        if snapshot.nodes:
            self._write("  " + "; ".join(node_text(node, snapshot.node_unit) for node in snapshot.nodes), "info")

    def note(self, message: str, level: Level = "info") -> None:
        if level != "debug":
            self._write(message, level)

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        del name, fields

    def stop(self) -> None:
        self._next = self._clock()

    def _write(self, message: str, level: Level) -> None:
        prefix = f"{level}: " if level in ("warning", "error") else ""
        _write_line(self._stream, f"{datetime.now():%H:%M:%S} {prefix}{message}")


class JsonDashboard:
    """One JSON object per line on standard output; notes are also plain lines on standard error."""

    def __init__(self, out: TextIO, err: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._log = LogDashboard(err, clock)
        self._clock = clock
        self._next = clock()
        self._phase = ""

    def start(self, title: str) -> None:
        self._log.note(title)
        self.event("start", {"title": title})

    def update(self, snapshot: ProgressSnapshot) -> None:
        now = self._clock()
        if snapshot.phase == self._phase and now < self._next:
            return
        self._phase = snapshot.phase
        self._next = now + JSON_SECONDS
        self.event("progress", asdict(snapshot))

    def note(self, message: str, level: Level = "info") -> None:
        self._log.note(message, level)
        self.event("note", {"level": level, "message": message})

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        _write_line(self._out, orjson.dumps({"event": name, **fields}, default=str).decode())

    def stop(self) -> None:
        self._log.stop()


def render_snapshot(title: str, snapshot: ProgressSnapshot) -> RenderableType:
    """The live table: one bar for the run, one row for each node."""
    parts: list[RenderableType] = [Text(title, style="bold")]
    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column(ratio=1)
    head.add_column(justify="right")
    bar = ProgressBar(
        total=snapshot.rows_total,
        completed=snapshot.rows_done,
        pulse=snapshot.rows_total is None,
        complete_style="green",
    )
    head.add_row(bar, Text(_percent(snapshot)))
    parts.append(head)
    parts.append(Text(summary_line(snapshot)))
    if snapshot.nodes:
        parts.append(_node_table(snapshot.nodes, snapshot.node_unit))
    return Group(*parts)


def _node_table(nodes: tuple[NodeLine, ...], unit: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("node", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("share", "planned", unit, f"{unit}/s", "memory", "retries"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("in flight", overflow="ellipsis", no_wrap=True, ratio=1)
    for node in nodes:
        table.add_row(
            Text(node.name, style="bold"),
            Text(node.state, style=STATE_STYLE.get(node.state, "")),
            share_text(node.share),
            Text(share_text(node.expected_share), style="dim"),
            f"{node.rows_done:,}",
            rate_text(node.rows_per_second),
            memory_text(node.memory_bytes, node.memory_limit_bytes),
            Text(str(node.retries), style="yellow" if node.retries else "dim"),
            Text(node.detail or node.in_flight),
        )
    return table


def summary_line(snapshot: ProgressSnapshot) -> str:
    """`scoring 1,200/4,507 rows (27 %), 310 rows/s, 11 s left, 2 retries`."""
    total = "" if snapshot.rows_total is None else f"/{snapshot.rows_total:,}"
    parts = [f"{snapshot.phase} {snapshot.rows_done:,}{total} {snapshot.unit}"]
    if snapshot.rows_total:
        parts[0] += f" ({snapshot.rows_done / snapshot.rows_total:.0%})"
    if snapshot.rows_per_second is not None:
        parts.append(f"{rate_text(snapshot.rows_per_second)} {snapshot.unit}/s")
    if snapshot.seconds_left is not None and snapshot.phase not in ("done", "writing"):
        parts.append(f"{duration_text(snapshot.seconds_left)} left")
    elif snapshot.seconds_elapsed:
        parts.append(f"{duration_text(snapshot.seconds_elapsed)} elapsed")
    if snapshot.rows_failed:
        parts.append(f"{snapshot.rows_failed:,} failed")
    if snapshot.retries:
        parts.append(f"{snapshot.retries:,} {'retry' if snapshot.retries == 1 else 'retries'}")
    if snapshot.message:
        parts.append(snapshot.message)
    return ", ".join(parts)


def node_text(node: NodeLine, unit: str = "rows") -> str:
    """One node in a log line."""
    parts = [f"{node.name} {node.state}"]
    if node.detail:
        parts.append(f"({node.detail})")
    if node.share is not None:
        parts.append(share_text(node.share))
    if node.rows_per_second is not None:
        parts.append(f"{rate_text(node.rows_per_second)} {unit}/s")
    if node.memory_bytes is not None:
        parts.append(memory_text(node.memory_bytes, node.memory_limit_bytes))
    if node.retries:
        parts.append(f"{node.retries} retries")
    return " ".join(parts)


def share_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def rate_text(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def memory_text(used: int | None, limit: int | None) -> str:
    if used is None:
        return "-"
    gibibytes = f"{used / 2**30:.1f}"
    return f"{gibibytes} GiB" if limit is None else f"{gibibytes}/{limit / 2**30:.0f} GiB"


def duration_text(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _percent(snapshot: ProgressSnapshot) -> str:
    return "" if not snapshot.rows_total else f"{snapshot.rows_done / snapshot.rows_total:.1%}"


def _write_line(stream: TextIO, line: str) -> None:
    """A reader that went away must not end the run: its output is what matters, and that is on disk."""
    try:
        stream.write(line + "\n")
        stream.flush()
    except (BrokenPipeError, ValueError):
        return
