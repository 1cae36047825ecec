"""What the rules say of single pairs, and how well they tell WiCE's claims apart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.verifiers.containment import measure
from realign_cluster.metrics.verifiers.lexical import LexicalRules, LexicalVerifier
from realign_cluster.metrics.verifiers.verdict import Pair, Verdict, Verifier
from realign_cluster.metrics.verifiers.words import words_of

HARBOUR = "The town of Velmar lies in the north. Its harbour was built in 1204 by monks. Today 3,000 people live there."

LIES = "The town of Velmar lies in the north."
BUILT = "Its harbour was built in 1204 by monks."


def judge(claim: str, evidence: str | tuple[str, ...] = HARBOUR) -> Verdict:
    return LexicalVerifier().score([Pair(claim=claim, evidence=evidence)])[0]


def test_it_is_a_verifier():
    assert isinstance(LexicalVerifier(), Verifier)
    assert LexicalVerifier().calibration_report() is None


@pytest.mark.parametrize(
    ("claim", "label", "reason", "span"),
    [
        ("The harbour was built in 1204 by monks.", "supported", "", BUILT),
        ("Monks built the harbour of Velmar.", "supported", "", BUILT),
        ("3000 people live there today.", "supported", "", "Today 3,000 people live there."),
        ("The harbour was built in 1304 by monks.", "contradicted", "number mismatch", BUILT),
        ("The harbour was built in 1204 by knights.", "contradicted", "value mismatch", BUILT),
        ("The harbour was not built in 1204 by monks.", "contradicted", "negation mismatch", BUILT),
        ("The town of Torun lies in the north.", "contradicted", "value mismatch", LIES),
        ("A railway opened in 1870.", "unverifiable", "", None),
        ("The harbour exports timber to Iceland and Norway.", "unverifiable", "", BUILT),
    ],
)
def test_labels_and_spans(claim: str, label: str, reason: str, span: str | None):
    verdict = judge(claim)
    assert (verdict.label, verdict.reason) == (label, reason)
    assert verdict.supported is not None
    assert (verdict.supported >= 0.5) == (label == "supported")
    assert (verdict.span and verdict.span.of(HARBOUR)) == span


def test_a_negation_in_both_is_none_against():
    assert judge("The harbour was not built by monks.", "The harbour was never built by monks.").label == "supported"


def test_evidence_of_several_passages_is_one_text():
    parts = ("Nothing of note.", "The bridge is red. It is long.")
    verdict = judge("The bridge is red.", parts)
    assert verdict.label == "supported"
    assert verdict.span is not None
    assert verdict.span.of("\n".join(parts)) == "The bridge is red."
    assert verdict == judge("The bridge is red.", "\n".join(parts))


@pytest.mark.parametrize(
    ("claim", "evidence", "label", "reason"),
    [
        ("", HARBOUR, None, "the claim is empty"),
        (" \n", HARBOUR, None, "the claim is empty"),
        ("?!", HARBOUR, None, "no words"),
        ("It was so.", HARBOUR, None, "no words"),
        ("The harbour is old.", "", "unverifiable", "no evidence"),
        ("The harbour is old.", (), "unverifiable", "no evidence"),
        ("The harbour is old.", "...", "unverifiable", ""),
    ],
)
def test_pairs_with_nothing_to_compare(claim: str, evidence: str | tuple[str, ...], label: str | None, reason: str):
    verdict = judge(claim, evidence)
    assert verdict.label == label
    assert reason in verdict.reason
    assert verdict.span is None


def test_measurements():
    sentences = [
        words_of(text) for text in ("Anna went to Rome in 1999.", "She painted.", "Her paintings hang in Oslo.")
    ]
    found = measure(words_of("Anna painted in Rome, Paris and Oslo from 1998"), sentences, kin=0.5)
    assert found is not None
    # anna, paint, rome, paris, oslo, 1998
    assert found.sentence == pytest.approx(2 / 6)
    assert found.gathered == found.window == pytest.approx(4 / 6)
    assert (found.numbers_missing, found.names_missing, found.best_sentence) == (1, 1, 0)
    alike = measure(words_of("the inventor"), [words_of("He invests in inventions.")], kin=0.5)
    assert alike is not None
    assert alike.sentence == 0.5


CLAIMS = st.text(alphabet="ab AB 12 not.", max_size=40)


@given(claim=CLAIMS, evidence=CLAIMS, more=CLAIMS)
def test_every_pair_gets_a_verdict_that_does_not_depend_on_the_others(claim: str, evidence: str, more: str):
    pair = Pair(claim=claim, evidence=(evidence, more))
    verifier = LexicalVerifier()
    alone = verifier.score([pair])
    assert verifier.score([Pair(claim=more, evidence=claim), pair])[1:] == alone == LexicalVerifier().score([pair])
    if (span := alone[0].span) is not None:
        assert 0 <= span.start < span.end <= len(pair.text)


def test_other_rules_are_another_fingerprint():
    assert LexicalVerifier().fingerprint() == LexicalVerifier(LexicalRules()).fingerprint()
    assert LexicalVerifier().fingerprint() != LexicalVerifier(LexicalRules(kin=0.7)).fingerprint()


def wice() -> list[dict[str, Any]]:
    folder = Path(os.environ.get("REALIGN_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
    path = folder / "wice_claim_dev.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {folder} (REALIGN_DATA names another folder)")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wins(better: list[float], worse: list[float]) -> float:
    """The area under the ROC curve, pair by pair."""
    return sum((a > b) + (a == b) / 2 for a in better for b in worse) / (len(better) * len(worse))


@pytest.mark.data
def test_it_tells_claims_of_wice_apart_that_its_weights_have_not_seen():
    rows = wice()[::2]  # weights are fitted on the others
    verdicts = LexicalVerifier().score([Pair(claim=row["claim"], evidence=tuple(row["evidence"])) for row in rows])
    scores: dict[str, list[float]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        assert verdict.supported is not None
        scores.setdefault(row["label"], []).append(verdict.supported)
    others = scores["not_supported"] + scores["partially_supported"]
    assert wins(scores["supported"], scores["not_supported"]) > 0.85
    assert wins(scores["supported"], others) > 0.78
