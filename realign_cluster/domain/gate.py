"""A gate, what was measured for it, and the verdict: the three records that judging is about.

Must not judge (`gates`) or know a stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from realign_cluster.domain.betting import Looks
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.multiplicity import split_alpha

Direction = Literal["at least", "at most"]
Outcome = Literal["PASS", "FAIL", "INSUFFICIENT"]
Evidence = Literal["items", "scores", "ratio"]
"""What the bound is made from.

`items`: independent yes/no items, one value 0 or 1 each: Clopper-Pearson (betting if looked at any time).
`scores`: one score per answer in [lowest, highest], the answers independent: betting. Differences to a baseline over
the same items are scores in [-1, 1] (`paired_with`).
`ratio`: per answer a total over its units (claims, tokens), pooled: betting on total - threshold x units. KL is the
nats of a completion over its tokens, perplexity exp of the nats of a row over its tokens (`exp`): both need a `highest`
number of nats per token.
"""
Scale = Literal["plain", "exp"]
"""What is shown of a mean, or ratio: itself, or exp of it (perplexity, of nats per token)."""


def on_scale(inner: float, scale: Scale) -> float:
    """A mean as it is shown; infinite where exp overflows."""
    if scale == "plain":
        return inner
    return math.exp(inner) if inner < 709 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A threshold on one metric. Raises UsageError for one that no measurement could meet or miss.

    `lowest` and `highest` bound a score, or a ratio's value per unit. They must be known before anything is measured
    (a mean of unbounded values has no bound): a value outside is clipped, and where that flatters, the gate does not
    pass.
    """

    metric: str
    direction: Direction
    threshold: float  # on the metric's own scale: for `exp`, on exp of the mean
    evidence: Evidence
    alpha: float = 0.05  # of a wrong PASS, over all attempts
    attempts: int = 1  # candidates on the same items, times looks at each; 1 where each gets a fresh hold-out
    looks: Looks = "once"  # that one bound is good for; a workflow makes a bound for each look, with its part of alpha
    lowest: float = 0.0
    highest: float = 1.0
    most_units: float = 1.0  # of one answer, by design: evidence `ratio` only
    scale: Scale = "plain"  # `exp`: perplexity, from nats per token

    def __post_init__(self) -> None:
        low, high = self.shown(self.lowest), self.shown(self.highest)
        if not self.lowest < self.highest or not math.isfinite(self.highest - self.lowest):
            raise UsageError(
                f"gate {self.metric}: values from {self.lowest} to {self.highest}", "lowest < highest, both finite"
            )
        if not low < self.threshold < high:
            raise UsageError(
                f"gate {self.metric}: {self.direction} {self.threshold:g} is out of range",
                f"a threshold lies above {low:g} and below {high:g}",
            )
        if not 0.0 < self.alpha <= 0.5 or self.attempts < 1 or not self.most_units > 0:
            raise UsageError(
                f"gate {self.metric}: alpha {self.alpha:g}, attempts {self.attempts}, most_units {self.most_units:g}",
                "alpha in (0, 0.5], one attempt or more, more than 0 units",
            )
        if self.evidence != "ratio" and self.most_units != 1:
            raise UsageError(
                f"gate {self.metric}: most_units is for pooled ratios", 'evidence "ratio", or leave it out'
            )
        if self.evidence == "items" and (self.lowest, self.highest, self.scale) != (0.0, 1.0, "plain"):
            raise UsageError(f"gate {self.metric}: yes/no items are 0 or 1", 'evidence "scores" for other values')

    @property
    def alpha_each(self) -> float:
        """The error that one attempt may have."""
        return split_alpha(self.alpha, self.attempts)

    @property
    def fraction(self) -> float:
        """The threshold as a mean of values scaled to [0, 1]."""
        return (self.inner(self.threshold) - self.lowest) / (self.highest - self.lowest)

    def shown(self, inner: float) -> float:
        """From the mean that is bounded to the metric's own scale."""
        return on_scale(inner, self.scale)

    def inner(self, shown: float) -> float:
        if self.scale == "plain":
            return shown
        return math.log(shown) if shown > 0 else -math.inf

    def from_fraction(self, fraction: float) -> float:
        """A mean of scaled values, on the metric's own scale."""
        return self.shown(self.lowest + (self.highest - self.lowest) * fraction)

    def text(self) -> str:
        return f"{self.metric} {self.direction} {self.threshold:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured, by item. `values`: 0 or 1, a score, or the total over the item's `units` (evidence `ratio`
    only, else empty); with scale `exp` the metric is exp of their ratio. What was undefined is not among them, it is
    counted. Raises UsageError for lengths that differ,
    for an item that is there twice (it would count twice) and for values that are not finite.

    Items stand in the order of arrival, which is kept for gates that look at any time.
    """

    metric: str
    items: tuple[str, ...]
    values: tuple[float, ...]
    units: tuple[float, ...] = ()
    scale: Scale = "plain"
    undefined: int = 0
    verifier: str  # fingerprint of who said what is right; "" for a metric without one
    dataset: str

    def __post_init__(self) -> None:
        if len(self.items) != len(self.values) or (self.units and len(self.units) != len(self.items)):
            raise UsageError(
                f"{self.metric}: {len(self.items)} items, {len(self.values)} values, {len(self.units)} units"
            )
        if len(set(self.items)) != len(self.items):
            twice = next(item for at, item in enumerate(self.items) if item in self.items[:at])
            raise UsageError(f"{self.metric} on {self.dataset}: item {twice} is there twice", "measure each item once")
        for item, *numbers in zip(self.items, self.values, *([self.units] if self.units else []), strict=True):
            if not all(map(math.isfinite, numbers)):
                raise UsageError(
                    f"{self.metric} on {self.dataset}: item {item} has {numbers}",
                    "count what is undefined, leave its value out",
                )


def paired_with(candidate: Measurement, baseline: Measurement) -> Measurement:
    """Differences candidate - baseline over the same items, for a gate with values in [-1, 1]. An item that only one of
    the two has is counted as undefined. Raises UsageError if verifier or dataset differ, or units were pooled.
    """
    for what in ("metric", "verifier", "dataset"):
        one, other = getattr(candidate, what), getattr(baseline, what)
        if one != other:
            raise UsageError(
                f"{candidate.metric}: the candidate's {what} is {one or 'none'}, the baseline's {other or 'none'}",
                "measure both alike",
            )
    if candidate.units or baseline.units:
        raise UsageError(f"{candidate.metric}: pooled units cannot be paired", "compare a score per answer")
    before = dict(zip(baseline.items, baseline.values, strict=True))
    shared = [
        (item, value - before[item])
        for item, value in zip(candidate.items, candidate.values, strict=True)
        if item in before
    ]
    return Measurement(
        metric=candidate.metric,
        items=tuple(item for item, _ in shared),
        values=tuple(change for _, change in shared),
        undefined=len(candidate.items) + len(baseline.items) - 2 * len(shared),
        verifier=candidate.verifier,
        dataset=candidate.dataset,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of a mean on the metric's own scale, both one-sided."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate said, with everything that a report prints beside it. Bounds are one-sided, at `alpha_each`, on the
    metric's own scale: `bound` is the one that must clear the threshold (lower for "at least"), `opposite_bound` the
    one that must miss it for a FAIL. None where there is nothing to compute it from.
    """

    metric: str
    outcome: Outcome
    direction: Direction
    threshold: float
    value: float | None
    bound: float | None
    opposite_bound: float | None
    items: int
    undefined: int
    alpha_each: float
    verifier: str
    dataset: str
    reason: str
    look: int = 1  # at this candidate: the same items are the same look
    looks: int = 1  # that were declared before the first
    items_needed: int | None = None  # INSUFFICIENT: for 80 % power at the current estimate, all items together
    undecidable_below: int | None = None  # or: so many are not enough, so close is the estimate to the threshold
    minutes_needed: float | None = None  # what measuring items_needed (or undecidable_below) items costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Conjunction:
    """Gates that must all pass, as "citation accuracy" is precision and recall."""

    name: str
    outcome: Outcome
    parts: tuple[Verdict, ...]
    reason: str
