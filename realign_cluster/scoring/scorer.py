"""From the raw rows of a unit to its payload: fields, sequences, one forward run, one JSON line per row.

`prepare` is tokenising only and runs on the reading thread; `compute` runs the model. Knows kinds and the forward
pass; must not know leases, frames or processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.rows import text_bytes
from realign_cluster.scoring.encode import Scored, TextEncoder
from realign_cluster.scoring.errors import RowRefused
from realign_cluster.scoring.forward import Floats, Forward, Work
from realign_cluster.scoring.kinds import KindPlan, kinds_named
from realign_cluster.scoring.rows import RowFault, RowReader, asked_fault
from realign_cluster.scoring.segments import Segment, plan_segments


@dataclass(slots=True, kw_only=True)
class PreparedRow:
    """One row's sequences, and which of them each kind gets. Where `error` is set, nothing is computed."""

    sequences: tuple[Scored, ...] = ()
    plans: tuple[tuple[str, KindPlan, tuple[int, ...]], ...] = ()  # kind, its plan, its sequences' places
    trunk: int = 0
    error: dict[str, str] | None = None

    @property
    def slots(self) -> int:
        return sum(sequence.tokens for sequence in self.sequences)


@dataclass(slots=True, kw_only=True)
class PreparedUnit:
    rows: list[PreparedRow]
    fault: RowFault | None = None
    asked_faults: dict[int, str] = field(default_factory=dict)  # row -> "kill", "raise", "hang": a test's order


class Scorer:
    """Everything a worker needs to score one job's rows with one model."""

    def __init__(self, job: ScoreJob, encoder: TextEncoder, forward: Forward, *, obey_faults: bool = False) -> None:
        self.job = job
        self.forward = forward
        self._encoder = encoder
        self._kinds = kinds_named(job.kinds)
        self._reader = RowReader(job)
        self._obey_faults = obey_faults

    def text_bytes(self, raw: bytes) -> int:
        """UTF-8 bytes of the fields that are scored, in one row."""
        return sum(text_bytes(value) for value in self._reader.read(raw)[1].values())

    def count_text_tokens(self, raw: bytes) -> int:
        """Tokens of those fields, each by itself, without special tokens or templates."""
        return sum(self._encoder.count(value) for value in self._reader.read(raw)[1].values())

    def prepare(self, rows: Sequence[bytes]) -> PreparedUnit:
        """Tokenise rows. A row that cannot be scored carries its error; an unforeseen failure ends the unit as its
        `fault`.
        """
        unit = PreparedUnit(rows=[])
        for at, raw in enumerate(rows):
            try:
                unit.rows.append(self._prepare_row(raw, at, unit.asked_faults))
            except RowRefused as refusal:
                unit.rows.append(PreparedRow(error={"code": refusal.code, "message": refusal.message}))
            except BaseException as error:  # noqa: BLE001  # reported with its row, on the main thread; a panic in Rust is no Exception
                unit.fault = RowFault(at, error)
                return unit
        return unit

    def _prepare_row(self, raw: bytes, at: int, asked_faults: dict[int, str]) -> PreparedRow:
        row, fields = self._reader.read(raw)
        if self._obey_faults and (fault := asked_fault(row)) is not None:
            asked_faults[at] = fault
        places: dict[Scored, int] = {}
        plans = []
        for kind in self._kinds:
            plan = kind.plan(fields, self._encoder, self.job)
            plans.append(
                (kind.name, plan, tuple(places.setdefault(sequence, len(places)) for sequence in plan.sequences))
            )
        trunk = max((plan.trunk for _, plan, _ in plans), default=0)
        return PreparedRow(sequences=tuple(places), plans=tuple(plans), trunk=trunk)

    def compute(self, unit: PreparedUnit, progress: Callable[[], None] | None = None) -> tuple[bytes, Work]:
        """The payload, one line per row, and the work done. Raises RowFault naming the row that made the model fail."""
        if unit.fault is not None:
            raise unit.fault
        try:
            return self._compute(unit.rows, progress)
        except Exception:  # noqa: BLE001  # whichever row it was is found by computing each alone
            return self._compute_alone(unit.rows, progress)

    def _compute_alone(self, rows: Sequence[PreparedRow], progress: Callable[[], None] | None) -> tuple[bytes, Work]:
        lines, work = [], Work()
        for at, row in enumerate(rows):
            try:
                line, done = self._compute([row], progress)
            except Exception as error:  # becomes the unit's failure, with the row
                raise RowFault(at, error) from error
            lines.append(line)
            work.tokens += done.tokens
            work.padded += done.padded
            work.shapes += done.shapes
        return b"\n".join(lines), work

    def _compute(self, rows: Sequence[PreparedRow], progress: Callable[[], None] | None) -> tuple[bytes, Work]:
        trees: list[Segment] = []
        slot = 0
        for row in rows:
            trees += plan_segments(row.sequences, row.trunk, slot)
            slot += row.slots
        results = np.full(slot, np.nan, dtype=np.float32)
        work = self.forward.run(trees, results, progress)
        lines = []
        slot = 0
        for row in rows:
            lines.append(orjson.dumps(_reduce(row, results[slot : slot + row.slots])))
            slot += row.slots
        return b"\n".join(lines), work


def _reduce(row: PreparedRow, results: Floats) -> dict[str, Any]:
    if row.error is not None:
        return {"error": row.error}
    bounds = np.cumsum([0, *(sequence.tokens for sequence in row.sequences)])
    values = [results[start:end] for start, end in itertools.pairwise(bounds)]
    return {name: plan.reduce([values[place] for place in places]) for name, plan, places in row.plans}
