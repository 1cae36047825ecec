"""How many items a gate would need: for 80 % power at what was measured so far.

Exact for yes/no items. For the betting bound by drawing measured items again, 200 times per size, with a fixed seed:
the power found is within about 3 points. Must not decide anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from realign_cluster.domain import betting, exact_bounds, judge_error
from realign_cluster.domain.gate import Gate
from realign_cluster.domain.judge_error import VerifierLabels

Numbers = npt.NDArray[np.float64]
POWER: Final = 0.8
MOST_DRAWN: Final = 10_000  # items of a simulated measurement
_REPEATS: Final = 200
_CLOSE_ENOUGH: Final = 1.03  # between a size that is enough and one that is not
_SEED: Final = 20_260_101


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """`items`: of all sizes up to `searched`, the smallest with 80 % power; None if none has."""

    items: int | None
    searched: int

    @property
    def count(self) -> int:
        return self.searched if self.items is None else self.items

    @property
    def undecidable_below(self) -> int | None:
        return self.searched if self.items is None else None

    def text(self, *, passing: bool) -> str:
        if self.items is None:
            return f"undecidable below {self.searched:,} items: the estimate is too close to the threshold"
        return f"{self.items:,} items would show a {'PASS' if passing else 'FAIL'} with 80 % power at this estimate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A gate as a question to the raw rate, turned so that more is better: it passes when the lower bound at `alpha`
    of the turned rate reaches `passes_at`, and fails when the upper bound stays below `fails_below`. The two are the
    threshold, or what a verifier's errors make of it.
    """

    passes_at: float
    fails_below: float
    alpha: float
    exact: bool
    looks: betting.Looks


def question(gate: Gate, labels: VerifierLabels | None = None) -> Question:
    rate, alpha = gate.fraction, gate.alpha_each
    shown, below = rate, rate
    if labels is not None:
        shown = judge_error.reported_to_show(rate, labels, alpha)
        below = judge_error.reported_to_stay_below(rate, labels, alpha)
        alpha /= judge_error.SHARES
    least = gate.direction == "at least"
    return Question(
        passes_at=shown if least else 1.0 - below,
        fails_below=below if least else 1.0 - shown,
        alpha=alpha,
        exact=gate.evidence == "items" and gate.looks == "once",
        looks=gate.looks,
    )


def items_to_decide(
    gate: Gate, scores: Numbers, sizes: Numbers, labels: VerifierLabels | None, *, passing: bool
) -> Need:
    """Items for a PASS (or, not `passing`, for a FAIL) if all were like the measured `scores` and `sizes` (n,), as
    `gates.scaled` gives them.
    """
    asked = question(gate, labels)
    turned = scores if gate.direction == "at least" else sizes - scores
    aim = asked.passes_at
    if not passing:
        turned, aim = sizes - turned, 1.0 - asked.fails_below
    if asked.exact:
        needed = exact_bounds.items_for_power(float(turned.mean()), aim, asked.alpha, POWER)
        return Need(items=needed, searched=exact_bounds.MOST_ITEMS)
    return _smallest(turned, sizes, aim, alpha=asked.alpha, looks=asked.looks)


def items_to_show(scores: Numbers, mean: float, *, alpha: float, passing: bool) -> Need:
    """Items for the betting bound to show that the mean of scores (n,) in [0, 1] is at least `mean`, or (not
    `passing`) below.
    """
    turned, aim = (scores, mean) if passing else (1.0 - scores, 1.0 - mean)
    return _smallest(turned, np.ones_like(turned), aim, alpha=alpha, looks="once")


def _smallest(scores: Numbers, sizes: Numbers, aim: float, *, alpha: float, looks: betting.Looks) -> Need:
    if not 0.0 < aim < 1.0 or scores.sum() <= aim * sizes.sum():
        return Need(items=None, searched=MOST_DRAWN)

    def enough(items: int) -> bool:
        drawn = np.random.default_rng(_SEED).integers(0, scores.size, (_REPEATS, items))
        shown = betting.exceeds(scores[drawn], aim, sizes[drawn], alpha=alpha, looks=looks)
        return bool(shown.mean() >= POWER)

    low, high = 0, 16
    while not enough(high):
        if high == MOST_DRAWN:
            return Need(items=None, searched=MOST_DRAWN)
        low, high = high, min(2 * high, MOST_DRAWN)
    while high - low > 1 and high > low * _CLOSE_ENOUGH:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return Need(items=high, searched=MOST_DRAWN)
