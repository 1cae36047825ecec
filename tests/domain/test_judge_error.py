"""A verifier's errors in the bound: reference values, and how often the corrected bounds hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.exact_bounds import clopper_pearson_lower, clopper_pearson_upper
from realign_cluster.domain.gate import Gate, Measurement
from realign_cluster.domain.gates import judge_gate
from realign_cluster.domain.judge_error import (
    VerifierLabels,
    corrected_lower,
    corrected_rate,
    corrected_upper,
    prediction_powered,
    reported_to_show,
    reported_to_stay_below,
)

LABELS = VerifierLabels(verifier="v", true_positives=360, false_negatives=40, true_negatives=160, false_positives=40)
GATE = Gate(metric="supported", direction="at least", threshold=0.7, evidence="items")


def measured(positive: int, of: int, verifier: str = "v") -> Measurement:
    values = (1.0,) * positive + (0.0,) * (of - positive)
    names = tuple(str(at) for at in range(of))
    return Measurement(metric="supported", items=names, values=values, verifier=verifier, dataset="d")


def test_rogan_gladen_reference() -> None:
    """(0.55 + 0.8 - 1) / (0.9 + 0.8 - 1) = 0.5; what a perfect verifier says stands."""
    assert corrected_rate(0.55, LABELS) == pytest.approx(0.5)
    assert (corrected_rate(0.1, LABELS), corrected_rate(0.95, LABELS)) == (0.0, 1.0)
    perfect = replace(LABELS, false_negatives=0, false_positives=0)
    assert corrected_rate(0.37, perfect) == pytest.approx(0.37)


def test_bounds_take_the_verifiers_errors_at_their_worst() -> None:
    each = 0.05 / 3
    sensitivity = [bound(360, 400, each) for bound in (clopper_pearson_lower, clopper_pearson_upper)]
    false_positive = [bound(40, 200, each) for bound in (clopper_pearson_lower, clopper_pearson_upper)]
    box = [(0.6 - f) / (s - f) for s in np.linspace(*sensitivity, 21) for f in np.linspace(*false_positive, 21)]
    assert corrected_lower(0.6, LABELS, 0.05) == pytest.approx(min(box))
    assert corrected_upper(0.6, LABELS, 0.05) == pytest.approx(max(box))
    assert corrected_lower(reported_to_show(0.7, LABELS, 0.05), LABELS, 0.05) == pytest.approx(0.7)
    assert corrected_upper(reported_to_stay_below(0.7, LABELS, 0.05), LABELS, 0.05) == pytest.approx(0.7)


def test_a_gate_through_a_verifier_needs_more() -> None:
    seen = measured(340, 400)
    plain, through = judge_gate(GATE, seen), judge_gate(GATE, seen, labels=LABELS)
    assert (plain.outcome, through.outcome) == ("PASS", "PASS")
    assert through.value == pytest.approx((0.85 - 0.2) / 0.7)
    assert through.bound is not None
    assert through.bound < through.value
    close = judge_gate(GATE, measured(2_880, 4_000), labels=LABELS)
    assert judge_gate(GATE, measured(2_880, 4_000)).outcome == "PASS"
    assert close.outcome == "INSUFFICIENT"
    assert close.items_needed is None
    assert "verifier's errors" in close.reason


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"true_positives": 60, "true_negatives": 20}, "160 human labels, 200 are needed"),
        ({"true_negatives": 0, "false_positives": 0}, "all of one kind"),
        ({"true_negatives": 70, "false_positives": 130}, "0.250, below 0.3"),
    ],
)
def test_a_verifier_of_which_too_little_is_known(change: dict[str, int], named: str) -> None:
    verdict = judge_gate(GATE, measured(400, 400), labels=replace(LABELS, **change))
    assert verdict.outcome == "INSUFFICIENT"
    assert named in verdict.reason


def test_labels_of_another_verifier_are_refused() -> None:
    with pytest.raises(UsageError, match="labels of v"):
        judge_gate(GATE, measured(400, 400, verifier="other"), labels=LABELS)
    with pytest.raises(UsageError, match="below zero"):
        replace(LABELS, true_positives=-1)


def test_corrected_bounds_hold_as_often_as_they_say() -> None:
    """Sensitivity 0.85, specificity 0.75, truth 0.70, labels and items drawn again each time. Without the correction
    the reported rate, 0.67, is what is bounded.
    """
    generator = np.random.default_rng(3)
    missed = {"lower": 0, "upper": 0, "uncorrected": 0}
    runs, each = 1_500, 0.05 / 3
    for _ in range(runs):
        positives, negatives = generator.binomial(150, 0.85), generator.binomial(150, 0.75)
        labels = VerifierLabels(
            verifier="v",
            true_positives=positives,
            false_negatives=150 - positives,
            true_negatives=negatives,
            false_positives=150 - negatives,
        )
        reported = generator.binomial(400, 0.7 * 0.85 + 0.3 * 0.25)
        missed["lower"] += corrected_lower(clopper_pearson_lower(reported, 400, each), labels, 0.05) > 0.7
        missed["upper"] += corrected_upper(clopper_pearson_upper(reported, 400, each), labels, 0.05) < 0.7
        missed["uncorrected"] += clopper_pearson_upper(reported, 400, 0.05) < 0.7
    assert missed["lower"] / runs <= 0.05
    assert missed["upper"] / runs <= 0.05
    assert missed["uncorrected"] / runs > 0.10


def test_prediction_powered_bounds_hold_and_use_the_verifier() -> None:
    """A verifier that is 0.1 too generous, labels on 300 of 3,300 items: the bounds hold, and are
    closer than those from the labels alone.
    """
    generator = np.random.default_rng(4)
    missed = narrower = 0
    runs = 120
    for _ in range(runs):
        truth = (generator.random(3_300) < 0.6).astype(float)
        score = np.clip(0.85 * truth + 0.17 + generator.normal(0, 0.05, 3_300), 0, 1)
        estimate, low, high = prediction_powered(score[300:], score[:300], truth[:300], 0.05)
        assert estimate is not None
        assert low <= estimate <= high
        missed += (low > 0.6) + (high < 0.6)
        right = int(truth[:300].sum())
        narrower += high - low < clopper_pearson_upper(right, 300, 0.05) - clopper_pearson_lower(right, 300, 0.05)
    assert missed / runs <= 0.10
    assert narrower / runs > 0.9
    assert prediction_powered([], [0.5], [1.0], 0.05) == (None, 0.0, 1.0)
