"""Whether a model answers when it can and abstains when it cannot, and what its confidence is worth.

`stance` reads an answer's text: it abstains if it says so (the explicit list of `abstention_phrases`) and offers
nothing of substance besides. One that abstains from a part and answers the rest is partial, and counts as an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Final

from realign_cluster.metrics.citations import read_citations
from realign_cluster.metrics.claims import body_sentences, extract_claims
from realign_cluster.metrics.measured import ItemId, MeanOverItems, mean_over_items
from realign_cluster.metrics.sentence_roles import Role, role_of
from realign_cluster.metrics.sentences import Kind, split_sentences


class Stance(StrEnum):
    ANSWER = "answer"
    PARTIAL = "partial"  # says what it cannot answer, and answers the rest
    ABSTENTION = "abstention"
    EMPTY = "empty"  # no words at all: abstains without saying so


ABSTAINS: Final = frozenset({Stance.ABSTENTION, Stance.EMPTY})
SUBSTANCE: Final = frozenset({Role.CLAIM, Role.INSTRUCTION, Role.OPINION, Role.FRAGMENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """`answerable`: the sources that the question came with hold its answer."""

    item: ItemId
    answerable: bool
    stance: Stance


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging:
    """0 or 1 for each answerable, and for each unanswerable item."""

    over_abstention: MeanOverItems
    answers_on_unanswerable: MeanOverItems


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCoverage:
    """`points`: (coverage, risk) when everything at least as confident as some item is answered; risk is the fraction
    wrong among those. `area`: mean risk over the coverages 1/n, 2/n ... 1 (Geifman and El-Yaniv 2017), the lower the
    better; among equal confidences it is the mean over their orders. None without items.
    """

    points: tuple[tuple[float, float], ...]
    area: float | None


def stance(text: str) -> Stance:
    """What abstains may explain itself, in up to twice as many sentences as abstain, none of them cited
    ("There are many people of that name."). A claim in the same sentence ("I am not sure, but it lies in Peru"), one
    that is cited, code, a table, or more of them make it partial; so does abstaining only later, from something.
    """
    if not any(character.isalnum() for character in text):
        return Stance.EMPTY
    sentences = body_sentences(text, read_citations(text))
    roles = [role_of(text[sentence.begin : sentence.end]) for sentence in sentences]
    abstaining = [sentence for sentence, role in zip(sentences, roles, strict=True) if role is Role.ABSTENTION]
    if not abstaining:
        return Stance.ANSWER
    claims = extract_claims(text)
    shown = any(sentence.kind in (Kind.CODE, Kind.TABLE) for sentence in split_sentences(text))
    if shown or any(claim.keys or claim.sentence in abstaining for claim in claims):
        return Stance.PARTIAL
    first = next(role for role in roles if role not in (Role.FILLER, Role.QUESTION, Role.FRAGMENT))
    most = 2 * len(abstaining) if first is Role.ABSTENTION else len(abstaining) - 1
    return Stance.ABSTENTION if sum(role in SUBSTANCE for role in roles) <= most else Stance.PARTIAL


def hedging(answers: Sequence[Answered]) -> Hedging:
    return Hedging(
        over_abstention=mean_over_items(
            "over-abstention", "abstentions / answerable items",
            ((one.item, float(one.stance in ABSTAINS)) for one in answers if one.answerable),
        ),
        answers_on_unanswerable=mean_over_items(
            "answers on unanswerable", "answers / unanswerable items",
            ((one.item, float(one.stance not in ABSTAINS)) for one in answers if not one.answerable),
        ),
    )  # fmt: skip


def risk_coverage(items: Iterable[tuple[float, bool]]) -> RiskCoverage:
    """`items`: (confidence, whether the answer is right). ValueError for a confidence that is not a number."""
    ordered = sorted(items, key=lambda item: -item[0])
    if any(math.isnan(confidence) for confidence, _ in ordered):
        raise ValueError("a confidence is not a number: it has no place on the curve")
    points: list[tuple[float, float]] = []
    risks: list[float] = []
    answered = wrong = 0
    for _, group in groupby(ordered, key=lambda item: item[0]):
        outcomes = [right for _, right in group]
        wrong_here = outcomes.count(False)
        for position in range(1, len(outcomes) + 1):
            risks.append((wrong + wrong_here * position / len(outcomes)) / (answered + position))
        answered += len(outcomes)
        wrong += wrong_here
        points.append((answered / len(ordered), wrong / answered))
    return RiskCoverage(points=tuple(points), area=math.fsum(risks) / len(risks) if risks else None)
