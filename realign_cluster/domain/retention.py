"""How much of what a model could do it still can: (after - chance) / (before - chance) per benchmark, gated on the
minimum.

Before and after are scores of the same items, so the bound is one on paired contributions: retention is at least r
where the mean of (after - chance) - r (before - chance) is at least 0, if before is above chance. A baseline that is
not shown to be above chance leaves retention undefined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from realign_cluster.domain import betting
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.gate import Bounds, Conjunction, Outcome, Verdict
from realign_cluster.domain.gate_power import items_to_show
from realign_cluster.domain.gates import compare, judge_all, order_of

Numbers = npt.NDArray[np.float64]
_GRID: Final = np.round(np.arange(0.005, 2.0, 0.005), 3)
MOST_RETENTION: Final = 2.0  # where the search for an upper bound ends
METRIC: Final = "retention of "  # and the benchmark's name: of verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkPair:
    """One benchmark's items before and after: scores in [0, 1], `chance` of guessing. Raises UsageError for scores or
    a chance out of range, an item that is there twice, and lengths that differ.
    """

    benchmark: str
    items: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    chance: float
    scorer: str = ""  # fingerprint of who scored

    def __post_init__(self) -> None:
        if not len(self.items) == len(self.before) == len(self.after) or len(set(self.items)) != len(self.items):
            raise UsageError(f"benchmark {self.benchmark}: one score before and one after for each of different items")
        if not 0.0 <= self.chance < 1.0 or not all(0.0 <= score <= 1.0 for score in (*self.before, *self.after)):
            raise UsageError(f"benchmark {self.benchmark}: chance and scores must be in [0, 1]", "chance below 1")


def retention(pair: BenchmarkPair) -> float | None:
    """(mean after - chance) / (mean before - chance); None where the baseline's mean is at chance or below."""
    if not pair.items or (above := float(np.mean(pair.before)) - pair.chance) <= 0:
        return None
    return (float(np.mean(pair.after)) - pair.chance) / above


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall:
    """Retention over benchmarks: each is gated, so the gate is on the minimum; the mean is only reported. Both are of
    those that are defined, None where none is.
    """

    benchmarks: int
    undefined: int  # the baseline is not shown to be above chance
    minimum: float | None
    lowest: str  # the benchmark with the minimum, "" if there is none
    mean: float | None

    def text(self) -> str:
        """ "over 3 benchmarks: minimum 0.962 (sums), mean 0.984; 1 of them undefined"."""
        counted = f"over {self.benchmarks:,} benchmark{'' if self.benchmarks == 1 else 's'}"
        undefined = f"{self.undefined:,} of them undefined" if self.undefined else ""
        if self.minimum is None or self.mean is None:
            return f"{counted}: {undefined}"
        said = f"{counted}: minimum {self.minimum:.4f} ({self.lowest}), mean {self.mean:.4f}"
        return f"{said}; {undefined}" if undefined else said


def overall(values: Mapping[str, float | None]) -> Overall | None:
    """Of retention by benchmark; None without benchmarks. Every benchmark counts alike, however many items it has."""
    if not values:
        return None
    defined = {name: value for name, value in values.items() if value is not None}
    lowest = min(defined, key=lambda name: defined[name], default="")
    return Overall(
        benchmarks=len(values),
        undefined=len(values) - len(defined),
        minimum=defined[lowest] if defined else None,
        lowest=lowest,
        mean=float(np.mean([*defined.values()])) if defined else None,
    )


def judge_retention(pairs: Sequence[BenchmarkPair], *, threshold: float = 0.95, alpha: float = 0.05) -> Conjunction:
    """The gate on the minimum over benchmarks: each one's retention must be shown to be at least `threshold`, each at
    `alpha` (see `judge_all`). A benchmark whose baseline is not above chance is INSUFFICIENT.
    """
    return judge_all("retention", [judge_benchmark(pair, threshold=threshold, alpha=alpha) for pair in pairs])


def judge_benchmark(
    pair: BenchmarkPair, *, threshold: float = 0.95, alpha: float = 0.05, minutes_per_item: float | None = None
) -> Verdict:
    """One benchmark's verdict; its metric is "retention of NAME". Bounds are searched between 0 and 2."""
    metric = f"{METRIC}{pair.benchmark}"
    value = retention(pair)
    order = order_of(pair.items)
    before, after = (np.asarray(scores, dtype=np.float64)[order] for scores in (pair.before, pair.after))
    bounds, need = None, None
    outcome: Outcome = "INSUFFICIENT"
    if not pair.items:
        reason = "nothing to judge: no items"
    elif value is None or betting.lower_bound(before, alpha=alpha) <= pair.chance:
        reason = f"undefined: the baseline, {before.mean():.3f}, is not shown to be above chance, {pair.chance:g}"
    else:
        lower, upper = retention_bounds(before, after, pair.chance, alpha=alpha, also=threshold)
        bounds = Bounds(value=value, lower=lower, upper=upper)
        outcome, reason = compare("at least", threshold, bounds)
    if bounds is not None and outcome == "INSUFFICIENT":
        scores, middle = _contributions(before, after, pair.chance, np.array([threshold]))
        need = items_to_show(scores[0], float(middle[0]), alpha=alpha, passing=bounds.value >= threshold)
        reason += "; " + need.text(passing=bounds.value >= threshold)
    return Verdict(
        metric=metric,
        outcome=outcome,
        direction="at least",
        threshold=threshold,
        value=None if bounds is None else bounds.value,
        bound=None if bounds is None else bounds.lower,
        opposite_bound=None if bounds is None else bounds.upper,
        items=len(pair.items),
        undefined=0,
        alpha_each=alpha,
        verifier=pair.scorer,
        dataset=pair.benchmark,
        reason=reason,
        items_needed=None if need is None else need.items,
        undecidable_below=None if need is None else need.undecidable_below,
        minutes_needed=None if need is None or minutes_per_item is None else need.count * minutes_per_item,
    )


def retention_bounds(
    before: Numbers, after: Numbers, chance: float, *, alpha: float, also: float = 0.95
) -> tuple[float, float]:
    """One-sided lower and upper bounds, each at alpha, from paired scores (n,) in [0, 1]. They are the ends of what a
    grid of candidates (steps of 0.005, and `also`) leaves when those are taken from either side until one is not
    rejected.
    """
    candidates = np.union1d(_GRID, [also])
    scores, middle = _contributions(before, after, chance, candidates)
    rows = list(zip(scores, middle, strict=True))
    low = _until_not(betting.exceeds(row, at, alpha=alpha) for row, at in rows)
    high = _until_not(betting.exceeds(1.0 - row, 1.0 - at, alpha=alpha) for row, at in reversed(rows))
    return (
        float(candidates[low - 1]) if low else 0.0,
        float(candidates[len(candidates) - high]) if high else MOST_RETENTION,
    )


def _until_not(rejected: Iterable[Any]) -> int:
    """How many come before the first that is not; what comes after it is not looked at."""
    return sum(1 for _ in takewhile(bool, rejected))


def _contributions(before: Numbers, after: Numbers, chance: float, candidates: Numbers) -> tuple[Numbers, Numbers]:
    """(after - chance) - r (before - chance), scaled to [0, 1], for each r: (r, n); and where 0 is on that scale,
    (r,).
    """
    share = candidates[:, None]
    lowest = -chance - candidates * (1.0 - chance)
    width = 1.0 + candidates
    scaled = ((after - chance) - share * (before - chance) - lowest[:, None]) / width[:, None]
    return np.clip(scaled, 0.0, 1.0), -lowest / width
