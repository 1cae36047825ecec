"""What is left of a capability: (after - chance) / (before - chance) for each benchmark, in its own score.

1 is all of it, above 1 is gained. A benchmark whose score before was at or below chance has nothing to retain:
undefined. The gate is on the least of them, the mean is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from realign_cluster.metrics.measured import ItemId


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedItem:
    """The same item before and after, each from 0 to 1."""

    item: ItemId
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRetention:
    """`before` and `after` are means over `items`; None without items. `chance` is the score of guessing."""

    benchmark: str
    chance: float
    items: tuple[PairedItem, ...]

    @property
    def before(self) -> float | None:
        return math.fsum(item.before for item in self.items) / len(self.items) if self.items else None

    @property
    def after(self) -> float | None:
        return math.fsum(item.after for item in self.items) / len(self.items) if self.items else None

    @property
    def value(self) -> float | None:
        if self.before is None or self.after is None or self.before - self.chance <= 1e-12:
            return None
        return (self.after - self.chance) / (self.before - self.chance)

    @property
    def why_undefined(self) -> str:
        """ "" where there is a value."""
        if self.value is not None:
            return ""
        if self.before is None:
            return f"{self.benchmark} has no items"
        return (
            f"{self.benchmark} was at {self.before:.3f} before, and guessing gives {self.chance:.3f}: nothing to retain"
        )

    def margins(self, threshold: float) -> tuple[tuple[ItemId, float], ...]:
        """(item, (after - chance) - threshold (before - chance)): paired, and the mean is >= 0 just when retention is
        >= the threshold, provided that the score before is above chance.
        """
        return tuple(
            (item.item, (item.after - self.chance) - threshold * (item.before - self.chance)) for item in self.items
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    benchmarks: tuple[BenchmarkRetention, ...]

    @property
    def undefined(self) -> tuple[str, ...]:
        return tuple(one.benchmark for one in self.benchmarks if one.value is None)

    @property
    def least(self) -> BenchmarkRetention | None:
        """The benchmark that lost most; None if none of them is defined."""
        defined = {one.benchmark: one.value for one in self.benchmarks if one.value is not None}
        worst = min(defined, key=lambda name: defined[name], default=None)
        return next((one for one in self.benchmarks if one.benchmark == worst), None)

    @property
    def mean(self) -> float | None:
        values = [one.value for one in self.benchmarks if one.value is not None]
        return math.fsum(values) / len(values) if values else None


def benchmark_retention(
    benchmark: str, before: Mapping[ItemId, float], after: Mapping[ItemId, float], chance: float
) -> BenchmarkRetention:
    """ValueError if the two were not measured on the same items, or a score or chance is out of range."""
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[0]
        raise ValueError(f"{benchmark}: item {odd!r} was measured only {'before' if odd in before else 'after'}")
    if not 0 <= chance < 1:
        raise ValueError(f"{benchmark}: guessing gives {chance}, which is not from 0 up to 1")
    for item, score in [*before.items(), *after.items()]:
        if not 0 <= score <= 1:
            raise ValueError(f"{benchmark}: item {item!r} has a score of {score}, which is not from 0 to 1")
    pairs = tuple(PairedItem(item=item, before=before[item], after=after[item]) for item in before)
    return BenchmarkRetention(benchmark=benchmark, chance=chance, items=pairs)


def retention(benchmarks: Sequence[BenchmarkRetention]) -> Retention:
    return Retention(benchmarks=tuple(benchmarks))
