"""From the raw rows of a unit to its payload: fields, sequences, one forward run, one JSON line per row.

`prepare` is tokenising only and runs on the reading thread; `compute` runs the model. Knows kinds and the forward
pass; must not know leases, frames or processes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from realign_cluster.domain.job import Sampling, ScoreJob
from realign_cluster.domain.rows import text_bytes
from realign_cluster.scoring.encode import Scored, TextEncoder
from realign_cluster.scoring.errors import RowRefused
from realign_cluster.scoring.forward import Floats, Forward, Work
from realign_cluster.scoring.generate import Generator
from realign_cluster.scoring.kinds import KindPlan, SamplePlan, kinds_named
from realign_cluster.scoring.kinds.base import Measure
from realign_cluster.scoring.rows import RowFault, RowReader, asked_fault
from realign_cluster.scoring.sample import Draft, Sample
from realign_cluster.scoring.segments import Segment, plan_segments


@dataclass(slots=True, kw_only=True)
class PreparedRow:
    """One row's sequences by what is wanted of them, and which of them each kind gets. Where `error` is set, nothing
    is computed.
    """

    sequences: dict[Measure, tuple[Scored, ...]] = field(default_factory=dict)
    plans: tuple[tuple[str, KindPlan, tuple[int, ...]], ...] = ()  # kind, its plan, its sequences' places
    trunk: int = 0
    samples: tuple[str, SamplePlan, int] | None = None  # kind, its plan, the row's seed
    error: dict[str, str] | None = None

    @property
    def slots(self) -> int:
        return sum(map(self.slots_of, self.sequences))

    def slots_of(self, measure: Measure) -> int:
        return sum(sequence.tokens for sequence in self.sequences.get(measure, ()))


@dataclass(slots=True, kw_only=True)
class PreparedUnit:
    rows: list[PreparedRow]
    fault: RowFault | None = None
    asked_faults: dict[int, str] = field(default_factory=dict)  # row -> "kill", "raise", "hang": a test's order


class Scorer:
    """Everything a worker needs to score one job's rows with one model.

    `forward` gives log-probabilities; `comparison` runs the model beside its reference, `generator` draws from it:
    they are there if a kind of the job needs them.
    """

    def __init__(
        self,
        job: ScoreJob,
        encoder: TextEncoder,
        forward: Forward,
        *,
        comparison: Forward | None = None,
        generator: Generator | None = None,
        obey_faults: bool = False,
    ) -> None:
        self.job = job
        self.forward = forward
        self.comparison = comparison
        self.generator = generator
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

    def for_kinds(self, job: ScoreJob) -> Scorer:
        """The same model and device for a job of other kinds, or one that samples otherwise."""
        generator = self.generator
        if generator is not None and job.sampling is not None:
            generator = generator.sampling_as(job.sampling)
        return Scorer(job, self._encoder, self.forward, comparison=self.comparison, generator=generator)

    def prepare(self, rows: Sequence[bytes], row_ids: Sequence[bytes] = ()) -> PreparedUnit:
        """Tokenise rows. A row that cannot be scored carries its error; an unforeseen failure ends the unit as its
        `fault`. `row_ids`: of rows of a run; made rows (canaries, samples) are named by their content.
        """
        unit = PreparedUnit(rows=[])
        for at, raw in enumerate(rows):
            try:
                unit.rows.append(self._prepare_row(raw, at, row_ids[at] if row_ids else b"", unit.asked_faults))
            except RowRefused as refusal:
                unit.rows.append(PreparedRow(error={"code": refusal.code, "message": refusal.message}))
            except BaseException as error:  # noqa: BLE001  # reported with its row, on the main thread; a panic in Rust is no Exception
                unit.fault = RowFault(at, error)
                return unit
        return unit

    def _prepare_row(self, raw: bytes, at: int, row_id: bytes, asked_faults: dict[int, str]) -> PreparedRow:
        row, fields = self._reader.read(raw)
        if self._obey_faults and (fault := asked_fault(row)) is not None:
            asked_faults[at] = fault
        places: dict[Measure, dict[Scored, int]] = {}
        plans = []
        prepared = PreparedRow()
        for kind in self._kinds:
            plan = kind.plan(fields, self._encoder, self.job)
            if isinstance(plan, SamplePlan):
                row_id = row_id or hashlib.blake2b(raw, digest_size=16).digest()
                prepared.samples = (kind.name, plan, (self.job.sampling or Sampling()).row_seed(row_id))
                continue
            of_measure = places.setdefault(plan.measure, {})
            at_places = tuple(of_measure.setdefault(sequence, len(of_measure)) for sequence in plan.sequences)
            plans.append((kind.name, plan, at_places))
        prepared.plans = tuple(plans)
        prepared.sequences = {measure: tuple(found) for measure, found in places.items()}
        prepared.trunk = max((plan.trunk for _, plan, _ in plans), default=0)
        return prepared

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
            work.add(done)
        return b"\n".join(lines), work

    def _compute(self, rows: Sequence[PreparedRow], progress: Callable[[], None] | None) -> tuple[bytes, Work]:
        work = Work()
        results = {measure: self._measure(rows, measure, work, progress) for measure in self._measures(rows)}
        samples = self._draw(rows, work, progress or _nothing)
        slots = dict.fromkeys(results, 0)
        lines = []
        for row, drawn in zip(rows, samples, strict=True):
            own = {}
            for measure, values in results.items():
                end = slots[measure] + row.slots_of(measure)
                own[measure], slots[measure] = values[slots[measure] : end], end
            lines.append(orjson.dumps(_reduce(row, own, drawn)))
        return b"\n".join(lines), work

    def _measures(self, rows: Sequence[PreparedRow]) -> list[Measure]:
        return list(dict.fromkeys(measure for row in rows for measure in row.sequences))

    def _measure(
        self, rows: Sequence[PreparedRow], measure: Measure, work: Work, progress: Callable[[], None] | None
    ) -> Floats:
        """What is wanted of every sequence of the rows, one after the other."""
        forward = self.forward if measure == "log-probability" else self.comparison
        assert forward is not None
        trees: list[Segment] = []
        slot = 0
        for row in rows:
            trees += plan_segments(row.sequences.get(measure, ()), row.trunk, slot)
            slot += row.slots_of(measure)
        results = np.full(slot, np.nan, dtype=np.float32)
        work.add(forward.run(trees, results, progress))
        return results

    def _draw(self, rows: Sequence[PreparedRow], work: Work, progress: Callable[[], None]) -> list[Sequence[Sample]]:
        drafts: dict[int, Draft] = {}
        for at, row in enumerate(rows):
            if row.samples is not None and row.samples[1].prompt is not None:
                drafts[at] = Draft(prompt=row.samples[1].prompt, seed=row.samples[2])
        if not drafts:
            return [()] * len(rows)
        assert self.generator is not None
        found = dict(zip(drafts, self.generator.run(list(drafts.values()), work, progress), strict=True))
        return [found.get(at, ()) for at in range(len(rows))]


def _reduce(row: PreparedRow, results: Mapping[Measure, Floats], samples: Sequence[Sample]) -> dict[str, Any]:
    if row.error is not None:
        return {"error": row.error}
    values: dict[Measure, list[Floats]] = {}
    for measure, sequences in row.sequences.items():
        bounds = np.cumsum([0, *(sequence.tokens for sequence in sequences)])
        values[measure] = [results[measure][start:end] for start, end in itertools.pairwise(bounds)]
    scores = {name: plan.reduce([values[plan.measure][at] for at in places]) for name, plan, places in row.plans}
    if row.samples is not None:
        name, plan, seed = row.samples
        scores[name] = plan.reduce(samples, seed)
    return scores


def _nothing() -> None:
    return None
