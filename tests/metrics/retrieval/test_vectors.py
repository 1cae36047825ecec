"""Exact search with given vectors, and a retriever of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.plugin import build_retriever
from realign_cluster.metrics.retrieval.retriever import Passage, Ranking, Retriever, best
from realign_cluster.metrics.retrieval.vectors import VectorIndex, build_vector_index

PASSAGES = [Passage(id=f"p{at}", text=f"text {at}") for at in range(300)]


def embed(texts: Sequence[str]) -> np.ndarray:
    """A vector that depends on the text's number alone."""
    return np.stack([np.random.default_rng(int(text.split()[1])).normal(size=8) for text in texts])


def test_rankings_are_those_of_sorted_cosines(tmp_path: Path):
    index = build_vector_index(PASSAGES, tmp_path / "index", embed=embed, embedder="seeded 8")
    assert isinstance(index, Retriever)
    queries = [f"query {at}" for at in range(1000, 1150)]  # more than are multiplied at once
    rankings = index.search(queries, 5)
    assert len(rankings) == len(queries)
    passages = embed([passage.text for passage in PASSAGES])
    for query, ranking in zip(queries, rankings, strict=True):
        wanted = embed([query])[0]
        cosines = passages @ wanted / np.linalg.norm(passages, axis=1) / np.linalg.norm(wanted)
        order = np.argsort(-cosines)[:5]
        assert ranking.ids == tuple(f"p{at}" for at in order)
        assert ranking.scores == pytest.approx(cosines[order], abs=1e-6)


def test_equal_vectors_keep_the_order_of_the_passages(tmp_path: Path):
    doubled = [Passage(id=f"d{at}", text=f"text {at % 3}") for at in range(300)]
    index = build_vector_index(doubled, tmp_path / "index", embed=embed, embedder="seeded 8")
    for ranking in index.search([f"text {at}" for at in (0, 1, 2)], 100):
        numbers = [int(name[1:]) for name in ranking.ids]
        assert numbers == sorted(numbers)
        assert len({number % 3 for number in numbers}) == 1


def test_an_index_belongs_to_its_embedder(tmp_path: Path):
    first = build_vector_index(PASSAGES[:4], tmp_path / "index", embed=embed, embedder="one")

    def never(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("an index that is there embeds nothing")

    again = build_vector_index(PASSAGES[:4], tmp_path / "index", embed=never, embedder="one")
    assert again.fingerprint() == first.fingerprint()
    with pytest.raises(UsageError, match="embedded by one, not by another"):
        VectorIndex(tmp_path / "index", embed=embed, embedder="another")
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
        build_vector_index(PASSAGES[:4], tmp_path / "index", embed=lambda texts: vectors, embedder="bad")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("k", [1, 3, 6, 50])
def test_ties_at_the_edge_go_to_the_earlier(k: int):
    scores = np.array([1.0, 2.0, 1.0, 2.0, 1.0, 0.0])
    ranking = best("abcdef", scores, k)
    assert "".join(ranking.ids) == "bdacef"[:k]
    assert best("abcdef", scores, k, above=0.0).ids == tuple("bdace"[:k])


OWN = """
from realign_cluster.metrics.retrieval.retriever import Ranking

class Newest:
    def __init__(self, passages, folder):
        self.ids = [passage.id for passage in passages]
    def search(self, queries, k):
        return [Ranking(ids=tuple(self.ids[::-1][:k]), scores=tuple(range(k, 0, -1))) for _ in queries]
    def fingerprint(self):
        return "newest"

def nothing(passages, folder):
    return object()
"""


def test_the_users_own_retriever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_retriever_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    found = build_retriever("own_retriever_of_a_test:Newest", PASSAGES[:3], tmp_path / "files")
    assert found.search(["anything"], 2) == [Ranking(ids=("p2", "p1"), scores=(2, 1))]
    for entry, message in [
        ("own_retriever_of_a_test", "module:attribute"),
        ("own_retriever_of_a_test:Oldest", "Oldest"),
        ("no_such_module_anywhere:Newest", "no_such_module_anywhere"),
        ("own_retriever_of_a_test:nothing", "object without search"),
    ]:
        with pytest.raises(UsageError, match=message):
            build_retriever(entry, PASSAGES[:3], tmp_path / "files")
