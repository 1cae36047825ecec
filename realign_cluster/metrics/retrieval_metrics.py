"""How well a ranking finds what is relevant. All from 0 to 1, mean over queries.

Precision at k divides by k even if fewer were retrieved: one relevant passage caps P@5 at 0.2, so gates use R-precision
(precision at the number of relevant ones). A query for which nothing is relevant is undefined in every one of them.
Manning, Raghavan and Schuetze, Introduction to Information Retrieval, chapter 8; nDCG after Jaervelin and Kekaelaeinen
2002 with gain / log2(rank + 1), ranks from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from realign_cluster.metrics.measured import ItemId, MeanOverItems, SourceId, mean_over_items


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """`ranked` from best to worst; `gains` of what is relevant, all positive: 1 each unless relevance is graded."""

    item: ItemId
    ranked: tuple[SourceId, ...]
    gains: Mapping[SourceId, float]

    def __post_init__(self) -> None:
        if len(set(self.ranked)) < len(self.ranked):
            raise ValueError(f"query {self.item!r}: a source is ranked twice")
        if any(gain <= 0 for gain in self.gains.values()):
            raise ValueError(f"query {self.item!r}: what is relevant has a gain above 0; leave out what is not")


def ranking(item: ItemId, ranked: Iterable[SourceId], relevant: Iterable[SourceId]) -> Ranking:
    return Ranking(item=item, ranked=tuple(ranked), gains=dict.fromkeys(relevant, 1.0))


def precision_at(k: int, rankings: Iterable[Ranking]) -> MeanOverItems:
    return _mean(f"P@{k}", f"relevant in the top {k} / {k}", rankings, lambda one: _found(one, _positive(k)) / k)


def recall_at(k: int, rankings: Iterable[Ranking]) -> MeanOverItems:
    return _mean(
        f"R@{k}", f"relevant in the top {k} / relevant", rankings,
        lambda one: _found(one, _positive(k)) / len(one.gains),
    )  # fmt: skip


def r_precision(rankings: Iterable[Ranking]) -> MeanOverItems:
    return _mean(
        "R-precision", "relevant in the top R / R, R the number relevant", rankings,
        lambda one: _found(one, len(one.gains)) / len(one.gains),
    )  # fmt: skip


def mean_reciprocal_rank(rankings: Iterable[Ranking]) -> MeanOverItems:
    """0 for a query whose ranking holds nothing relevant."""
    return _mean("MRR", "1 / rank of the first relevant", rankings, _reciprocal_rank)


def ndcg_at(k: int, rankings: Iterable[Ranking]) -> MeanOverItems:
    return _mean(f"nDCG@{k}", "discounted gain / the best possible", rankings, lambda one: _ndcg(one, _positive(k)))


def _mean(metric: str, unit: str, rankings: Iterable[Ranking], value: Callable[[Ranking], float]) -> MeanOverItems:
    return mean_over_items(metric, unit, ((one.item, value(one) if one.gains else None) for one in rankings))


def _positive(k: int) -> int:
    if k < 1:
        raise ValueError(f"a cut at rank {k}: it has to be 1 or more")
    return k


def _found(one: Ranking, k: int) -> int:
    return sum(source in one.gains for source in one.ranked[:k])


def _reciprocal_rank(one: Ranking) -> float:
    return next((1 / rank for rank, source in enumerate(one.ranked, 1) if source in one.gains), 0.0)


def _ndcg(one: Ranking, k: int) -> float:
    got = _discounted(one.gains.get(source, 0.0) for source in one.ranked[:k])
    return got / _discounted(sorted(one.gains.values(), reverse=True)[:k])


def _discounted(gains: Iterable[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
