"""Evaluation items in training rows: found by three named variants, one after the other, for each evaluation set.

exact              the words of the item are those of one of the row's texts, or of all of them together
13-gram            row and item share a run of 13 words (GPT-3, arXiv 2005.14165, appendix C)
8-gram coverage    more than half of the item's words lie in runs of 8 words that it shares with this one row (Tulu 3,
                   arXiv 2411.15124, section 3.2; words here, where Tulu counts spaCy's tokens)

A row and an item are named once, by the first variant that finds them. An item of fewer than 13 words is as a whole its
13-gram, one of fewer than 8 is compared exactly only: a shorter run is shared by chance. What says the same in other
words, or in another language, is not found by any of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from realign_cluster.curation.words import Words, grams, words_of
from realign_cluster.domain.errors import UsageError

Variant = Literal["exact", "13-gram", "8-gram coverage"]
VARIANTS: Final[tuple[Variant, ...]] = ("exact", "13-gram", "8-gram coverage")
LONG_WORDS: Final = 13
SHORT_WORDS: Final = 8
COVERAGE: Final = 0.5
LISTED: Final = 10
SHOWN_CHARACTERS: Final = 80

Texts = Sequence[str]  # of one row or item: its fields


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """`items`: the texts of each item that must not have been seen, as a rule its question, or question and answer."""

    name: str
    items: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Row `row` of the training data holds item `item` of `evaluation_set` (indexes from 0). `coverage`: the fraction
    of the item's words in runs of 8 words (or, of a shorter item, of all its words) that the row has too.
    """

    evaluation_set: str
    item: int
    row: int
    variant: Variant
    coverage: float
    shared: str  # the words that were found first, or their beginning


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """What was found of one evaluation set. `exact_only` items are too short for anything but the exact variant."""

    name: str
    items: int
    exact_only: int
    matches: tuple[Match, ...]

    @property
    def contaminated_items(self) -> tuple[int, ...]:
        return tuple(sorted({match.item for match in self.matches}))

    def by_variant(self) -> dict[Variant, int]:
        """Pairs of row and item, by the variant that found them."""
        return {variant: sum(match.variant == variant for match in self.matches) for variant in VARIANTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decontamination:
    """`kept` and `dropped` are indexes of training rows, together all of them."""

    rows: int
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    sets: tuple[SetReport, ...]

    @property
    def clean_fraction(self) -> float | None:
        """Of the training rows; None (undefined) if there are none."""
        return len(self.kept) / self.rows if self.rows else None

    @property
    def matches(self) -> tuple[Match, ...]:
        return tuple(match for each in self.sets for match in each.matches)


@dataclass(frozen=True, slots=True)
class _Item:
    set_index: int
    index: int
    words: Words


class ContaminationIndex:
    """Evaluation sets, made ready to look through any number of training rows. Raises UsageError for a set without
    items, or with an item without words, and for two sets of one name.
    """

    def __init__(self, sets: Sequence[EvaluationSet], variants: Sequence[Variant] = VARIANTS) -> None:
        self._sets = tuple(sets)
        self._variants = tuple(variants)
        self._items: list[_Item] = []
        self._exact: dict[Words, list[int]] = defaultdict(list)
        self._long: dict[str, list[int]] = defaultdict(list)
        self._short: dict[str, list[tuple[int, int]]] = defaultdict(list)  # gram -> (item, its first word)
        self._long_lengths: set[int] = set()
        if len({each.name for each in sets}) < len(sets):
            raise UsageError("two evaluation sets have the same name", "name them apart: matches are given by name")
        for set_index, each in enumerate(sets):
            if not each.items:
                raise UsageError(f"the evaluation set {each.name} has no items", "give a file with rows")
            for index, texts in enumerate(each.items):
                words = words_of("\n".join(texts))
                if not words:
                    raise UsageError(f"item {index + 1} of {each.name} has no words", "correct or remove it")
                self._add(_Item(set_index, index, words))

    def _add(self, item: _Item) -> None:
        number = len(self._items)
        self._items.append(item)
        self._exact[item.words].append(number)
        if len(item.words) < SHORT_WORDS:
            return
        length = min(LONG_WORDS, len(item.words))
        self._long_lengths.add(length)
        for gram in set(grams(item.words, length)):
            self._long[gram].append(number)
        for at, gram in enumerate(grams(item.words, SHORT_WORDS)):
            self._short[gram].append((number, at))

    def look_through(self, row: int, texts: Texts) -> Iterator[Match]:
        """What row number `row` with these texts holds, in order of items."""
        fields = [words for text in texts if (words := words_of(text))]
        whole = tuple(word for words in fields for word in words)
        starts = self._shared_runs(whole) if set(self._variants) - {"exact"} else {}
        found: dict[int, tuple[Variant, str]] = {}
        for variant in VARIANTS:
            if variant in self._variants:
                for number, shared in self._found_by(variant, fields, whole, starts):
                    found.setdefault(number, (variant, shared))
        for number in sorted(found):
            item, (variant, shared) = self._items[number], found[number]
            yield Match(
                evaluation_set=self._sets[item.set_index].name,
                item=item.index,
                row=row,
                variant=variant,
                coverage=1.0 if variant == "exact" else _coverage(item.words, starts.get(number, ())),
                shared=shared[:SHOWN_CHARACTERS],
            )

    def _shared_runs(self, words: Words) -> dict[int, set[int]]:
        """Item -> where in it the runs of 8 words begin that are in `words` too."""
        starts: dict[int, set[int]] = defaultdict(set)
        for gram in set(grams(words, SHORT_WORDS)):
            for number, at in self._short.get(gram, ()):
                starts[number].add(at)
        return starts

    def _found_by(
        self, variant: Variant, fields: Sequence[Words], whole: Words, starts: dict[int, set[int]]
    ) -> Iterator[tuple[int, str]]:
        match variant:
            case "exact":
                for words in (*fields, whole):
                    for number in self._exact.get(words, ()):
                        yield number, " ".join(words)
            case "13-gram":
                lengths = self._long_lengths if starts else ()  # who shares so many words shares eight of them
                for length in sorted(lengths, reverse=True):
                    for gram in grams(whole, length):
                        for number in self._long.get(gram, ()):
                            yield number, gram
            case "8-gram coverage":
                for number, places in starts.items():
                    words = self._items[number].words
                    if _coverage(words, places) > COVERAGE:
                        yield number, " ".join(words[min(places) : min(places) + SHORT_WORDS])

    def reports(self, matches: Sequence[Match]) -> tuple[SetReport, ...]:
        """By evaluation set, also of those in which nothing was found."""
        short = [item.set_index for item in self._items if len(item.words) < SHORT_WORDS]
        return tuple(
            SetReport(
                name=each.name,
                items=len(each.items),
                exact_only=short.count(at),
                matches=tuple(match for match in matches if match.evaluation_set == each.name),
            )
            for at, each in enumerate(self._sets)
        )


def _coverage(words: Words, starts: set[int] | tuple[()]) -> float:
    covered = {at + offset for at in starts for offset in range(SHORT_WORDS)}
    return len(covered) / len(words)


def decontaminate(
    rows: Sequence[Texts], sets: Sequence[EvaluationSet], *, variants: Sequence[Variant] = VARIANTS
) -> Decontamination:
    """Which training rows to drop, and why. `rows`: the texts of each. Raises UsageError as ContaminationIndex does."""
    index = ContaminationIndex(sets, variants)
    matches = [match for row, texts in enumerate(rows) for match in index.look_through(row, texts)]
    dropped = {match.row for match in matches}
    return Decontamination(
        rows=len(rows),
        kept=tuple(row for row in range(len(rows)) if row not in dropped),
        dropped=tuple(sorted(dropped)),
        sets=index.reports(matches),
    )


def refuse_if_contaminated(found: Decontamination, *, where: str) -> None:
    """Raises UsageError with the rows (counted from 1, of the data called `where`) if there is any match."""
    if not found.matches:
        return
    listed = "\n  ".join(
        f"row {match.row + 1} holds item {match.item + 1} of {match.evaluation_set} ({match.variant}): {match.shared}"
        for match in found.matches[:LISTED]
    )
    more = f"\n  and {len(found.matches) - LISTED} more" if len(found.matches) > LISTED else ""
    raise UsageError(
        f"{len(found.dropped)} of {found.rows} rows of {where} hold evaluation items:\n  {listed}{more}",
        "drop those rows, or evaluate on other items",
    )
