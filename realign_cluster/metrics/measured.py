"""What a metric returns: its value and, beside it, what every item gave, since gates judge items and not the value.

Two kinds. A `MeanOverItems` weighs each item alike (macro): an item is a score in [0, 1] or undefined. A `PooledRatio`
divides sums (micro): an item is a numerator and a denominator, and an item with nothing to count is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType

ItemId = NewType("ItemId", str)  # of an answer, a prompt, a claim: what the gate counts as one independent item
SourceId = NewType("SourceId", str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScore:
    """`value` is None where the metric says nothing about this item."""

    item: ItemId
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRatio:
    """`numerator` of `denominator` things of one item, in the unit of the metric."""

    item: ItemId
    numerator: float
    denominator: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanOverItems:
    metric: str
    unit: str
    scores: tuple[ItemScore, ...]

    @property
    def defined(self) -> tuple[tuple[ItemId, float], ...]:
        """What a gate on clustered scores or on yes/no items takes."""
        return tuple((score.item, score.value) for score in self.scores if score.value is not None)

    @property
    def undefined(self) -> tuple[ItemId, ...]:
        return tuple(score.item for score in self.scores if score.value is None)

    @property
    def value(self) -> float | None:
        """Mean over the items that are defined; None if there is none."""
        values = [value for _, value in self.defined]
        return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledRatio:
    metric: str
    unit: str
    ratios: tuple[ItemRatio, ...]

    @property
    def defined(self) -> tuple[tuple[ItemId, float, float], ...]:
        """(item, numerator, denominator): what a gate on a pooled ratio takes."""
        return tuple((ratio.item, ratio.numerator, ratio.denominator) for ratio in self.ratios if ratio.denominator > 0)

    @property
    def undefined(self) -> tuple[ItemId, ...]:
        return tuple(ratio.item for ratio in self.ratios if ratio.denominator <= 0)

    @property
    def numerator(self) -> float:
        return math.fsum(numerator for _, numerator, _ in self.defined)

    @property
    def denominator(self) -> float:
        return math.fsum(denominator for _, _, denominator in self.defined)

    @property
    def value(self) -> float | None:
        """Sum of numerators / sum of denominators; None if there is nothing to count."""
        return self.numerator / self.denominator if self.denominator > 0 else None


def mean_over_items(metric: str, unit: str, scores: Iterable[tuple[ItemId, float | None]]) -> MeanOverItems:
    """ValueError if an item comes twice: it would count twice as evidence."""
    found = tuple(ItemScore(item=item, value=value) for item, value in scores)
    refuse_doubles(metric, (score.item for score in found))
    return MeanOverItems(metric=metric, unit=unit, scores=found)


def pooled_ratio(metric: str, unit: str, ratios: Iterable[tuple[ItemId, float, float]]) -> PooledRatio:
    """ValueError if an item comes twice, or counts less than nothing."""
    found = tuple(ItemRatio(item=item, numerator=up, denominator=down) for item, up, down in ratios)
    refuse_doubles(metric, (ratio.item for ratio in found))
    for ratio in found:
        if ratio.denominator < 0:
            raise ValueError(f"{metric}: item {ratio.item!r} has a negative count, {ratio.denominator}")
    return PooledRatio(metric=metric, unit=unit, ratios=found)


def refuse_doubles(metric: str, items: Iterable[ItemId]) -> None:
    seen: set[ItemId] = set()
    for item in items:
        if item in seen:
            raise ValueError(f"{metric}: item {item!r} comes twice, which would count it as two independent items")
        seen.add(item)


def ratio_or_none(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def harmonic_mean(precision: float | None, recall: float | None) -> float | None:
    """F1; 0 when both are 0, None when either is undefined."""
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
