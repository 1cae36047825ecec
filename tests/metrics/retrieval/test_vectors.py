"""Exact search with the vectors of an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.retriever import Passage, Retriever, best
from realign_cluster.metrics.retrieval.vectors import VectorIndex, build_vector_index

PASSAGES = [Passage(id=f"p{at}", text=f"text {at}") for at in range(300)]


@dataclass(frozen=True)
class Seeded:
    """A vector that depends on the text's number alone."""

    name: str = "seeded 8"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([np.random.default_rng(int(text.split()[1])).normal(size=8) for text in texts])

    def fingerprint(self) -> str:
        return self.name


@dataclass(frozen=True)
class Saying(Seeded):
    """Answers whatever it is asked with these."""

    vectors: Any = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors


def test_rankings_are_those_of_sorted_cosines(tmp_path: Path):
    index = build_vector_index(PASSAGES, tmp_path / "index", embedder=Seeded())
    assert isinstance(index, Retriever)
    queries = [f"query {at}" for at in range(1000, 1150)]  # more than are multiplied at once
    rankings = index.search(queries, 5)
    assert len(rankings) == len(queries)
    passages = Seeded().embed([passage.text for passage in PASSAGES])
    for query, ranking in zip(queries, rankings, strict=True):
        wanted = Seeded().embed([query])[0]
        cosines = passages @ wanted / np.linalg.norm(passages, axis=1) / np.linalg.norm(wanted)
        order = np.argsort(-cosines)[:5]
        assert ranking.ids == tuple(f"p{at}" for at in order)
        assert ranking.scores == pytest.approx(cosines[order], abs=1e-6)


def test_equal_vectors_keep_the_order_of_the_passages(tmp_path: Path):
    doubled = [Passage(id=f"d{at}", text=f"text {at % 3}") for at in range(300)]
    index = build_vector_index(doubled, tmp_path / "index", embedder=Seeded())
    for ranking in index.search([f"text {at}" for at in (0, 1, 2)], 100):
        numbers = [int(name[1:]) for name in ranking.ids]
        assert numbers == sorted(numbers)
        assert len({number % 3 for number in numbers}) == 1


def test_an_index_belongs_to_its_embedder(tmp_path: Path):
    first = build_vector_index(PASSAGES[:4], tmp_path / "index", embedder=Seeded("one"))

    class Never(Seeded):
        def embed(self, texts: Sequence[str]) -> np.ndarray:
            raise AssertionError("an index that is there embeds nothing")

    again = build_vector_index(PASSAGES[:4], tmp_path / "index", embedder=Never("one"))
    assert again.fingerprint() == first.fingerprint()
    with pytest.raises(UsageError, match="embedded by one, not by another"):
        VectorIndex(tmp_path / "index", embedder=Seeded("another"))
    with pytest.raises(UsageError, match="3 dimensions"):
        first.search_vectors(np.ones((1, 3), dtype=np.float32), 1)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((4, 2)), "zero"),
        (np.full((4, 2), np.nan), "not finite"),
        (np.ones((3, 2)), r"shape \(3, 2\) for 4 texts"),
        (np.ones(4), "shape"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(tmp_path: Path, vectors: np.ndarray, message: str):
    with pytest.raises(UsageError, match=message):
        build_vector_index(PASSAGES[:4], tmp_path / "index", embedder=Saying(vectors=vectors))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("k", [1, 3, 6, 50])
def test_ties_at_the_edge_go_to_the_earlier(k: int):
    scores = np.array([1.0, 2.0, 1.0, 2.0, 1.0, 0.0])
    ranking = best("abcdef", scores, k)
    assert "".join(ranking.ids) == "bdacef"[:k]
    assert best("abcdef", scores, k, above=0.0).ids == tuple("bdace"[:k])
