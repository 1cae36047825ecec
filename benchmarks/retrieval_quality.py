"""How well retrieval finds the sentences that people marked as WiCE's evidence.

    python benchmarks/retrieval_quality.py [--data FOLDER]

For each claim the sentences of its own article are ranked, and then those of all articles together. BM25 beside two
plain rankings in the same run: by the number of words shared with the claim, and at random. Relevant are the sentences
of all alternative sets of supporting sentences. Claims without any are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realign_cluster.metrics.measured import ItemId, SourceId
from realign_cluster.metrics.retrieval.bm25 import Bm25Parameters, build_bm25_index, terms_of
from realign_cluster.metrics.retrieval.retriever import Passage, Ranking, best
from realign_cluster.metrics.retrieval_metrics import mean_reciprocal_rank, ndcg_at, r_precision, ranking

DEPTH = 10  # of nDCG
SHUFFLES = 20
PARAMETERS = {"BM25": Bm25Parameters(), "BM25, k1 1.5, b 0.75": Bm25Parameters(k1=1.5, b=0.75)}


def data_folder() -> Path:
    return Path(os.environ.get("REALIGN_DATA") or Path(__file__).parents[2] / "shared" / "data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    claim: str
    article: int
    sentences: tuple[str, ...]
    relevant: frozenset[str]


def passages_of(question: Question) -> list[Passage]:
    return [
        Passage(id=f"{question.article}:{at}", text=text)
        for at, text in enumerate(question.sentences)
        if terms_of(text)
    ]


def questions(path: Path) -> list[Question]:
    found, numbers = [], dict[tuple[str, ...], int]()
    for line in path.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        sentences = tuple(row["evidence"])
        article = numbers.setdefault(sentences, len(numbers))
        relevant = frozenset(f"{article}:{at}" for group in row["supporting_sentences"] for at in group)
        found.append(Question(claim=row["claim"], article=article, sentences=sentences, relevant=relevant))
    return found


def figures(rankings: Sequence[Sequence[str]], asked: Sequence[Question]) -> np.ndarray:
    """Means over claims of R-precision, nDCG@10 and reciprocal rank."""
    found = [
        ranking(ItemId(str(at)), map(SourceId, ranked), map(SourceId, question.relevant))
        for at, (ranked, question) in enumerate(zip(rankings, asked, strict=True))
    ]
    return np.array([r_precision(found).value, ndcg_at(DEPTH, found).value, mean_reciprocal_rank(found).value])


def show(name: str, found: np.ndarray) -> None:
    print(f"  {name:24} R-precision {found[0]:.3f}   nDCG@{DEPTH} {found[1]:.3f}   MRR {found[2]:.3f}")


class Overlap:
    """The plain ranking to beat: by the number of different content words that a passage shares with the query."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._ids = [passage.id for passage in passages]
        self._terms = [frozenset(terms_of(passage.text)) for passage in passages]

    def search(self, query: str) -> Ranking:
        wanted = set(terms_of(query))
        scores = np.array([len(wanted & terms) for terms in self._terms], dtype=np.float64)
        return best(self._ids, scores, len(self._ids), above=0.0)


def at_random(sets: Sequence[Sequence[Passage]], asked: Sequence[Question]) -> np.ndarray:
    """Mean over shuffles."""
    rounds = []
    for seed in range(SHUFFLES):
        generator = np.random.default_rng(seed)
        shuffled = [[passages[at].id for at in generator.permutation(len(passages))] for passages in sets]
        rounds.append(figures(shuffled, asked))
    return np.mean(rounds, axis=0)


def own_articles(asked: Sequence[Question], folder: Path) -> None:
    sets = [passages_of(question) for question in asked]
    found: dict[str, list[Sequence[str]]] = {name: [] for name in PARAMETERS}
    plain = []
    for number, (question, passages) in enumerate(zip(asked, sets, strict=True)):
        for name, parameters in PARAMETERS.items():
            index = build_bm25_index(passages, folder / name / str(number), parameters=parameters)
            found[name].append(index.search([question.claim], len(passages))[0].ids)
        plain.append(Overlap(passages).search(question.claim).ids)
    print(f"within the claim's own article, {np.mean([len(passages) for passages in sets]):.0f} sentences on average")
    for name, rankings in found.items():
        show(name, figures(rankings, asked))
    show("shared words", figures(plain, asked))
    show(f"random ({SHUFFLES} shuffles)", at_random(sets, asked))


def all_articles(asked: Sequence[Question], everything: Sequence[Question], folder: Path) -> None:
    articles = {question.article: question for question in everything}
    passages = [passage for question in articles.values() for passage in passages_of(question)]
    started = time.perf_counter()
    index = build_bm25_index(passages, folder / "all")
    built = time.perf_counter()
    rankings = index.search([question.claim for question in asked], 1000)
    searched = time.perf_counter()
    overlap = Overlap(passages)
    plain = [overlap.search(question.claim).ids for question in asked]
    print(f"among all {len(passages)} sentences of {len(articles)} articles, the first 1,000 looked at")
    show("BM25", figures([ranking.ids for ranking in rankings], asked))
    show("shared words", figures([ids[:1000] for ids in plain], asked))
    chance = np.mean([len(question.relevant) for question in asked]) / len(passages)
    print(f"  at random a sentence is relevant with probability {chance:.1e}")
    print(f"  indexed in {built - started:.1f} s, {1e3 * (searched - built) / len(asked):.2f} ms a query")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data_folder())
    options = parser.parse_args()
    path = options.data / "wice_claim_dev.jsonl"
    if not path.is_file():
        print(f"not run: there are no data in {options.data}: name their folder with --data or REALIGN_DATA")
        return
    everything = questions(path)
    asked = [question for question in everything if question.relevant]
    print(f"WiCE, {len(asked)} of {len(everything)} claims have supporting sentences")
    with tempfile.TemporaryDirectory() as folder:
        own_articles(asked, Path(folder))
        all_articles(asked, everything, Path(folder))


if __name__ == "__main__":
    main()
