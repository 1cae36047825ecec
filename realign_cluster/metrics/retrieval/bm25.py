"""BM25 over stems, by bm25s. A passage that shares no word with the query is not found.

The score is Lucene's (bm25s's default; Kamphuis et al. 2020): sum over the query's words, each as often as it occurs
there, of ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 (1 - b + b length / mean length)), in float32. Lengths
are in words without stop words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
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
from realign_cluster.metrics.verifiers.words import WORDS_VERSION, words_of

KIND = "bm25"
_IDS = "ids.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bm25Parameters:
    """Defaults for passages of a sentence or a few (Anserini's for MS MARCO): with bm25s's own, k1 = 1.5 and b = 0.75,
    short ones win too easily (`benchmarks/retrieval_quality.py`).
    """

    k1: float = 0.9
    b: float = 0.4


def terms_of(text: str) -> list[str]:
    """Stems of the content words; where there is none, of all words."""
    words = words_of(text)
    return [word.stem for word in words if word.is_content] or [word.stem for word in words]


def build_bm25_index(
    passages: Sequence[Passage], folder: Path, *, parameters: Bm25Parameters | None = None
) -> Bm25Index:
    """Indexes into `folder`; one of the same passages and parameters that is there is opened instead. Raises UsageError
    for no passages, one without text, doubled ids, or something else in `folder`.
    """
    check_passages(passages)
    parameters = parameters or Bm25Parameters()
    facts: dict[str, Any] = {
        "kind": KIND,
        "passages": digest_of_passages(passages),
        "words": WORDS_VERSION,
        "bm25s": bm25s.__version__,
        **asdict(parameters),
    }
    write_index(
        folder,
        partial(_write, passages, parameters),
        passages=len(passages),
        facts=facts,
    )
    return Bm25Index(folder)


class Bm25Index:
    """An index folder, open for searching."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError where there is none, DamagedIndex for a damaged one."""
        self._manifest = verify_index(folder, KIND)
        self._ids: list[str] = orjson.loads((folder / _IDS).read_bytes())
        self._index = bm25s.BM25.load(folder, mmap=True, backend="numpy")

    def __len__(self) -> int:
        return self._manifest.passages

    def search(self, queries: Sequence[str], k: int) -> list[Ranking]:
        return [self._search(query, k) for query in queries]

    def fingerprint(self) -> str:
        return self._manifest.fingerprint

    def _search(self, query: str, k: int) -> Ranking:
        known = self._index.get_tokens_ids(terms_of(query))
        if not known:
            return Ranking(ids=(), scores=())
        scores: np.ndarray = self._index.get_scores_from_ids(known)
        return best(self._ids, scores, k, above=0.0)


def _write(passages: Sequence[Passage], parameters: Bm25Parameters, folder: Path) -> None:
    """The vocabulary is numbered in the order of its words' first occurrence: bm25s's own way goes through a set, and
    another process would write other files.
    """
    vocabulary: dict[str, int] = {}
    documents = [
        [vocabulary.setdefault(term, len(vocabulary)) for term in terms_of(passage.text)] for passage in passages
    ]
    if not vocabulary:
        raise UsageError("the passages hold no words", "name sources that hold text")
    index = bm25s.BM25(k1=parameters.k1, b=parameters.b, method="lucene", backend="numpy")
    index.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)
    (folder / _IDS).write_bytes(orjson.dumps([passage.id for passage in passages]))
