"""Preference pairs from samples of a model and what was found of them.

For each item (a prompt and several answers to it) an answer is chosen over another one for one reason that has a name:
a right citation over one that is wrong, missing, swapped or irrelevant; what the sources support over what is
hallucinated; an answer over an abstention where there is an answer; an abstention over a hallucination where there is
none. So that pairs of one family do not undo what another teaches, families can be given shares. Every pair says of
which item and which samples it is made, and why. The seed decides what is drawn; nothing depends on order or time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from realign_cluster.curation.citation_faults import CitationVerdict
from realign_cluster.curation.draw import shuffled
from realign_cluster.curation.mix import exact_counts
from realign_cluster.domain.errors import UsageError

Support = Literal["supported", "hallucinated"]
Reason = Literal[
    "right citation over wrong",
    "right citation over missing",
    "right citation over swapped",
    "right citation over irrelevant",
    "supported over hallucinated",
    "answer over abstention",
    "abstention over hallucination",
]
Family = Literal["citation", "support", "answer", "abstention"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
FAMILIES: Final[Mapping[Reason, Family]] = {
    "right citation over wrong": "citation",
    "right citation over missing": "citation",
    "right citation over swapped": "citation",
    "right citation over irrelevant": "citation",
    "supported over hallucinated": "support",
    "answer over abstention": "answer",
    "abstention over hallucination": "abstention",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSample:
    """One answer. `citation` and `support` are None where they were not judged. `made_from`: the sample that a fault
    was put into (citation_faults), empty if the model wrote it so.
    """

    id: str
    text: str
    abstains: bool = False
    citation: CitationVerdict | None = None
    support: Support | None = None
    made_from: str = ""

    @property
    def good(self) -> bool:
        """An answer with nothing found against it, and something for it."""
        found = (self.citation == "right", self.support == "supported")
        return not self.abstains and any(found) and self.citation in (None, "right") and self.support != "hallucinated"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedItem:
    """A prompt, whether its context holds an answer, and samples. `group` keeps items together in splits."""

    id: str
    prompt: str
    answerable: bool
    samples: tuple[JudgedSample, ...]
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    item: JudgedItem
    chosen: JudgedSample
    rejected: JudgedSample
    reason: Reason

    @property
    def family(self) -> Family:
        return FAMILIES[self.reason]

    def row(self) -> dict[str, Any]:
        """As it is trained on, with where it comes from."""
        origin = {
            "item": self.item.id,
            "chosen": self.chosen.id,
            "rejected": self.rejected.id,
            "reason": self.reason,
            "made_from": self.rejected.made_from,
        }
        return {
            "prompt": self.item.prompt,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "group": self.item.group or self.item.id,
            "provenance": origin,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MadePairs:
    """`possible` and `taken`: pairs by reason, before and after limits and shares. `without`: items that gave none."""

    pairs: tuple[PreferencePair, ...]
    possible: dict[Reason, int]
    taken: dict[Reason, int]
    without: tuple[str, ...]


def make_pairs(
    items: Sequence[JudgedItem],
    *,
    per_reason: int = 1,
    shares: Mapping[Family, float] | None = None,
    seed: int = 0,
) -> MadePairs:
    """At most `per_reason` pairs of an item for each reason, in the order of `items`.

    `shares`: of the families among the pairs, in proportion; as many pairs as that allows. A family that is not named
    is left out. Raises UsageError for ids that are there twice, for shares that cannot be, and for a family with a
    share of which no pair can be made.
    """
    _check(items)
    possible = dict.fromkeys(REASONS, 0)
    drawn: list[PreferencePair] = []
    for item in items:
        for reason in REASONS:
            found = _of_reason(item, reason)
            possible[reason] += len(found)
            drawn += _shuffled_pairs(found, seed)[:per_reason]
    if shares is not None:
        drawn = _balanced(drawn, shares, seed)
    taken = dict.fromkeys(REASONS, 0)
    for pair in drawn:
        taken[pair.reason] += 1
    paired = {pair.item.id for pair in drawn}
    return MadePairs(
        pairs=tuple(drawn),
        possible=possible,
        taken=taken,
        without=tuple(item.id for item in items if item.id not in paired),
    )


def _shuffled_pairs(pairs: Sequence[PreferencePair], seed: int) -> list[PreferencePair]:
    by_key = {(pair.item.id, pair.reason, pair.chosen.id, pair.rejected.id): pair for pair in pairs}
    return [by_key[key] for key in shuffled(by_key, seed)]


def _of_reason(item: JudgedItem, reason: Reason) -> list[PreferencePair]:
    """All pairs of the item that this reason allows; answers that read the same are no pair."""
    chosen, rejected = _sides(item, reason)
    return [
        PreferencePair(item=item, chosen=one, rejected=other, reason=reason)
        for one in item.samples
        if chosen(one)
        for other in item.samples
        if rejected(other) and one.text.strip() != other.text.strip()
    ]


Test = Callable[[JudgedSample], bool]


def _sides(item: JudgedItem, reason: Reason) -> tuple[Test, Test]:
    """Which samples may be chosen, and which rejected."""

    def nobody(sample: JudgedSample) -> bool:
        return False

    def cites_right(sample: JudgedSample) -> bool:
        return sample.good and sample.citation == "right"

    def is_supported(sample: JudgedSample) -> bool:
        return sample.good and sample.support == "supported"

    def is_hallucinated(sample: JudgedSample) -> bool:
        return not sample.abstains and sample.support == "hallucinated"

    if item.answerable == (reason == "abstention over hallucination"):
        return nobody, nobody
    match reason:
        case "supported over hallucinated":
            return is_supported, is_hallucinated
        case "answer over abstention":
            return lambda sample: sample.good, lambda sample: sample.abstains
        case "abstention over hallucination":
            return lambda sample: sample.abstains, is_hallucinated
        case _:
            fault = reason.removeprefix("right citation over ")
            return cites_right, lambda sample: not sample.abstains and sample.citation == fault


def _balanced(pairs: Sequence[PreferencePair], shares: Mapping[Family, float], seed: int) -> list[PreferencePair]:
    """The most pairs in these proportions, in the order that they had."""
    if not shares or any(not 0 < share < float("inf") for share in shares.values()):
        raise UsageError(f"shares of {dict(shares)}", "give each family that is wanted a number above 0")
    of = {family: [pair for pair in pairs if pair.family == family] for family in shares}
    if missing := [family for family, found in of.items() if not found]:
        raise UsageError(
            f"no pair can be made for {', '.join(missing)}, of which shares are asked",
            "sample more answers, or leave the family out",
        )
    weights = list(shares.values())
    total = min(int((len(of[family]) + 1) * sum(weights) / share) for family, share in shares.items())
    counts = exact_counts(weights, total)
    while any(count > len(of[family]) for family, count in zip(shares, counts, strict=True)):
        total -= 1
        counts = exact_counts(weights, total)
    kept = {
        id(pair)
        for family, count in zip(shares, counts, strict=True)
        for pair in _shuffled_pairs(of[family], seed)[:count]
    }
    return [pair for pair in pairs if id(pair) in kept]


def _check(items: Sequence[JudgedItem]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UsageError(f"two items have the id {item.id}", "give each its own: pairs say by it what they are of")
        seen.add(item.id)
        ids = [sample.id for sample in item.samples]
        if len(set(ids)) < len(ids):
            raise UsageError(f"two samples of {item.id} have the same id", "give each its own")
