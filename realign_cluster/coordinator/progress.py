"""What a run looks like from outside at one moment: the seam between the engine and whatever shows it.

Knows no terminal and no file; the engine builds a snapshot a few times a second, a `Dashboard` shows it or leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Level = Literal["debug", "info", "warning", "error"]
Phase = Literal[
    "scanning",
    "connecting",
    "loading",
    "calibrating",
    "scoring",
    "training",
    "recovering",
    "draining",
    "writing",
    "done",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine:
    """One node of a snapshot. `share` is its fraction of the committed cost; None is "not known (yet)" everywhere."""

    name: str
    state: (
        str  # "connecting", "loading", "measuring", "computing", "idle", "restarting", "lost", "set aside", "refused"
    )
    detail: str = ""  # what it loads, why it was lost
    share: float | None = None
    expected_share: float | None = None  # by calibration
    rows_done: int = 0
    rows_per_second: float | None = None
    in_flight: str = ""  # "unit 12, 256 rows"
    units_outstanding: int = 0
    retries: int = 0  # attempts of this node that failed or were revoked
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    thermal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSnapshot:
    """The whole run. `rows_total` None while the input is still being scanned; times are seconds of this sitting.

    What counts as a row: `unit` for the run, `node_unit` for its nodes (a training run counts steps, its nodes tokens).
    """

    phase: Phase
    rows_done: int
    rows_total: int | None = None
    rows_failed: int = 0
    rows_per_second: float | None = None
    seconds_elapsed: float = 0.0
    seconds_left: float | None = None
    nodes: tuple[NodeLine, ...] = ()
    retries: int = 0
    units_done: int = 0
    units_total: int | None = None
    message: str = ""  # what the phase is doing: "scanning a.jsonl, 120,000 rows"
    unit: str = "rows"
    node_unit: str = "rows"


class Dashboard(Protocol):
    """Shows progress. Methods return at once, may be called from the event loop, never raise for a closed pipe."""

    def start(self, title: str) -> None: ...

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Show it. May be called at any rate: each implementation decides how much of it is worth showing."""

    def note(self, message: str, level: Level = "info") -> None:
        """One thing that happened and that the user should be able to read afterwards."""

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        """The same for scripts: one JSON line with `--json`, nothing otherwise (use `note` for people)."""

    def stop(self) -> None:
        """Leave the terminal as it was. May be called twice."""
