"""How much of what an answer says is so: FActScore (Min et al. 2023, 2305.14251) and F1@K (SAFE, Wei et al. 2024).

FActScore of an answer: supported atomic facts / atomic facts; the metric is the mean over the answers that answer,
with the respond ratio beside it. What becomes of irrelevant facts decides the figure: the source counts them in the
denominator, as not supported, and so do we by default (0.5830 on its human labels of ChatGPT; 0.6233 with them left
out). The length penalty exp(1 - gamma / n) for n <= gamma facts is another metric, off by default.

FActScore leaves abstentions out, so of two models it compares only what both answer: one that refuses where it used to
make things up, or makes things up where it used to refuse, has not changed by it. `supported_or_silent` is for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from realign_cluster.metrics.measured import ItemId, MeanOverItems, mean_over_items, ratio_or_none, refuse_doubles


class Fact(StrEnum):
    SUPPORTED = "S"
    NOT_SUPPORTED = "NS"
    IRRELEVANT = "IR"


Irrelevant = Literal["not_supported", "left_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedFacts:
    """The judged atomic facts of one answer; None for an abstention, which has none to judge."""

    item: ItemId
    facts: tuple[Fact, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Factuality:
    """`score` has an entry for every answer that answers; one without a fact that counts is undefined in it."""

    score: MeanOverItems
    abstained: tuple[ItemId, ...]
    answers: int

    @property
    def respond_ratio(self) -> float | None:
        """Answers that answer / answers; None without answers."""
        return ratio_or_none(self.answers - len(self.abstained), self.answers)


def factscore(
    answers: Sequence[JudgedFacts], irrelevant: Irrelevant = "not_supported", gamma: int | None = None
) -> Factuality:
    """`gamma` turns the length penalty on; it counts the facts that the denominator counts."""
    refuse_doubles("factuality", (answer.item for answer in answers))
    name = "factuality (FActScore" + ("" if irrelevant == "not_supported" else ", irrelevant left out")
    return Factuality(
        score=mean_over_items(
            name + (f", gamma {gamma})" if gamma else ")"), "supported facts / facts, mean over answers",
            ((one.item, _share(one.facts, irrelevant, gamma)) for one in answers if one.facts is not None),
        ),
        abstained=tuple(answer.item for answer in answers if answer.facts is None),
        answers=len(answers),
    )  # fmt: skip


def supported_or_silent(answers: Sequence[JudgedFacts]) -> MeanOverItems:
    """Supported facts / facts of each answer, and 1 for an abstention, which says nothing unsupported: to compare two
    models over the same questions. Refusing where the other one is right changes nothing here, and is over-abstention's
    to see.
    """
    return mean_over_items(
        "supported or silent", "supported facts / facts, 1 for an abstention, mean over answers",
        ((one.item, 1.0 if one.facts is None else _share(one.facts, "not_supported", None)) for one in answers),
    )  # fmt: skip


def _share(facts: Iterable[Fact], irrelevant: Irrelevant, gamma: int | None) -> float | None:
    counted = [fact for fact in facts if irrelevant == "not_supported" or fact is not Fact.IRRELEVANT]
    if not counted:
        return None
    penalty = math.exp(1 - gamma / len(counted)) if gamma and len(counted) <= gamma else 1.0
    return penalty * counted.count(Fact.SUPPORTED) / len(counted)


def f1_at(k: int, answers: Iterable[JudgedFacts]) -> MeanOverItems:
    """SAFE's F1@K: P = S / (S + N), R = min(1, S / K), 0 if nothing is supported; irrelevant facts do not count.

    K, how many facts a good answer gives, is part of the metric's name. An abstention supports nothing: 0.
    """
    if k < 1:
        raise ValueError(f"F1@{k}: a good answer gives at least 1 fact")
    return mean_over_items(
        f"F1@{k}", "harmonic mean of precision and of recall up to K facts, mean over answers",
        ((answer.item, _f1(k, answer.facts or ())) for answer in answers),
    )  # fmt: skip


def _f1(k: int, facts: Sequence[Fact]) -> float:
    supported, not_supported = facts.count(Fact.SUPPORTED), facts.count(Fact.NOT_SUPPORTED)
    if supported == 0:
        return 0.0
    precision, recall = supported / (supported + not_supported), min(1.0, supported / k)
    return 2 * precision * recall / (precision + recall)
