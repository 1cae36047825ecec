"""Sources and what is collected of them: indexed, searched, counted by type, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from realign_cluster.curation.draw import shuffled
from realign_cluster.metrics.measured import ItemId, SourceId, mean_over_items
from realign_cluster.metrics.retrieval.bm25 import Bm25Parameters
from realign_cluster.metrics.retrieval.choice import build_index, choice_of, open_index
from realign_cluster.metrics.retrieval.retriever import Passage
from realign_cluster.metrics.retrieval_metrics import (
    mean_reciprocal_rank,
    ndcg_at,
    r_precision,
    ranking,
    recall_at,
)
from realign_cluster.metrics.source_diversity import source_diversity
from realign_cluster.metrics.verifiers.verdict import Pair
from realign_cluster.workflows.derive import Derived, Inputs, derivation
from realign_cluster.workflows.measured import measurement_of, to_row
from realign_cluster.workflows.stage import Context

DEPTH: Final = 10
# of BM25: the default, then those that suit longer passages
RETRIEVAL_ATTEMPTS: Final = (
    Bm25Parameters(k1=0.9, b=0.4),
    Bm25Parameters(k1=1.5, b=0.75),
    Bm25Parameters(k1=2.0, b=1.0),
)
UNTYPED: Final = "untyped"


def retriever_of(context: Context) -> dict[str, Any]:
    """What an index depends on besides the sources, for a job's parameters: the user's code by its fingerprint, or
    BM25, with other parameters for each attempt.
    """
    if context.retriever is not None:
        return asdict(context.retriever)
    return asdict(RETRIEVAL_ATTEMPTS[context.attempt % len(RETRIEVAL_ATTEMPTS)])


@derivation(version=2)
def source_index(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "index": a folder that anybody can search."""
    folder = inputs.scratch() / "index"
    passages = [Passage(id=row["id"], text=row["text"]) for row in inputs.rows("sources")]
    index = build_index(choice_of(parameters["retriever"]), passages, folder)
    return Derived(folders={"index": folder}, value={"passages": len(passages), "fingerprint": index.fingerprint()})


@derivation(version=2)
def retrieval_measurements(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "measurements" of the ranking of every query, and "rankings" themselves."""
    index = open_index(choice_of(parameters["retriever"]), inputs.folder("index"))
    queries = list(inputs.rows("queries"))
    most = max(parameters["most"], *(len(row["relevant"]) for row in queries))
    found = index.search([row["query"] for row in queries], most)
    rankings = [
        ranking(ItemId(str(at)), [SourceId(i) for i in each.ids], [SourceId(i) for i in row["relevant"]])
        for at, (row, each) in enumerate(zip(queries, found, strict=True))
    ]
    measured = {
        "retrieval_r_precision": r_precision(rankings),
        "retrieval_mrr": mean_reciprocal_rank(rankings),
        f"retrieval_ndcg@{DEPTH}": ndcg_at(DEPTH, rankings),
        f"retrieval_recall@{DEPTH}": recall_at(DEPTH, rankings),
    }
    fingerprint = index.fingerprint()
    return Derived(
        rows={
            "measurements": [
                to_row(measurement_of(name, each, verifier=fingerprint, dataset="queries"))
                for name, each in measured.items()
            ],
            "rankings": [
                {
                    "query": row["query"],
                    "relevant": row["relevant"],
                    "ranked": list(each.ids),
                    "scores": list(each.scores),
                }
                for row, each in zip(queries, found, strict=True)
            ],
        }
    )


@derivation(version=1)
def spread_of_sources(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """The types of the sources that the practice questions come with: value {"largest_share", "missing_types", ...}."""
    del parameters
    types = {row["id"]: str(row.get("type", UNTYPED)) for row in inputs.rows("sources")}
    used = [
        types.get(source["id"], str(source.get("type", UNTYPED)))
        for row in inputs.rows("practice")
        for source in row["sources"]
    ]
    found = source_diversity(used, set(types.values()) | set(used))
    return Derived(
        value={
            "largest_share_of_a_type": found.largest_share,
            "types_of_sources": len(found.pairs_by_type),
            "types_missing": max(0, min(3, len(found.corpus_types)) - len(found.pairs_by_type)),
            "pairs_by_type": dict(found.pairs_by_type),
        }
    )


@derivation(version=1)
def practice_prompts(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "prompts": practice questions, drawn by the seed where there are more than wanted."""
    rows = list(inputs.rows("practice"))
    most = parameters["most"]
    if most is not None and most < len(rows):
        chosen = set(shuffled(range(len(rows)), parameters["seed"])[:most])
        rows = [row for at, row in enumerate(rows) if at in chosen]
    return Derived(rows={"prompts": rows})


@derivation(version=1)
def pairs_of_facts(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    del parameters
    pairs = {pair.key: pair for pair in (_pair(row) for row in inputs.rows("pairs"))}
    return Derived(
        rows={"pairs": [{"pair": key, "claim": p.claim, "evidence": list(p.evidence)} for key, p in pairs.items()]}
    )


@derivation(version=1)
def pairs_supported(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "measurements": 1 for each collected pair whose sources support its claim; "unsupported": the others."""
    verdicts = {row["pair"]: row for row in inputs.rows("verdicts")}
    rows = list(inputs.rows("pairs"))
    right = [(verdicts[_pair(row).key]["supported"] or 0.0) >= parameters["supported"] for row in rows]
    found = mean_over_items(
        "pairs supported", "supported / pairs", ((ItemId(str(at)), float(each)) for at, each in enumerate(right))
    )
    measured = measurement_of("pairs_supported", found, verifier=parameters["verifier"], dataset="pairs")
    return Derived(
        rows={
            "measurements": [to_row(measured)],
            "unsupported": [row for row, each in zip(rows, right, strict=True) if not each],
        }
    )


def _pair(row: Mapping[str, Any]) -> Pair:
    return Pair(claim=row["claim"], evidence=tuple(source["text"] for source in row["sources"]))
