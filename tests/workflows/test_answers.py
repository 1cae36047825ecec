"""What is measured of answers names the verifier that had a part in it: its errors are in the bounds of those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from realign_cluster.metrics.verifiers.verdict import Pair
from realign_cluster.workflows.answers import answer_measurements, answer_pairs
from realign_cluster.workflows.verify import verifier_quality

Rows = list[dict[str, Any]]
ANSWERS = [
    {
        "id": f"q{number}",
        "prompt": "When was it built?",
        "sources": [{"id": "harbour", "text": "The harbour was built in 1821."}],
        "answerable": answerable,
        "scores": {"generate": {"samples": [{"text": "The harbour was built in 1821 [1].", "finish": "stop"}]}},
    }
    for number, answerable in enumerate((True, False))
]


class _Rows:
    def __init__(self, given: Mapping[str, Rows]) -> None:
        self._given = given

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        return iter(self._given[name])

    def has(self, name: str) -> bool:
        return name in self._given

    def names(self) -> tuple[str, ...]:
        return tuple(self._given)

    def folder(self, name: str) -> Path:
        raise KeyError(name)

    def scratch(self) -> Path:
        raise AssertionError("nothing is written")


def test_what_is_read_off_the_text_is_reported_by_no_verifier() -> None:
    pairs = answer_pairs(_Rows({"generated": ANSWERS}), {}).rows["pairs"]
    verdicts = [{"pair": each["pair"], "supported": 0.9, "label": "supported"} for each in pairs]
    given = {"generated": ANSWERS, "verdicts": verdicts, "again": ANSWERS}
    parameters = {"verifier": "judge", "dataset": "items", "supported": 0.5, "format": "inline"}
    found = answer_measurements(_Rows(given), parameters).rows["measurements"]
    named = {row["metric"]: row["verifier"] for row in found}
    judged = {"citation_precision", "citation_recall", "factuality", "hallucination_rate", "contradicted_claims"}
    assert {name for name in judged if named[name] != "judge"} == set()
    read = {"citation_format", "attribution_coverage", "coverage_by_answer", "over_abstention"}
    read |= {"answers_on_unanswerable", "attribution_consistency", "answers_cut_off"}
    assert {name for name in read if named[name] != ""} == set()


def test_a_claim_that_is_called_supported_below_the_threshold_is_an_alarm_against_labels_too() -> None:
    labels = [
        {"claim": "It is old.", "evidence": "It was built in 1821.", "label": "supported"},
        {"claim": "It is new.", "evidence": "It was built in 1821.", "label": "contradicted"},
    ]
    keys = [Pair(claim=row["claim"], evidence=row["evidence"]).key for row in labels]
    verdicts = [{"pair": key, "supported": 0.6, "label": "supported"} for key in keys]
    found = {}
    for threshold in (0.5, 0.8):
        parameters = {"supported": threshold, "verifier": "rules", "positive": "hallucinated"}
        measured = verifier_quality(_Rows({"labels": labels, "verdicts": verdicts}), parameters).rows["measurements"]
        found[threshold] = {row["metric"]: row["values"] for row in measured}
    assert found[0.5]["verifier_false_positives"] == found[0.8]["verifier_false_negatives"] == [0.0]
    assert found[0.8]["verifier_false_positives"] == found[0.5]["verifier_false_negatives"] == [1.0]
