"""Do the citations support what they are put to? ALCE's citation recall and precision (Gao et al. 2023, 2305.14627).

Recall of an answer: sentences entailed by all their cited passages together / sentences. Without a citation, or with
one of an unknown id, a sentence scores 0. Precision: citations with credit / citations; one has credit if its
sentence is recalled and it entails the sentence alone, or is necessary (without it the others no longer entail it).
Both are means over answers, each from 0 to 1. An answer without sentences is undefined, as ALCE leaves it out.

Precision comes in two variants. `alce` is what its eval.py computes: a sentence with an unknown id leaves the
denominator, and an answer in which no citation is left scores 0. `strict`, which gates use: unknown ids stay in the
denominator, the same passage twice in one sentence counts once, and an answer without a citation is undefined.

Whoever judges entailment is asked apart: `queries_of` says what has to be known, in one batch for a cluster,
`measure` looks it up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from realign_cluster.metrics.measured import ItemId, MeanOverItems, harmonic_mean, mean_over_items


class Variant(StrEnum):
    ALCE = "alce"
    STRICT = "strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class CitedSentence:
    """`claim` is the sentence without its citations, `passages` the cited texts in order, None for an unknown id."""

    claim: str
    passages: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CitedAnswer:
    item: ItemId
    sentences: tuple[CitedSentence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Does `evidence`, read in this order as one text, entail `claim`?"""

    evidence: tuple[str, ...]
    claim: str


Entailment = Callable[[Query], bool] | Mapping[Query, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class CitationQuality:
    """Citation accuracy is both at once: `recall` and `precision` each clear the threshold. F1 is only reported."""

    variant: Variant
    recall: MeanOverItems
    precision: MeanOverItems

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two means."""
        return harmonic_mean(self.precision.value, self.recall.value)

    @property
    def accuracy(self) -> float | None:
        """The lesser of both, which is what has to clear the threshold."""
        if self.recall.value is None or self.precision.value is None:
            return None
        return min(self.recall.value, self.precision.value)


def queries_of(answers: Iterable[CitedAnswer], most_citations: int | None = None) -> tuple[Query, ...]:
    """Everything `measure` may look up in either variant, each once: up to 2 k + 1 for a sentence of k citations."""
    found: dict[Query, None] = {}
    for answer in answers:
        for sentence in answer.sentences:
            for variant in Variant:
                if (cited := _cited(sentence, most_citations, variant)) is not None:
                    found |= dict.fromkeys(_queries(sentence.claim, cited))
    return tuple(found)


def measure(
    answers: Sequence[CitedAnswer],
    entailed: Entailment,
    variant: Variant = Variant.STRICT,
    most_citations: int | None = None,
) -> CitationQuality:
    """`most_citations` cuts the citations of a sentence, as ALCE does at 3. KeyError if a table lacks a query."""
    ask = entailed.__getitem__ if isinstance(entailed, Mapping) else entailed
    counts = [(answer.item, _count(answer, ask, variant, most_citations)) for answer in answers]
    return CitationQuality(
        variant=variant,
        recall=mean_over_items(
            "citation recall", "sentences entailed / sentences, mean over answers",
            ((item, count.recalled / count.sentences if count.sentences else None) for item, count in counts),
        ),
        precision=mean_over_items(
            f"citation precision ({variant})", "citations with credit / citations, mean over answers",
            ((item, _precision(count, variant)) for item, count in counts),
        ),
    )  # fmt: skip


def accuracy_of_pairs(pairs: Iterable[tuple[ItemId, bool]]) -> MeanOverItems:
    """Of collected claim-source pairs, each with whether the source supports the claim: 0 or 1 for each pair."""
    return mean_over_items(
        "citation accuracy of pairs", "supported pairs / pairs", ((item, float(supported)) for item, supported in pairs)
    )


def alce_sentence(sentence: str, passages: Sequence[str]) -> CitedSentence:
    """One sentence as ALCE's eval.py reads it: every "[" before digits cites, whatever follows the digits.

    [0] is the last passage there (Python's index -1), and so it is here.
    """
    ids = [int(digits) - 1 for digits in re.findall(r"\[(\d+)", sentence)]
    bare = re.sub(r"\[\d+", "", re.sub(r" \[\d+", "", sentence)).replace(" |", "").replace("]", "").strip()
    cited = tuple(passages[index] if index < len(passages) and passages else None for index in ids)
    return CitedSentence(claim=bare, passages=cited)


@dataclass(frozen=True, slots=True)
class _Count:
    sentences: int
    recalled: int
    citations: int  # in the denominator of precision
    credited: int


def _precision(count: _Count, variant: Variant) -> float | None:
    if not count.sentences:
        return None
    if not count.citations:
        return 0.0 if variant is Variant.ALCE else None
    return count.credited / count.citations


def _count(answer: CitedAnswer, ask: Callable[[Query], bool], variant: Variant, most_citations: int | None) -> _Count:
    recalled = citations = credited = 0
    for sentence in answer.sentences:
        cited = _cited(sentence, most_citations, variant)
        if cited is None:
            citations += _citations_of_unknown(sentence, most_citations) if variant is Variant.STRICT else 0
            continue
        citations += len(cited)
        if ask(Query(evidence=cited, claim=sentence.claim)):
            recalled += 1
            credited += sum(_has_credit(position, cited, sentence.claim, ask) for position in range(len(cited)))
    return _Count(len(answer.sentences), recalled, citations, credited)


def _cited(sentence: CitedSentence, most_citations: int | None, variant: Variant) -> tuple[str, ...] | None:
    """The passages a sentence stands on; None if it cites nothing, or something unknown (looked for before the cut)."""
    known = tuple(passage for passage in sentence.passages if passage is not None)
    if not known or len(known) < len(sentence.passages):
        return None
    if variant is Variant.STRICT:
        known = tuple(dict.fromkeys(known))
    return known[:most_citations]


def _citations_of_unknown(sentence: CitedSentence, most_citations: int | None) -> int:
    unknown = sum(passage is None for passage in sentence.passages)
    distinct = len({passage for passage in sentence.passages if passage is not None}) + unknown
    return distinct if most_citations is None else min(distinct, most_citations)


def _has_credit(position: int, cited: tuple[str, ...], claim: str, ask: Callable[[Query], bool]) -> bool:
    """For a citation of a sentence that all of `cited` together entail."""
    if len(cited) == 1:
        return True
    return ask(_alone(position, cited, claim)) or not ask(_without(position, cited, claim))


def _queries(claim: str, cited: tuple[str, ...]) -> list[Query]:
    queries = [Query(evidence=cited, claim=claim)]
    if len(cited) > 1:
        for position in range(len(cited)):
            queries += [_alone(position, cited, claim), _without(position, cited, claim)]
    return queries


def _alone(position: int, cited: tuple[str, ...], claim: str) -> Query:
    return Query(evidence=(cited[position],), claim=claim)


def _without(position: int, cited: tuple[str, ...], claim: str) -> Query:
    """Where a passage is cited twice, ALCE takes out its first occurrence. Told apart by their text."""
    first = cited.index(cited[position])
    return Query(evidence=cited[:first] + cited[first + 1 :], claim=claim)
