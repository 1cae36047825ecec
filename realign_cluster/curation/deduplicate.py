"""Exact and near duplicates among texts; the first of each family stays.

Near: MinHash over word 5-grams, 14 bands of 8 rows, as FineWeb (arXiv 2406.17557): two texts whose sets of 5-grams have
the Jaccard similarity J meet in a band with probability 1 - (1 - J^8)^14. What meets is a duplicate: no similarity is
looked at afterwards, so the band formula is the whole definition, and families are what chains of meetings join.

rensa makes the sketches. Its LSH index finds the same pairs (a candidate there is any equal band, the index's
threshold plays no part in it; tested), but answers with all of them, which is quadratic in the size of a family; the
bands are compared here, each text with the first that has the same band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from realign_cluster.curation.words import grams, words_of

GRAM_WORDS: Final = 5
BANDS: Final = 14
BAND_ROWS: Final = 8
SKETCH_TEXTS: Final = 4096  # sketched at a time: rensa hands them over as Python lists

Kind = Literal["exact", "near"]
Sketches = npt.NDArray[np.uint32]  # (texts, BANDS * BAND_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Text `index` goes, text `of` (the first of its family) stays. `similarity` is the Jaccard similarity of the two
    as their sketches estimate it: in a chain it may be low. 1 for exact ones.
    """

    index: int
    of: int
    kind: Kind
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplicated:
    """Indexes into the texts that were given; `kept` and `duplicates` together are all of them."""

    texts: int
    kept: tuple[int, ...]
    duplicates: tuple[Duplicate, ...]

    def count(self, kind: Kind) -> int:
        return sum(each.kind == kind for each in self.duplicates)

    @property
    def duplicate_fraction(self) -> float | None:
        """None (undefined) of no texts."""
        return len(self.duplicates) / self.texts if self.texts else None


def detection_probability(jaccard: float) -> float:
    """Of two texts with this similarity, that they meet: 0.5645, 0.7716, 0.9236, 0.9884 at 0.70, 0.75, 0.80, 0.85."""
    return float(1 - (1 - jaccard**BAND_ROWS) ** BANDS)


def deduplicate(texts: Sequence[str], *, near: bool = True, seed: int = 1) -> Deduplicated:
    """Exact: equal but for white space at the ends. Texts without a word have no near duplicates.

    A text of fewer than five words is one gram, so its near duplicates have the same words. 448 bytes a text in memory.
    """
    first_with: dict[str, int] = {}
    exact: dict[int, int] = {}
    for index, text in enumerate(texts):
        if (first := first_with.setdefault(text.strip(), index)) != index:
            exact[index] = first
    distinct = [index for index in range(len(texts)) if index not in exact]
    nearly = _families([texts[index] for index in distinct], seed) if near else {}
    found: dict[int, Duplicate] = {}
    for member, (head, similarity) in nearly.items():
        index, of = distinct[member], distinct[head]
        found[index] = Duplicate(index=index, of=of, kind="near", similarity=similarity)
    for index, first in exact.items():
        met = found.get(first)  # where its equal is the near duplicate of another, so is it
        kind: Kind = met.kind if met else "exact"
        found[index] = Duplicate(
            index=index, of=met.of if met else first, kind=kind, similarity=met.similarity if met else 1.0
        )
    kept = tuple(index for index in range(len(texts)) if index not in found)
    return Deduplicated(texts=len(texts), kept=kept, duplicates=tuple(found[index] for index in sorted(found)))


def _families(texts: Sequence[str], seed: int) -> dict[int, tuple[int, float]]:
    """Each text that is not the first of its family -> (the first, their estimated similarity)."""
    places = np.array([index for index, text in enumerate(texts) if words_of(text)], dtype=np.int64)
    if len(places) < 2:
        return {}
    sketches = sketch([texts[index] for index in places], seed=seed)
    heads = _first_of_family(sketches)
    members = np.flatnonzero(heads != np.arange(len(heads)))
    alike = (sketches[members] == sketches[heads[members]]).mean(axis=1)
    return {
        int(places[member]): (int(places[heads[member]]), float(value))
        for member, value in zip(members, alike, strict=True)
    }


def shingles_of(text: str) -> list[str]:
    """The word 5-grams of `text`; of a shorter one all its words as one; none without words."""
    words = words_of(text)
    return grams(words, min(GRAM_WORDS, len(words))) if words else []


def sketch(texts: Sequence[str], *, seed: int) -> Sketches:
    """MinHash of the shingles of each text; each has some. It does not depend on their order, nor on repetitions."""
    pieces = [
        np.array(
            RMinHash.digests_from_token_sets(map(shingles_of, texts[at : at + SKETCH_TEXTS]), BANDS * BAND_ROWS, seed),
            dtype=np.uint32,
        )
        for at in range(0, len(texts), SKETCH_TEXTS)
    ]
    return np.concatenate(pieces)


def _first_of_family(sketches: Sketches) -> npt.NDArray[np.int64]:
    """For each sketch the lowest index that bands join it with, shape (texts,)."""
    count = len(sketches)
    own = np.arange(count)
    edges = []
    for band in range(BANDS):
        rows = np.ascontiguousarray(sketches[:, band * BAND_ROWS : (band + 1) * BAND_ROWS])
        keys = rows.view(np.dtype((np.void, rows.itemsize * BAND_ROWS))).ravel()
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        edges.append(first[which])
    to = np.concatenate(edges)
    graph = coo_array((np.ones(len(to), dtype=np.int8), (np.tile(own, BANDS), to)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first = np.unique(label, return_index=True)
    heads: npt.NDArray[np.int64] = first[label]
    return heads
