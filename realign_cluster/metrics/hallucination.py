"""How much of what answers claim has nothing behind it: (contradicted + unverifiable) claims / claims, pooled.

Not the complement of factuality, which is a mean over answers. An answer without claims, as an abstention, is undefined
and counts nothing: whoever refuses everything has no rate at all, and is caught by over-abstention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from realign_cluster.metrics.measured import ItemId, MeanOverItems, PooledRatio, mean_over_items, pooled_ratio


class ClaimVerdict(StrEnum):
    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaims:
    item: ItemId
    verdicts: tuple[ClaimVerdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hallucination:
    """`rate` = `contradicted` + `unverifiable`, over the same claims. `answers_with_any` is 0 or 1 for each answer."""

    rate: PooledRatio
    contradicted: PooledRatio
    unverifiable: PooledRatio
    answers_with_any: MeanOverItems


def hallucination(answers: Sequence[JudgedClaims]) -> Hallucination:
    bad = (ClaimVerdict.CONTRADICTED, ClaimVerdict.UNVERIFIABLE)
    return Hallucination(
        rate=_pooled("hallucination rate", answers, bad),
        contradicted=_pooled("contradicted claims", answers, bad[:1]),
        unverifiable=_pooled("unverifiable claims", answers, bad[1:]),
        answers_with_any=mean_over_items(
            "answers with a hallucination", "answers with at least one such claim / answers with claims",
            (
                (answer.item, float(any(verdict in bad for verdict in answer.verdicts)) if answer.verdicts else None)
                for answer in answers
            ),
        ),
    )  # fmt: skip


def _pooled(metric: str, answers: Sequence[JudgedClaims], counted: tuple[ClaimVerdict, ...]) -> PooledRatio:
    return pooled_ratio(
        metric, "such claims / claims",
        ((one.item, sum(verdict in counted for verdict in one.verdicts), len(one.verdicts)) for one in answers),
    )  # fmt: skip
