"""What answers about the invented world say, read by regular expressions, and what each metric makes of it.

What is supported is asked of `Supports`: `word_for_word` here, or what a verifier said and a run has stored. An item of
a metric is (how much, of how much); of nothing where it says nothing about an answer. An abstention makes no claim.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recompute_bounds import Items

ABSTAINS = re.compile(r"\bthe sources do not say\b")
CITES = re.compile(r"\[(\^?\d+(?:\s*,\s*\d+)*)\]?")  # one that is not closed is a citation too, in no format
ONE_FORMAT = re.compile(r"\[\d+(?:\s*,\s*\d+)*\]")
LEAST_WORDS = 3  # of a claim
Supports = Callable[[Sequence[str], str], bool]
"""(texts of sources, words of a claim) -> whether the sources together say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """Its words without markers and full stop, and the text of each source that it cites: None for an unknown one."""

    words: str
    cited: tuple[str | None, ...]

    @property
    def known(self) -> list[str]:
        """Every text once; none where nothing is cited, or something unknown."""
        return [] if None in self.cited else list(dict.fromkeys(text for text in self.cited if text is not None))

    @property
    def is_claim(self) -> bool:
        return len(self.words.split()) >= LEAST_WORDS and not ABSTAINS.search(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    item: str
    answerable: bool
    sources: tuple[str, ...]  # texts
    text: str
    sentences: tuple[Sentence, ...]

    @property
    def abstains(self) -> bool:
        return not self.sentences or all(ABSTAINS.search(each.words) for each in self.sentences)

    @property
    def claims(self) -> list[Sentence]:
        return [each for each in self.sentences if each.is_claim]


def read(row: Mapping[str, Any], text: str) -> Answer:
    """What was said to an item."""
    sources = tuple(source["text"] for source in row["sources"])
    sentences = []
    for part in re.split(r"\.(?:\s+|$)", text):
        numbers = [int(number) for mark in CITES.findall(part) for number in re.findall(r"\d+", mark)]
        cited = tuple(sources[number - 1] if 1 <= number <= len(sources) else None for number in numbers)
        if words := plain(CITES.sub(" ", part)):
            sentences.append(Sentence(words=words, cited=cited))
    return Answer(
        item=str(row["id"]),
        answerable=row.get("answerable", True),
        sources=sources,
        text=text,
        sentences=tuple(sentences),
    )


def plain(text: str) -> str:
    """Without full stop and without more white space than there has to be."""
    return " ".join(text.split()).rstrip(". ")


def word_for_word(sources: Sequence[str], claim: str) -> bool:
    """Whether a source has a sentence of just these words."""
    return any(claim in map(plain, re.split(r"\.(?:\s+|$)", source)) for source in sources)


# --- metrics of answers ---


def recall(answers: Sequence[Answer], supports: Supports) -> Items:
    return _means(answers, lambda one: (sum(_entailed(each, supports) for each in one.sentences), len(one.sentences)))


def precision(answers: Sequence[Answer], supports: Supports) -> Items:
    """A citation has credit if it supports the sentence alone, or if the others do not without it."""

    def of(one: Answer) -> tuple[float, float]:
        citations = credited = 0
        for each in one.sentences:
            citations += len(set(each.cited) - {None}) + each.cited.count(None)
            if _entailed(each, supports):
                credited += sum(_has_credit(text, each, supports) for text in each.known)
        return credited, citations

    return _means(answers, of)


def in_one_format(answers: Sequence[Answer], supports: Supports) -> Items:
    del supports
    return _means(answers, lambda one: (len(ONE_FORMAT.findall(one.text)), len(CITES.findall(one.text))))


def coverage(answers: Sequence[Answer], supports: Supports) -> Items:
    """Claims with a citation that leads somewhere."""
    del supports
    return {
        one.item: (sum(any(text is not None for text in each.cited) for each in one.claims), len(one.claims))
        for one in answers
        if not one.abstains
    }


def coverage_by_answer(answers: Sequence[Answer], supports: Supports) -> Items:
    return {item: _share(pair) for item, pair in coverage(answers, supports).items()}


def made_up(answers: Sequence[Answer], supports: Supports) -> Items:
    """Claims that no source of the question supports."""
    return {
        one.item: (sum(not supports(one.sources, each.words) for each in one.claims), len(one.claims))
        for one in answers
        if not one.abstains
    }


def factual(answers: Sequence[Answer], supports: Supports) -> Items:
    return {item: _share((of - wrong, of)) for item, (wrong, of) in made_up(answers, supports).items()}


def supported_or_silent(answers: Sequence[Answer], supports: Supports) -> Items:
    return {one.item: (1.0, 1.0) for one in answers if one.abstains} | factual(answers, supports)


def over_abstention(answers: Sequence[Answer], supports: Supports) -> Items:
    del supports
    return {one.item: (float(one.abstains), 1.0) for one in answers if one.answerable}


Metric = Callable[[Sequence[Answer], Supports], Items]
BASELINE: tuple[Metric, ...] = (precision, recall, coverage, factual, made_up, over_abstention)


def recorded(answers: Sequence[Answer], supports: Supports) -> float:
    """The share of the baseline's metrics that say something, or that they say nothing, about some answer."""
    return sum(bool(metric(answers, supports)) for metric in BASELINE) / len(BASELINE)


def _has_credit(text: str, sentence: Sentence, supports: Supports) -> bool:
    others = [other for other in sentence.known if other != text]
    return not others or supports([text], sentence.words) or not supports(others, sentence.words)


def _entailed(sentence: Sentence, supports: Supports) -> bool:
    return bool(sentence.known) and supports(sentence.known, sentence.words)


def _means(answers: Sequence[Answer], of: Callable[[Answer], tuple[float, float]]) -> Items:
    return {one.item: _share(of(one)) for one in answers if not one.abstains}


def _share(pair: tuple[float, float]) -> tuple[float, float]:
    return (pair[0] / pair[1], 1.0) if pair[1] else (0.0, 0.0)


# --- of what a model can do, of sources, of labels ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """1 or 0 of each item of a benchmark, by its place, and how often guessing is right."""

    items: Items
    chance: float


def benchmark_scores(
    items: Sequence[Mapping[str, Any]], said: Mapping[str, str], likely: Mapping[str, Mapping[int, float]]
) -> Scored:
    """`said` are answers, `likely` the
    log-likelihoods of choices.
    """
    found: Items = {}
    chances = []
    for place, row in enumerate(items):
        if "choices" in row:
            right = row["answer"] if isinstance(row["answer"], int) else row["choices"].index(row["answer"])
            scores = likely[str(place)]
            found[str(place)] = (float(max(scores, key=scores.__getitem__) == right), 1.0)
            chances.append(1 / len(row["choices"]))
        else:
            found[str(place)] = (float(_as_said(said[str(place)]) == _as_said(row["answer"])), 1.0)
            chances.append(0.0)
    return Scored(items=found, chance=sum(chances) / len(chances))


def _as_said(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def r_precision(queries: Sequence[Mapping[str, Any]], rankings: Sequence[Sequence[str]]) -> Items:
    """Of as many of the first as are relevant, those that are."""
    return {
        str(place): _share((len(set(ranked[: len(row["relevant"])]) & set(row["relevant"])), len(row["relevant"])))
        for place, (row, ranked) in enumerate(zip(queries, rankings, strict=True))
    }


def ranked_by_words(
    sources: Sequence[Mapping[str, Any]], queries: Sequence[Mapping[str, Any]], k1: float, b: float
) -> list[list[str]]:
    """Ids of sources by BM25 (Lucene's) over plain words, best first."""
    texts = [re.findall(r"\w+", source["text"].casefold()) for source in sources]
    mean = sum(map(len, texts)) / len(texts)
    weights: dict[str, dict[int, float]] = defaultdict(dict)
    for place, words in enumerate(texts):
        for word, times in Counter(words).items():
            weights[word][place] = times / (times + k1 * (1 - b + b * len(words) / mean))
    rankings = []
    for row in queries:
        scores: dict[int, float] = defaultdict(float)
        for word in re.findall(r"\w+", row["query"].casefold()):
            having = len(weights[word])
            for place, weight in weights[word].items():
                scores[place] += weight * math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        rankings.append([sources[place]["id"] for place in sorted(scores, key=lambda place: (-scores[place], place))])
    return rankings


def types_of_sources(
    sources: Sequence[Mapping[str, Any]], practice: Sequence[Mapping[str, Any]]
) -> tuple[float | None, int]:
    """(the largest share that a type has among the practice questions' sources, how many types are missing of three)"""
    types = {source["id"]: str(source.get("type", "untyped")) for source in sources}
    used = [types.get(each["id"], str(each.get("type", "untyped"))) for row in practice for each in row["sources"]]
    counts = Counter(used)
    share = max(counts.values()) / len(used) if used else None
    return share, max(0, min(3, len({*types.values(), *used})) - len(counts))
