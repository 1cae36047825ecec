"""Rows for a judge and verdicts from what came back: pure, and once with a real model between the two."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from realign_cluster.domain.job import ModelSpec, ScoreJob
from realign_cluster.metrics.verifiers.judge import (
    Chunking,
    JudgeVerifier,
    judge_facts,
    judge_rows,
    judge_verdicts,
)
from realign_cluster.metrics.verifiers.verdict import Pair, Verdict, Verifier, fingerprint_of
from tests.fixtures.models import TINY_MODEL

LONG = " ".join(f"Fact {at} is that stone {at} is grey." for at in range(12))
SMALL = Chunking(max_characters=120)
PAIRS = [
    Pair(claim="Stone 3 is grey.", evidence=LONG),
    Pair(claim="It rains.", evidence=("It rains.", "It is Monday.")),
    Pair(claim="Stone 9 is red.", evidence=LONG),
    Pair(claim="", evidence=LONG),
    Pair(claim="It rains.", evidence=""),
    Pair(claim="It rains.", evidence="It rains.\nIt is Monday."),
]


def judged(row: Mapping[str, Any], truncated: bool = False, **probabilities: float) -> dict[str, Any]:
    label = max(probabilities, key=probabilities.__getitem__)
    scores = {"judge": {"probabilities": probabilities, "label": label, "truncated": truncated}}
    return {**row, "row_id": "0" * 32, "scores": scores}


def test_rows_hold_each_different_pair_once_by_evidence():
    rows = judge_rows(PAIRS, SMALL)
    first = [row for row in rows if row["pair"] in (PAIRS[0].key, PAIRS[2].key)]
    assert first == rows[: len(first)]
    assert [row["claim"] for row in first] == ["Stone 3 is grey.", "Stone 9 is red."] * (len(first) // 2)
    assert rows[len(first) :] == [
        {
            "pair": PAIRS[1].key,
            "chunk": 0,
            "chunks": 1,
            "start": 0,
            "end": 23,
            "claim": "It rains.",
            "evidence": "It rains.\nIt is Monday.",
        }
    ]
    assert all(row["evidence"] == LONG[row["start"] : row["end"]] for row in first)
    assert all(len(row["evidence"]) <= 120 for row in rows)
    assert {row["chunk"] for row in first} == set(range(first[0]["chunks"]))
    assert first[0]["chunks"] > 2
    assert not {"row_id", "scores"} & {name for row in rows for name in row}


def answers(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A judge that knows stone 3 is grey and stone 9 is not red, each from the sentence alone, and that it rains."""
    scored = []
    for row in rows:
        if row["claim"] == "It rains." or (row["claim"] == "Stone 3 is grey." and "stone 3 " in row["evidence"]):
            scored.append(judged(row, supported=0.8, contradicted=0.05, not_supported=0.15))
        elif row["claim"] == "Stone 9 is red." and "stone 9 " in row["evidence"]:
            scored.append(judged(row, supported=0.1, contradicted=0.7, not_supported=0.2))
        else:
            scored.append(judged(row, supported=0.2, contradicted=0.1, not_supported=0.7))
    return scored


def test_the_best_chunk_decides_in_whatever_order_rows_come():
    scored = answers(judge_rows(PAIRS, SMALL))
    random.Random(1).shuffle(scored)
    verdicts = judge_verdicts(PAIRS, scored)
    assert [verdict.label for verdict in verdicts] == [
        "supported",
        "supported",
        "contradicted",
        None,
        "unverifiable",
        "supported",
    ]
    assert [verdict.supported for verdict in verdicts] == [0.8, 0.8, 0.2, None, 0.0, 0.8]
    assert verdicts[0].span is not None
    assert "stone 3 is grey." in verdicts[0].span.of(LONG)
    assert verdicts[1] == verdicts[5]


def test_labels_of_one_meaning_add_up():
    (row,) = judge_rows([PAIRS[1]], SMALL)
    scored = judged(row, yes=0.3, mostly=0.3, no=0.4)
    meaning = {"yes": "supported", "mostly": "supported", "no": "contradicted"}
    (verdict,) = judge_verdicts([PAIRS[1]], [scored], meaning=meaning)  # type: ignore[arg-type]
    assert verdict.supported == pytest.approx(0.6)
    assert verdict.label == "supported"
    with pytest.raises(ValueError, match="'yes' has no meaning"):
        judge_verdicts([PAIRS[1]], [scored])


def test_what_was_not_scored_is_undefined():
    scored = answers(judge_rows(PAIRS[:1], SMALL))
    (verdict,) = judge_verdicts(PAIRS[:1], scored[1:])
    assert verdict.label is None
    assert verdict.reason == f"1 of {len(scored)} chunks of the evidence were not scored"
    (verdict,) = judge_verdicts(PAIRS[:1], [])
    assert verdict.label is None
    nothing = {"probabilities": {"supported": None}, "label": None, "truncated": False, "undefined": "not finite"}
    (verdict,) = judge_verdicts(PAIRS[:1], [*scored[:-1], {**scored[-1], "scores": {"judge": nothing}}])
    assert verdict.reason == f"chunk {len(scored) - 1} of {len(scored)}: not finite"
    with pytest.raises(ValueError, match="not one of judge_rows"):
        judge_verdicts(PAIRS[:1], [{"claim": "x", "scores": {"loglik": {}}}])


def test_a_chunk_that_was_cut_is_said():
    (row,) = judge_rows([PAIRS[1]], SMALL)
    (verdict,) = judge_verdicts([PAIRS[1]], [judged(row, truncated=True, supported=0.4, not_supported=0.6)])
    assert verdict == Verdict(
        supported=0.4, label="unverifiable", span=verdict.span, reason="1 of 1 chunks did not fit into the context"
    )


JOB = ScoreJob(kinds=("judge",), model=ModelSpec(name="m", hash="ab" * 16))


@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelSpec(name="m", hash="cd" * 16)},
        {"template": "{evidence} {claim} "},
        {"labels": ("supported", "contradicted")},
        {"chat": "plain"},
        {"max_tokens": 512},
        {"kind_versions": {"judge": 2}},
    ],
)
def test_whatever_changes_verdicts_changes_the_fingerprint(change: dict[str, Any]):
    before = fingerprint_of(judge_facts(JOB, SMALL))
    assert fingerprint_of(judge_facts(JOB.model_copy(update=change), SMALL)) != before
    assert fingerprint_of(judge_facts(JOB, Chunking(max_characters=121))) != before
    assert fingerprint_of(judge_facts(JOB.model_copy(update={"batch_tokens": 7}), SMALL)) == before


def test_a_job_whose_labels_mean_nothing_is_refused():
    with pytest.raises(ValueError, match="'perhaps' has no meaning"):
        JudgeVerifier(JOB.model_copy(update={"labels": ("supported", "perhaps")}), lambda rows: ())


def test_with_a_real_model_between_the_halves():
    from tests.scoring.making import make_job, score, scorer_of

    job = make_job(TINY_MODEL, "judge", chat="plain", max_tokens=512)
    scorer = scorer_of(job, TINY_MODEL)

    def run(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "scores": scores} for row, scores in zip(rows, score(scorer, rows)[0], strict=True)]

    verifier = JudgeVerifier(job, run, chunking=SMALL)
    assert isinstance(verifier, Verifier)
    verdicts = verifier.score(PAIRS)
    assert verdicts[3].label is None
    for pair, verdict in zip(PAIRS, verdicts, strict=True):
        if verdict.span is None:
            continue
        alone = [
            score(scorer, [{"claim": pair.claim, "evidence": row["evidence"]}])[0][0]["judge"]["probabilities"]
            for row in judge_rows([pair], SMALL)
        ]
        assert verdict.supported == pytest.approx(max(found["supported"] for found in alone), abs=1e-5)
