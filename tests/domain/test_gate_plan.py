"""What a gate can decide, said before anything is measured, held against what it then decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from realign_cluster.domain.betting import exceeds
from realign_cluster.domain.exact_bounds import passing_power
from realign_cluster.domain.gate import Gate, Measurement
from realign_cluster.domain.gate_plan import plan_gate
from realign_cluster.domain.gates import judge_gate
from realign_cluster.domain.judge_error import VerifierLabels

AT_LEAST = Gate(metric="precision", direction="at least", threshold=0.90, evidence="items")


@pytest.mark.parametrize(
    ("direction", "threshold", "smallest"),
    [
        ("at least", 0.80, 14),
        ("at least", 0.85, 19),
        ("at least", 0.90, 29),
        ("at least", 0.95, 59),
        ("at most", 0.10, 29),
        ("at most", 0.05, 59),
    ],
)
def test_smallest_number_that_can_pass(direction: str, threshold: float, smallest: int) -> None:
    gate = replace(AT_LEAST, direction=direction, threshold=threshold)
    plan = plan_gate(gate, smallest)
    assert (plan.items_if_perfect, plan.can_pass, plan.most_errors) == (smallest, True, 0)
    short = plan_gate(gate, smallest - 1)
    assert (short.can_pass, short.most_errors, short.passes_from) == (False, None, None)
    assert f"{smallest - 1} items cannot pass, {smallest} can if every one is at its best" in short.text
    perfect = 1.0 if direction == "at least" else 0.0
    for number, outcome in ((smallest, "PASS"), (smallest - 1, "INSUFFICIENT")):
        assert judge_gate(gate, perfect_measurement(gate, number, perfect)).outcome == outcome


def perfect_measurement(gate: Gate, number: int, value: float) -> Measurement:
    names = tuple(str(at) for at in range(number))
    units = (gate.most_units,) * number if gate.evidence == "ratio" else ()
    values = (value * gate.most_units,) * number
    return Measurement(metric=gate.metric, items=names, values=values, units=units, verifier="v", dataset="d")


@pytest.mark.parametrize("evidence", ["scores", "ratio"])
@pytest.mark.parametrize("threshold", [0.80, 0.90, 0.95])
def test_smallest_number_that_can_pass_by_betting(evidence: str, threshold: float) -> None:
    gate = replace(AT_LEAST, evidence=evidence, threshold=threshold)
    smallest = plan_gate(gate, 100).items_if_perfect
    assert smallest is not None
    exact = plan_gate(replace(gate, evidence="items"), 100).items_if_perfect
    assert exact is not None
    assert exact <= smallest <= 1.15 * exact
    assert judge_gate(gate, perfect_measurement(gate, smallest, 1.0)).outcome == "PASS"
    assert judge_gate(gate, perfect_measurement(gate, smallest - 1, 1.0)).outcome == "INSUFFICIENT"


def test_the_plan_for_400_yes_no_items() -> None:
    plan = plan_gate(AT_LEAST, 400, minutes_per_item=0.1)
    assert plan.passes_from is not None
    assert plan.fails_from is not None
    assert passing_power(400, plan.passes_from, 0.90, 0.05) == pytest.approx(0.8)
    assert passing_power(400, 1.0 - plan.fails_from, 0.10, 0.05) == pytest.approx(0.8)
    assert plan.minutes == 40
    assert plan.most_errors == 29
    assert plan.text == (
        "precision at least 0.9: 400 items pass with at most 29 wrong; PASS has 80 % power when the truth is at least "
        f"{plan.passes_from:.4g}; FAIL when it is at most {plan.fails_from:.4g}"
    )


@pytest.mark.parametrize("direction", ["at least", "at most"])
def test_values_planned_for_scores_have_that_power(direction: str) -> None:
    threshold = 0.9 if direction == "at least" else 0.1
    gate = replace(AT_LEAST, evidence="scores", direction=direction, threshold=threshold)
    plan = plan_gate(gate, 200, deviation=0.1)
    assert plan.passes_from is not None
    generator = np.random.default_rng(1)
    rate = plan.passes_from if direction == "at least" else 1.0 - plan.passes_from
    assert 0.91 < rate < 0.94
    share = 0.1**2 / (rate * (1 - rate))
    chance = generator.random((1_000, 200))
    values = np.where(chance < share * rate, 1.0, np.where(chance < share, 0.0, rate))
    assert 0.7 <= exceeds(values, 0.9, alpha=0.05).mean() <= 0.9
    worst = plan_gate(gate, 200).passes_from
    assert worst is not None
    assert (worst > plan.passes_from) == (direction == "at least")


def test_a_verifier_that_errs_moves_what_can_be_decided() -> None:
    labels = VerifierLabels(
        verifier="v", true_positives=480, false_negatives=20, true_negatives=460, false_positives=40
    )
    known, erring = plan_gate(AT_LEAST, 1_000), plan_gate(AT_LEAST, 1_000, labels=labels)
    assert known.passes_from is not None
    assert erring.passes_from is not None
    assert erring.passes_from > known.passes_from
    hopeless = replace(labels, true_positives=110, false_negatives=90, true_negatives=5, false_positives=0)
    assert plan_gate(AT_LEAST, 1_000, labels=hopeless).passes_from is None
    few = replace(labels, true_positives=96, false_negatives=4, true_negatives=92, false_positives=8)
    assert "PASS has 80 % power at no truth" in plan_gate(AT_LEAST, 100, labels=few).text
