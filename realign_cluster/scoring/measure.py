"""Measures this node for one model and task: rows per second on sample rows, and on request the whole picture.

Quick takes a few seconds at join and finds the best of a few batch budgets. Full adds scoring speed by length and
batch size, matrix products, memory bandwidth and headroom. Measures only; what follows from it is the coordinator's
business.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import cycle, zip_longest

import mlx.core as mx

from realign_cluster.domain.batching import drawn_cost, row_cost, unit_cost_of
from realign_cluster.domain.report import Calibration
from realign_cluster.scoring import device
from realign_cluster.scoring.canaries import tokens_per_byte
from realign_cluster.scoring.forward import Shape
from realign_cluster.scoring.measure_full import FullMeasurements, full_measurements
from realign_cluster.scoring.model import LoadedModel
from realign_cluster.scoring.scorer import Scorer

QUICK_SECONDS = 2.0
FULL_SECONDS = 6.0  # of the sample rows; the rest of a full measurement has its own limits
REPEATS = 3
DRAWN_TOKENS = 16  # of each answer while measuring

Phase = Callable[[str, str, float], None]


def measure_node(
    scorer: Scorer, model: LoadedModel, samples: Sequence[bytes], *, full: bool, phase: Phase
) -> Calibration:
    """Leaves the scorer as it was."""
    started, thermal = time.monotonic(), device.thermal_state()
    kept = scorer.forward.shape
    budgets = [kept.batch_tokens] if scorer.job.batch_tokens or scorer.job.reproducible else _budgets(kept, model)
    speed = _Speed(_drawing_few(scorer), samples, phase)
    phase("measure", "warming up", 0.0)
    speed.run(seconds=0.0)
    one_unit = speed.run(seconds=0.0).seconds
    allowed = FULL_SECONDS if full else QUICK_SECONDS
    if one_unit * len(budgets) * REPEATS > allowed:
        budgets = [kept.batch_tokens]  # too slow to try others at join
    repeats = max(1, min(REPEATS, int(allowed / one_unit)))
    rates: dict[int, list[float]] = {}
    try:
        for at, budget in enumerate(budgets):
            phase("measure", f"batches of {budget} tokens", at / len(budgets))
            scorer.forward.shape = replace(kept, batch_tokens=budget)
            seconds = allowed / len(budgets) / repeats
            rates[budget] = [speed.run(seconds=seconds).cost_per_second for _ in range(repeats)]
    finally:
        scorer.forward.shape = kept
    best = max(rates, key=lambda budget: statistics.median(rates[budget]))
    cost_per_second = statistics.median(rates[best])
    extra = full_measurements(scorer.forward, model, scorer.job.max_tokens, phase) if full else FullMeasurements()
    return Calibration(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        mode="full" if full else "quick",
        cost_per_second=cost_per_second,
        rows_per_second=cost_per_second / speed.mean_row_cost,
        spread=(max(rates[best]) - min(rates[best])) / cost_per_second,
        seconds=time.monotonic() - started,
        matmul_gflops=extra.matmul_gflops,
        memory_gigabytes_per_second=extra.memory_gigabytes_per_second,
        scoring=extra.scoring,
        best_batch=extra.best_batch,
        batch_tokens=best,
        headroom_bytes=max(model.limit.bytes - int(mx.get_peak_memory()), 0),
        thermal_before=thermal,
        thermal_after=device.thermal_state(),
    )


def _budgets(shape: Shape, model: LoadedModel) -> list[int]:
    """Half, once and twice the default, as far as memory takes them. Units are small, so larger budgets change
    nothing.
    """
    most = max(model.fit.batch_tokens, 1)
    return sorted(
        {min(budget, most) for budget in (shape.batch_tokens // 2, shape.batch_tokens, shape.batch_tokens * 2)}
    )


def _drawing_few(scorer: Scorer) -> Scorer:
    """For a job that draws answers: shorter ones, which cost as much a token, so that measuring stays quick."""
    sampling = scorer.job.sampling
    if sampling is None:
        return scorer
    few = sampling.model_copy(update={"max_new_tokens": min(sampling.max_new_tokens, DRAWN_TOKENS)})
    return scorer.for_kinds(scorer.job.model_copy(update={"sampling": few}))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    cost: float  # row_cost units
    seconds: float

    @property
    def cost_per_second(self) -> float:
        return self.cost / self.seconds


class _Speed:
    """Scores the samples in units of the size that a run's units have, tokenising included, for a given time."""

    def __init__(self, scorer: Scorer, samples: Sequence[bytes], phase: Phase) -> None:
        self._scorer = scorer
        self._phase = phase
        per_byte = tokens_per_byte(scorer, samples) or 1.0
        sampling = scorer.job.sampling
        added = drawn_cost(sampling.new_tokens) if sampling is not None else 0.0
        unit_cost = unit_cost_of(sampling.max_new_tokens if sampling is not None else 0)
        costs = {row: row_cost(scorer.text_bytes(row), per_byte) + added for row in samples}
        units: list[tuple[float, list[bytes]]] = []
        for row in sorted(samples, key=lambda row: -costs[row]):
            if not units or units[-1][0] + costs[row] > unit_cost:
                units.append((0.0, []))
            units[-1] = (units[-1][0] + costs[row], [*units[-1][1], row])
        # long and short in turn, so that a measurement cut short saw both
        half = (len(units) + 1) // 2
        mixed = zip_longest(units[:half], reversed(units[half:]))
        self._turns = cycle([unit for pair in mixed for unit in pair if unit is not None])
        self.mean_row_cost = sum(costs[row] for row in samples) / len(samples)

    def run(self, *, seconds: float) -> _Timed:
        """At least one unit, then more until `seconds` have passed."""
        started, done, passed = time.monotonic(), 0.0, 0.0
        while not done or passed < seconds:
            cost, rows = next(self._turns)
            self._scorer.compute(self._scorer.prepare(rows))
            done += cost
            passed = time.monotonic() - started
            self._phase("measure", "sample rows", min(passed / max(seconds, passed), 1.0))
        return _Timed(cost=done, seconds=passed)
