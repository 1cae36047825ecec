"""Exact search with embeddings: every query against every passage, by inner product of unit vectors (cosine).

Who computes the vectors is not decided here: an `Embedder` is given. Below a million passages a matrix product needs no
approximate index.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.index_folder import verify_index, write_index
from realign_cluster.metrics.retrieval.retriever import (
    Passage,
    Ranking,
    best,
    check_passages,
    digest_of_passages,
)

KIND = "vectors"
QUERIES_AT_ONCE = 64
_IDS, _VECTORS = "ids.json", "vectors.npy"

Vectors = npt.NDArray[np.float32]


@runtime_checkable
class Embedder(Protocol):
    def embed(self, texts: Sequence[str]) -> Vectors:
        """(texts, dimensions): the same text gives the same vector, whatever is asked with it."""
        ...

    def fingerprint(self) -> str:
        """Of all that a vector depends on besides its text: weights, pooling, prefixes."""
        ...


def build_vector_index(
    passages: Sequence[Passage], folder: Path, *, embedder: Embedder, texts_at_once: int = 256
) -> VectorIndex:
    """An index of the same passages and embedder that is there is opened instead, and nothing is embedded. Raises
    UsageError as `build_bm25_index` does, and for vectors that are not finite, are zero, or of unequal dimensions.
    """
    check_passages(passages)
    facts = {"kind": KIND, "passages": digest_of_passages(passages), "embedder": embedder.fingerprint()}
    write_index(
        folder,
        partial(_write, passages, embedder, texts_at_once),
        passages=len(passages),
        facts=facts,
    )
    return VectorIndex(folder, embedder=embedder)


class VectorIndex:
    def __init__(self, folder: Path, *, embedder: Embedder) -> None:
        """Raises UsageError where there is no index of vectors, or one of another embedder; DamagedIndex."""
        self._manifest = verify_index(folder, KIND)
        there, asked = self._manifest.parameters["embedder"], embedder.fingerprint()
        if there != asked:
            raise UsageError(f"{folder} was embedded by {there}, not by {asked}", "index it again in another folder")
        self._ids: list[str] = orjson.loads((folder / _IDS).read_bytes())
        self._vectors: Vectors = np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)
        self._embedder = embedder

    def __len__(self) -> int:
        return self._manifest.passages

    def search(self, queries: Sequence[str], k: int) -> list[Ranking]:
        rankings: list[Ranking] = []
        for at in range(0, len(queries), QUERIES_AT_ONCE):
            some = queries[at : at + QUERIES_AT_ONCE]
            rankings.extend(self.search_vectors(unit_vectors(self._embedder.embed(some), len(some)), k))
        return rankings

    def search_vectors(self, queries: Vectors, k: int) -> list[Ranking]:
        """`queries` (queries, dimensions), of length 1. Cosines count to six decimals: beyond that they depend on how
        many queries are multiplied at once. Raises UsageError for another number of dimensions.
        """
        if queries.shape[1] != self._vectors.shape[1]:
            raise UsageError(f"queries have {queries.shape[1]} dimensions, the index has {self._vectors.shape[1]}")
        return [best(self._ids, row, k) for row in np.round(queries @ self._vectors.T, 6)]

    def fingerprint(self) -> str:
        return self._manifest.fingerprint


def unit_vectors(vectors: Vectors, count: int) -> Vectors:
    """Each divided by its length, float32."""
    exact = np.asarray(vectors, dtype=np.float64)
    if exact.ndim != 2 or len(exact) != count:
        raise UsageError(f"the embedder gave an array of shape {exact.shape} for {count} texts")
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise UsageError("the embedder gave a vector that is zero or not finite")
    unit: Vectors = (exact / lengths).astype(np.float32)
    return unit


def _write(passages: Sequence[Passage], embedder: Embedder, texts_at_once: int, folder: Path) -> None:
    parts: list[Vectors] = []
    for at in range(0, len(passages), texts_at_once):
        some = [passage.text for passage in passages[at : at + texts_at_once]]
        parts.append(unit_vectors(embedder.embed(some), len(some)))
        if parts[-1].shape[1] != parts[0].shape[1]:
            raise UsageError(f"the embedder gave {parts[0].shape[1]} dimensions, then {parts[-1].shape[1]}")
    np.save(folder / _VECTORS, np.concatenate(parts), allow_pickle=False)
    (folder / _IDS).write_bytes(orjson.dumps([passage.id for passage in passages]))
