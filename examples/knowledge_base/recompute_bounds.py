"""Bounds and outcomes of gates, made again from the papers that they are taken from: nothing here is of the project.

Items are what was measured of each: (how much, of how much). Of nothing (0): the metric says nothing about that item,
which is counted and else left out. A mean is a ratio whose items are of 1 each. Every bound is one-sided.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta

Items = dict[str, tuple[float, float]]
LARGEST_STAKE = 0.9  # of what would lose all
FEWEST_LABELS = 200
LEAST_INFORMED = 0.3  # sensitivity + specificity - 1
RETENTIONS = [round(0.005 * step, 3) for step in range(1, 400)]  # that are tried, below and above the true one
MOST_RETENTION = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a gate asks for. Values lie between `low` and `high` for each of an item's units, of which it has no more
    than `most_units`; None: than the largest has. `exp`: what is shown is exp of the ratio.
    """

    least: bool  # or at most
    threshold: float
    evidence: Literal["items", "scores", "ratio"]
    low: float = 0.0
    high: float = 1.0
    most_units: float | None = 1.0
    exp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What a verifier said where people know: of what a rate counts, and of the rest."""

    true_positives: int
    positives: int
    false_positives: int
    negatives: int

    def of_the_rest(self) -> Labels:
        """For a rate that counts what is not supported."""
        return Labels(
            true_positives=self.negatives - self.false_positives,
            positives=self.negatives,
            false_positives=self.positives - self.true_positives,
            negatives=self.positives,
        )

    @property
    def usable(self) -> bool:
        if self.positives + self.negatives < FEWEST_LABELS or not self.positives or not self.negatives:
            return False
        return self.true_positives / self.positives - self.false_positives / self.negatives >= LEAST_INFORMED


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """None where there is nothing to compute it from."""

    outcome: str
    value: float | None = None
    lower: float | None = None
    upper: float | None = None


def judge(rule: Rule, items: Items, alpha: float, labels: Labels | None = None) -> Judged:
    """What a gate has to say of these items; with `labels`, of the rate that people would find."""
    defined = in_order({name: pair for name, pair in items.items() if pair[1] > 0})
    units = np.array([of for _, of in defined])
    most = max(units, default=1.0) if rule.most_units is None else rule.most_units
    if not defined or max(units) > most or (labels is not None and not labels.usable):
        return Judged(outcome="INSUFFICIENT")
    parts = (np.array([value for value, _ in defined]) - rule.low * units) / (rule.high - rule.low)
    amounts = np.clip(parts, 0.0, units)
    slack = 1e-9 * np.maximum(units, 1.0)
    low_ones, high_ones = bool((parts < -slack).any()), bool((parts > units + slack).any())
    each = alpha if labels is None else alpha / 3  # the rate, sensitivity, specificity
    if rule.evidence == "items":
        lower, upper = exact(int(amounts.sum()), len(amounts), each)
    else:
        lower = betting_lower(amounts / most, units / most, each)
        upper = 1.0 - betting_lower((units - amounts) / most, units / most, each)
    found = [float(amounts.sum() / units.sum()), lower, upper]
    if labels is not None:
        found = _without_errors(found, labels, each)
    shown = [rule.low + (rule.high - rule.low) * fraction for fraction in found]
    value, lower, upper = map(math.exp, shown) if rule.exp else shown
    outcome = outcome_of(rule, lower, upper)
    flattered = low_ones if rule.least else high_ones
    blackened = high_ones if rule.least else low_ones
    if (outcome == "PASS" and flattered) or (outcome == "FAIL" and blackened):
        outcome = "INSUFFICIENT"
    return Judged(outcome=outcome, value=value, lower=lower, upper=upper)


def outcome_of(rule: Rule, lower: float, upper: float) -> str:
    """PASS where one bound clears the threshold, FAIL where the other one does not reach it."""
    clears = lower >= rule.threshold if rule.least else upper <= rule.threshold
    misses = upper < rule.threshold if rule.least else lower > rule.threshold
    return "PASS" if clears else "FAIL" if misses else "INSUFFICIENT"


def in_order(items: Items) -> list[tuple[float, float]]:
    """In that of a hash of their names, which nobody chose: bets are made one after the other."""
    return [
        items[name] for name in sorted(items, key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest())
    ]


def exact(successes: int, tried: int, alpha: float) -> tuple[float, float]:
    """Clopper and Pearson 1934."""
    lower = 0.0 if successes == 0 else float(beta.ppf(alpha, successes, tried - successes + 1))
    upper = 1.0 if successes == tried else float(beta.ppf(1 - alpha, successes + 1, tried - successes))
    return lower, upper


def wholly(items: Items, alpha: float) -> tuple[float, float]:
    """Exact bounds, items counted as right only if they are wholly so (below), as wrong if they are in part (above)."""
    defined = [pair for pair in items.values() if pair[1] > 0]
    whole, some = sum(part >= of for part, of in defined), sum(part > 0 for part, _ in defined)
    return exact(whole, len(defined), alpha)[0], exact(some, len(defined), alpha)[1]


def betting_lower(amounts: Any, units: Any, alpha: float) -> float:
    """On sum(amounts) / sum(units), each amount from 0 to its units and those at most 1: the largest mean against which
    a gambler's capital reached 1 / alpha (Waudby-Smith and Ramdas 2024), but never above the ratio itself.
    """
    stakes = _stakes(amounts, units, alpha)

    def beyond(mean: float) -> float:
        return float(_log_capital(amounts, units, stakes, mean)) + math.log(alpha)

    least = 1e-13
    if beyond(least) < 0:
        return 0.0
    return min(float(brentq(beyond, least, 1.0, xtol=1e-14)), float(amounts.sum() / units.sum()))


def _stakes(amounts: Any, units: Any, alpha: float) -> Any:
    """sqrt(2 log(1 / alpha) / (n variance)) at each item (..., n); the variance is that of the items before it, and of
    one that is imagined.
    """
    seen = np.arange(1, amounts.shape[-1] + 1)
    running = (0.5 + amounts.cumsum(axis=-1)) / (1.0 + units.cumsum(axis=-1))
    imagined = (units**2).cumsum(axis=-1) / seen / 4
    variance = (imagined + ((amounts - running * units) ** 2).cumsum(axis=-1)) / (seen + 1)
    before = np.concatenate([np.full_like(variance[..., :1], 0.25), variance[..., :-1]], axis=-1)
    return np.sqrt(2 * math.log(1 / alpha) / (amounts.shape[-1] * before))


def _log_capital(amounts: Any, units: Any, stakes: Any, mean: Any) -> Any:
    """The most that it ever was, of bets that the mean is larger than `mean`, which falls in it."""
    kept = np.minimum(stakes, LARGEST_STAKE / mean)
    return np.log1p(kept * (amounts - mean * units)).cumsum(axis=-1).max(axis=-1)


def _without_errors(found: Sequence[float], labels: Labels, alpha: float) -> list[float]:
    """Value and bounds of the true rate (Rogan and Gladen 1978), with the verifier as credulous as it may be for the
    lower one, and as little so for the upper one.
    """
    sensitive = exact(labels.true_positives, labels.positives, alpha)
    credulous = exact(labels.false_positives, labels.negatives, alpha)
    known = (labels.true_positives / labels.positives, labels.false_positives / labels.negatives)
    rates = (known, (sensitive[1], credulous[1]), (sensitive[0], credulous[0]))
    return [
        0.0 if reported <= wrong else 1.0 if reported >= right else (reported - wrong) / (right - wrong)
        for reported, (right, wrong) in zip(found, rates, strict=True)
    ]


def judge_retention(before: Items, after: Items, chance: float, threshold: float, alpha: float) -> Judged:
    """Of a benchmark: (after - chance) / (before - chance), of the items that both have. It is more than r where the
    mean of (after - chance) - r (before - chance) is above 0, which is asked for one r after the other.
    """
    shared = before.keys() & after.keys()
    was = np.array([value for value, _ in in_order({name: before[name] for name in shared})])
    now = np.array([value for value, _ in in_order({name: after[name] for name in shared})])
    if not shared or was.mean() <= chance or betting_lower(was, np.ones_like(was), alpha) <= chance:
        return Judged(outcome="INSUFFICIENT")
    asked = np.array(sorted({*RETENTIONS, threshold}))
    width = 1.0 + asked
    zero = (chance + asked * (1.0 - chance)) / width  # where 0 lies between the least and the most
    share = asked[:, None]
    scores = np.clip((now - chance - share * (was - chance)) / width[:, None] + zero[:, None], 0.0, 1.0)
    more, less = _beaten(scores, zero, alpha), _beaten(1.0 - scores, 1.0 - zero, alpha)
    low, high = _until_not(more), _until_not(less[::-1])
    lower = float(asked[low - 1]) if low else 0.0
    upper = float(asked[len(asked) - high]) if high else MOST_RETENTION
    rule = Rule(least=True, threshold=threshold, evidence="scores")
    value = float((now.mean() - chance) / (was.mean() - chance))
    return Judged(outcome=outcome_of(rule, lower, upper), value=value, lower=lower, upper=upper)


def _beaten(scores: Any, means: Any, alpha: float) -> Any:
    """Whether the lower bound of each row of scores (r, n) is its mean (r,) or more."""
    units = np.ones_like(scores)
    capital = _log_capital(scores, units, _stakes(scores, units, alpha), means[:, None])
    return (capital >= math.log(1 / alpha)) & (scores.mean(axis=-1) >= means)


def _until_not(beaten: Iterable[bool]) -> int:
    return sum(1 for _ in takewhile(bool, beaten))


def change(now: Items, before: Items) -> Items:
    """Of each item: by how much it is more than before, and nothing where only one of the two says something."""
    found: Items = {}
    for name in dict.fromkeys((*now, *before)):
        one, other = now.get(name, (0.0, 0.0)), before.get(name, (0.0, 0.0))
        both = one[1] > 0 and other[1] > 0
        if both or one[1] > 0 or other[1] > 0:
            found[name] = (one[0] - other[0], 1.0) if both else (0.0, 0.0)
    return found
