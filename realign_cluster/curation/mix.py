"""A mix of several kinds of data (task, general, creative, ...) by ratio: which rows, in which order, what was taken.

Counts are exact to the row. Kinds are interleaved: wherever one looks, each is there in about its share, so that a
training that stops early has seen the mix. The same seed gives the same mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from realign_cluster.curation.draw import shuffled
from realign_cluster.domain.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`rows` are there of this kind; `weight` is its part of the mix relative to the others'."""

    kind: str
    rows: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Row `row` (from 0) of its kind; `repeat` counts how often it was taken before."""

    kind: str
    row: int
    repeat: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KindReport:
    """Of one kind: what was asked and what was taken. `most_often`: how often the most used row is in the mix."""

    kind: str
    available: int
    asked_fraction: float
    taken: int
    fraction: float
    distinct: int
    most_often: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    rows: tuple[Taken, ...]
    kinds: tuple[KindReport, ...]
    seed: int

    def text(self) -> str:
        """ "1,000 rows: task 700 of 5,000 (70.0 %), general 300 of 900 (30.0 %)"."""
        parts = [f"{each.kind} {each.taken:,} of {each.available:,} ({each.fraction:.1%})" for each in self.kinds]
        return f"{len(self.rows):,} rows: {', '.join(parts)}"


def exact_counts(weights: Sequence[float], total: int) -> tuple[int, ...]:
    """`total` in proportion to `weights` in whole numbers, by largest remainders (ties: the first)."""
    exact = [Fraction(weight) for weight in weights]
    wanted = [total * weight / sum(exact) for weight in exact]
    counts = [int(each) for each in wanted]
    rest = total - sum(counts)
    for at in sorted(range(len(wanted)), key=lambda at: (counts[at] - wanted[at], at))[:rest]:
        counts[at] += 1
    return tuple(counts)


def mix(sources: Sequence[Source], *, total: int | None = None, repeat: bool = False, seed: int = 0) -> Mix:
    """`total` rows; None: as many as the ratio allows without taking a row twice.

    With `repeat` a kind that has too few rows is gone through again, each time whole and in another order; without,
    too few are refused. Raises UsageError.
    """
    _check(sources)
    weights = [source.weight for source in sources]
    total = _most(sources) if total is None else total
    counts = exact_counts(weights, total)
    short = [
        f"{source.kind} has {source.rows:,} rows, {count:,} are wanted"
        for source, count in zip(sources, counts, strict=True)
        if count > source.rows and not repeat
    ]
    if short:
        raise UsageError(
            f"a mix of {total:,} rows is not there: {'; '.join(short)}",
            f"ask for at most {_most(sources):,} rows, for other weights, or allow rows to be repeated",
        )
    if total < 1:
        raise UsageError("the mix would have no rows", "give each kind rows, or ask for more")
    placed = [
        ((2 * at + 1) / (2 * count), kind_at, taken)
        for kind_at, (source, count) in enumerate(zip(sources, counts, strict=True))
        for at, taken in enumerate(_take(source, count, seed))
    ]
    placed.sort(key=lambda each: each[:2])
    return Mix(
        rows=tuple(taken for *_, taken in placed),
        kinds=tuple(
            KindReport(
                kind=source.kind,
                available=source.rows,
                asked_fraction=source.weight / sum(weights),
                taken=count,
                fraction=count / total,
                distinct=min(count, source.rows),
                most_often=-(-count // source.rows) if count else 0,
            )
            for source, count in zip(sources, counts, strict=True)
        ),
        seed=seed,
    )


def _check(sources: Sequence[Source]) -> None:
    if not sources:
        raise UsageError("a mix of nothing", "name at least one kind of data")
    if len({source.kind for source in sources}) < len(sources):
        raise UsageError("a kind is named twice", "put its rows together")
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise UsageError(f"{source.kind} has the weight {source.weight}", "give a number above 0, or leave it out")
        if source.rows < 1:
            raise UsageError(f"{source.kind} has no rows", "give rows of it, or leave it out")


def _most(sources: Sequence[Source]) -> int:
    """The largest total for which no kind runs out."""
    weights = [Fraction(source.weight) for source in sources]
    total = min(int((source.rows + 1) * sum(weights) / weight) for source, weight in zip(sources, weights, strict=True))
    while any(
        count > source.rows for source, count in zip(sources, exact_counts([*map(float, weights)], total), strict=True)
    ):
        total -= 1
    return total


def _take(source: Source, count: int, seed: int) -> list[Taken]:
    taken: list[Taken] = []
    repeat = 0
    while len(taken) < count:
        order = shuffled(range(source.rows), seed, source.kind, repeat)
        taken += [Taken(kind=source.kind, row=row, repeat=repeat) for row in order[: count - len(taken)]]
        repeat += 1
    return taken
