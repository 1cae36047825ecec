"""What a gate can and cannot decide with n items, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from realign_cluster.domain import betting, exact_bounds
from realign_cluster.domain.gate import Gate
from realign_cluster.domain.gate_power import POWER, Question, question
from realign_cluster.domain.judge_error import VerifierLabels, corrected_rate

_REPEATS: Final = 200
_HALVINGS: Final = 10
_SEED: Final = 20_260_102
_MOST_PERFECT: Final = 20_000

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """Values are on the metric's own scale. `passes_from` and `fails_from`: the true value from which on PASS, or
    FAIL, has 80 % power; in between the gate will mostly say INSUFFICIENT. None where no value has.
    """

    metric: str
    items: int
    items_if_perfect: int | None  # the fewest that can pass, every one at its best; None if 20,000 cannot
    can_pass: bool
    most_errors: (
        int | None
    )  # yes/no items: how many may be wrong for a PASS; None for other evidence, or if it cannot pass
    passes_from: float | None
    fails_from: float | None
    minutes: float | None
    text: str


def plan_gate(
    gate: Gate,
    items: int,
    *,
    labels: VerifierLabels | None = None,
    deviation: float | None = None,
    units_per_item: float | None = None,
    minutes_per_item: float | None = None,
) -> GatePlan:
    """What `items` items decide. For evidence other than yes/no items it depends on how scores vary: `deviation` is
    the standard deviation of a score (of a ratio's value within one answer) as measured before, on its own scale;
    without it they are taken to vary as much as they can, all at `lowest` or `highest`. `units_per_item`: of a ratio,
    the usual number (`most_units` if None).
    """
    asked = question(gate, labels)
    spread = None if deviation is None else deviation / (gate.highest - gate.lowest)
    size = 1.0 if units_per_item is None else units_per_item / gate.most_units
    perfect = _items_if_perfect(asked, size)
    passes_from = _value_for(asked, asked.passes_at, items, spread, size)
    fails_from = _value_for(asked, 1.0 - asked.fails_below, items, spread, size)
    can_pass = perfect is not None and items >= perfect
    most_errors = None
    if asked.exact and can_pass:
        most_errors = items - exact_bounds.passing_successes(items, asked.passes_at, asked.alpha)

    def shown(turned: float | None) -> float | None:
        if turned is None:
            return None
        rate = turned if gate.direction == "at least" else 1.0 - turned
        if labels is not None:
            rate = corrected_rate(rate, labels)
            if rate in (0.0, 1.0):  # the verifier would have to err less than it is known to
                return None
        return gate.from_fraction(rate)

    passing, failing = shown(passes_from), shown(None if fails_from is None else 1.0 - fails_from)
    return GatePlan(
        metric=gate.metric,
        items=items,
        items_if_perfect=perfect,
        can_pass=can_pass,
        most_errors=most_errors,
        passes_from=passing,
        fails_from=failing,
        minutes=None if minutes_per_item is None else minutes_per_item * items,
        text=_text(gate, items, perfect, most_errors, passing, failing, labelled=labels is not None),
    )


def _items_if_perfect(asked: Question, size: float) -> int | None:
    if asked.passes_at >= 1.0:
        return None
    if asked.exact:
        return exact_bounds.items_without_error(asked.passes_at, asked.alpha)

    def passes(items: int) -> bool:
        best = np.full(items, size)
        return bool(betting.exceeds(best, asked.passes_at, best, alpha=asked.alpha, looks=asked.looks))

    low, high = 0, 16
    while not passes(high):
        if high >= _MOST_PERFECT:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _value_for(asked: Question, aim: float, items: int, spread: float | None, size: float) -> float | None:
    """The true rate, turned so that more is better, at which so many items show "at least `aim`" with 80 % power."""
    if not 0.0 < aim < 1.0 or not items:
        return None
    if asked.exact:
        return exact_bounds.rate_for_power(items, aim, asked.alpha, POWER)
    chances = np.random.default_rng(_SEED).random((_REPEATS, items))

    def enough(mean: float) -> bool:
        scores = size * _scores(chances, mean, spread)
        sizes = np.full(items, size)
        return bool(betting.exceeds(scores, aim, sizes, alpha=asked.alpha, looks=asked.looks).mean() >= POWER)

    low, high = aim, 1.0
    if not enough(high):
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _scores(chances: Numbers, mean: float, spread: float | None) -> Numbers:
    """Scores in [0, 1] with this mean and, as far as the range allows, this standard deviation: some at 0 or 1, the
    others at the mean. More chance of 1 where the mean is higher, item by item.
    """
    widest = mean * (1.0 - mean)
    share = 1.0 if spread is None or widest <= 0.0 else min(1.0, spread**2 / widest)
    return np.where(chances < share * mean, 1.0, np.where(chances < share, 0.0, mean))


def _text(
    gate: Gate,
    items: int,
    perfect: int | None,
    errors: int | None,
    passing: float | None,
    failing: float | None,
    *,
    labelled: bool,
) -> str:
    if perfect is None:
        return f"{gate.text()}: no number of items can pass"
    if items < perfect:
        count = "1 item" if items == 1 else f"{items:,} items"
        can = f"{count} cannot pass, {perfect:,} can if every one is at its best"
    elif errors is not None:
        can = f"{items:,} items pass with at most {errors:,} {'reported ' if labelled else ''}wrong"
    else:
        can = f"{items:,} items can pass ({perfect:,} if every one is at its best)"
    parts = [f"{gate.text()}: {can}"]
    if passing is not None:
        parts.append(f"PASS has 80 % power when the truth is {gate.direction} {passing:.4g}")
    elif items >= perfect:
        parts.append("PASS has 80 % power at no truth")
    opposite = "at most" if gate.direction == "at least" else "at least"
    if failing is not None:
        parts.append(f"FAIL when it is {opposite} {failing:.4g}")
    return "; ".join(parts)
