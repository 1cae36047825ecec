"""Whether a collection of claim-source pairs leans on one type of source.

Asked of it: no type above 60 % of the pairs, and at least 3 types where the corpus has them. Counts of a finite
collection, not a sample of anything: there is no bound to compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Final

LARGEST_SHARE: Final = 0.60
LEAST_TYPES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDiversity:
    """`pairs_by_type` from most to least. Shares are fractions of all pairs."""

    pairs_by_type: Mapping[str, int]
    corpus_types: frozenset[str]

    @property
    def pairs(self) -> int:
        return sum(self.pairs_by_type.values())

    @property
    def largest_type(self) -> str | None:
        return next(iter(self.pairs_by_type), None)

    @property
    def largest_share(self) -> float | None:
        """None without pairs."""
        return next(iter(self.pairs_by_type.values())) / self.pairs if self.pairs else None

    def faults(self, largest_share: float = LARGEST_SHARE, least_types: int = LEAST_TYPES) -> tuple[str, ...]:
        """Why it is not diverse enough, in words; () if it is. Without pairs there is nothing to be diverse."""
        if self.largest_share is None:
            return ("there are no pairs",)
        found = []
        if self.largest_share > largest_share:
            found.append(f"{self.largest_share:.1%} of the pairs are {self.largest_type}, above {largest_share:.0%}")
        wanted = min(least_types, len(self.corpus_types))
        if len(self.pairs_by_type) < wanted:
            unused = ", ".join(sorted(self.corpus_types - self.pairs_by_type.keys()))
            found.append(f"{len(self.pairs_by_type)} types of source instead of {wanted}; not used: {unused}")
        return tuple(found)


def source_diversity(types_of_pairs: Iterable[str], corpus_types: Set[str]) -> SourceDiversity:
    """`types_of_pairs` has the type of each pair's source. ValueError if it is not one of the corpus."""
    counts = Counter(types_of_pairs)
    if strange := sorted(counts.keys() - corpus_types):
        raise ValueError(f"pairs of types that the corpus does not have: {', '.join(strange)}")
    ordered = dict(sorted(counts.items(), key=lambda count: (-count[1], count[0])))
    return SourceDiversity(pairs_by_type=ordered, corpus_types=frozenset(corpus_types))
