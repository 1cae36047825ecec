"""The rules of a diagnosis: what is a finding, what is not, and which comes first."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.gate import Measurement
from realign_cluster.workflows.diagnosis import (
    DATA_RULES,
    SYMPTOMS,
    DataRule,
    JudgedGate,
    Measured,
    RunRecord,
    diagnose,
)
from realign_cluster.workflows.findings import REMEDIES, Finding, Issue


def rate(check: str, wrong: int, items: int, *, dataset: str = "practice", stage: int = 2) -> Measured:
    return measured(f"{check} in {dataset}", (1.0,) * wrong + (0.0,) * (items - wrong), dataset=dataset, stage=stage)


def measured(metric: str, values: tuple[float, ...], *, dataset: str = "items", stage: int = 3) -> Measured:
    named = tuple(map(str, range(len(values))))
    found = Measurement(metric=metric, items=named, values=values, verifier="", dataset=dataset)
    return Measured(stage=stage, attempt=0, measurement=found)


def gate(name: str, outcome: str = "FAIL", *, stage: int = 3, **more: Any) -> JudgedGate:
    fields: dict[str, Any] = {
        "title": name,
        "threshold": 0.9,
        "value": 0.5,
        "opposite": 0.6,
        "items": 100,
        "dataset": "items",
    }
    return JudgedGate(stage=stage, attempt=0, gate=name, outcome=outcome, **(fields | more))


def issues(found: list[Finding]) -> list[str]:
    return [each.issue for each in found]


def test_a_run_of_which_nothing_is_known_has_no_finding() -> None:
    assert diagnose(RunRecord()) == []


def test_a_healthy_run_has_no_finding() -> None:
    clean = tuple(rate(rule.check, 0, 200) for rule in DATA_RULES)
    passed = tuple(gate(name, "PASS") for name in (*SYMPTOMS, "perplexity", "retention_basics"))
    assert diagnose(RunRecord(measured=(*clean, measured("answers_cut_off", (0.0,) * 100)), gates=passed)) == []


def test_what_cannot_be_decided_is_no_finding() -> None:
    assert diagnose(RunRecord(gates=tuple(gate(name, "INSUFFICIENT") for name in (*SYMPTOMS, "perplexity")))) == []


@pytest.mark.parametrize("rule", DATA_RULES, ids=lambda rule: rule.check)
def test_each_fault_of_the_data_is_named_with_its_numbers(rule: DataRule) -> None:
    row = {"check": rule.check, "prompt": "p"}
    (found,) = diagnose(RunRecord(measured=(rate(rule.check, 100, 200),), examples=(row, {"check": "other"})))
    assert (found.issue, found.examples) == (rule.issue, (row,))
    (evidence,) = found.evidence
    assert (evidence.value, evidence.items, evidence.where, evidence.dataset) == (0.5, 200, "stage 2", "practice")
    assert evidence.limit == rule.tolerated < (evidence.bound or 0.0) < 0.5


@given(wrong=st.integers(0, 300), more=st.integers(0, 300), at=st.integers(0, len(DATA_RULES) - 1))
def test_a_rate_is_a_fault_only_where_its_bound_says_so(wrong: int, more: int, at: int) -> None:
    rule = DATA_RULES[at]
    found = diagnose(RunRecord(measured=(rate(rule.check, wrong, wrong + more),)))
    if wrong <= rule.tolerated * (wrong + more):
        assert not found
    for each in found:
        assert (each.evidence[0].bound or 0.0) > rule.tolerated


def test_a_fault_in_two_sets_is_one_finding() -> None:
    both = tuple(rate("unknown_ids", 30, 100, dataset=name) for name in ("practice", "citation"))
    (found,) = diagnose(RunRecord(measured=both))
    assert [each.dataset for each in found.evidence] == ["practice", "citation"]


def test_causes_come_before_the_symptoms_they_explain() -> None:
    failed = (gate("citation_recall"), gate("attribution_coverage", stage=4), gate("kl", stage=5))
    found = diagnose(RunRecord(measured=(rate("unknown_ids", 30, 100),), gates=failed))
    assert issues(found) == ["wrong ids", "low citation accuracy", "low attribution coverage", "model drift"]
    assert [each.explained_by for each in found] == [(), ("wrong ids",), ("wrong ids",), ()]


def test_symptoms_are_in_the_order_in_which_they_were_seen() -> None:
    failed = (gate("over_abstention", stage=7), gate("citation_precision", stage=4), gate("citation_recall", stage=7))
    found = diagnose(RunRecord(gates=failed))
    assert issues(found) == ["low citation accuracy", "over-hedging"]
    assert [each.where for each in found[0].evidence] == ["stage 4", "stage 7"]


@pytest.mark.parametrize("name", [*SYMPTOMS, "retention_basics"])
def test_every_failed_gate_of_the_common_issues_is_one(name: str) -> None:
    (found,) = diagnose(RunRecord(gates=(gate(name),)))
    assert (found.kind, found.remedies) == ("symptom", REMEDIES[found.issue])


def test_drift_explains_what_failed_with_it_and_not_what_had_failed_before() -> None:
    failed = (gate("citation_recall", stage=3), gate("retention_basics", stage=5), gate("kl", stage=5))
    settings = {"training": {"preference": {"optimizer": {"learning_rate": 0.01}, "loss": {"beta": 0.1}}}}
    found = {each.issue: each for each in diagnose(RunRecord(gates=failed, settings=settings))}
    assert list(found) == ["low citation accuracy", "model drift", "capability loss"]
    assert found["capability loss"].explained_by == ("model drift",)
    assert [(each.what, each.text) for each in found["model drift"].evidence[1:]] == [
        ("training.preference.optimizer.learning_rate", "0.01"),
        ("training.preference.loss.beta", "0.1"),
    ]


def test_capability_loss_says_what_general_data_there_was() -> None:
    for mix, said in (({"task": 70, "general": 0}, "none of 70 rows"), ({"task": 70, "general": 30}, "30 of 100 rows")):
        (found,) = diagnose(RunRecord(gates=(gate("retention_basics"),), mixes={3: mix}))
        assert found.evidence[1].text == said


def test_a_base_that_cannot_predict_comes_first_and_explains_the_rest() -> None:
    failed = (gate("perplexity", stage=1), gate("citation_recall"))
    found = diagnose(RunRecord(gates=failed, measured=(measured("answers_cut_off", (1.0,) * 50, stage=1),)))
    assert issues(found)[0] == "damaged base"
    assert found[1].explained_by == ("damaged base",)


@pytest.mark.parametrize(
    ("outcome", "value", "named"), [("INSUFFICIENT", 22.0, 1), ("INSUFFICIENT", 19.0, 0), ("PASS", 5.0, 0)]
)
def test_a_base_is_named_before_texts_enough_were_measured_for_a_fail(outcome: str, value: float, named: int) -> None:
    judged = gate("perplexity", outcome, stage=1, threshold=20.0, value=value, opposite=15.0)
    assert issues(diagnose(RunRecord(gates=(judged,)))) == ["damaged base"] * named


def cut(characters: float) -> RunRecord:
    return RunRecord(
        measured=(
            measured("answers_cut_off", (1.0,) * 60 + (0.0,) * 20),
            measured("characters_of_cut_answers", (characters,) * 60),
            measured("completion_characters in practice", (40.0,) * 100, dataset="practice", stage=2),
        ),
        settings={"generation": {"max_new_tokens": 4}},
    )


def test_answers_without_room_and_answers_without_end_are_told_apart() -> None:
    (short,) = diagnose(cut(15.0))
    assert (short.issue, short.kind) == ("truncated answers", "configuration")
    assert "4" in [each.text for each in short.evidence]
    (long,) = diagnose(cut(90.0))
    assert long.issue == "unending answers"


def test_answers_that_a_later_training_left_without_end_follow_from_its_drift() -> None:
    ended, endless = (measured("answers_cut_off", (share,) * 60, stage=stage) for share, stage in ((0.0, 3), (1.0, 5)))
    found = diagnose(RunRecord(measured=(ended, endless), gates=(gate("kl", stage=5),)))
    assert issues(found) == ["model drift", "unending answers"]
    assert found[1].explained_by == ("model drift",)


def test_the_newest_answers_count() -> None:
    old, new = measured("answers_cut_off", (1.0,) * 50, stage=1), measured("answers_cut_off", (0.0,) * 50, stage=3)
    assert diagnose(RunRecord(measured=(old, new))) == []


def test_what_the_verifier_does_not_see_is_no_fault_of_the_data() -> None:
    unsupported = rate("unsupported", 60, 200)
    assert issues(diagnose(RunRecord(measured=(unsupported,)))) == ["invented examples"]
    misses = measured("support_missed", (1.0,) * 40 + (0.0,) * 60, dataset="labels", stage=4)
    assert diagnose(RunRecord(measured=(unsupported, misses))) == []


def test_every_issue_has_remedies() -> None:
    assert set(REMEDIES) == set(get_args(Issue))


def test_a_stage_that_could_not_be_done_is_said_with_its_reason() -> None:
    (found,) = diagnose(RunRecord(not_done={5: "the training failed: loss is NaN"}))
    assert (found.issue, found.title) == ("stage not done", "the training failed: loss is NaN")
