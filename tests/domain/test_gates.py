"""Verdicts: what passes, what fails, what is not enough, and what each says beside it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_cluster.domain.betting import exceeds
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.exact_bounds import clopper_pearson_lower, clopper_pearson_upper
from realign_cluster.domain.gate import Gate, Measurement, Verdict, paired_with
from realign_cluster.domain.gates import judge_all, judge_gate

PRECISION = Gate(metric="precision", direction="at least", threshold=0.90, evidence="items")
FALSE_POSITIVES = Gate(metric="false positives", direction="at most", threshold=0.05, evidence="items")
RECALL = Gate(metric="recall", direction="at least", threshold=0.90, evidence="scores")
HALLUCINATION = Gate(metric="hallucination rate", direction="at most", threshold=0.10, evidence="ratio", most_units=8)


def measured(
    gate: Gate,
    values: list[float],
    units: list[float] | None = None,
    *,
    undefined: int = 0,
    verifier: str = "lexical-1",
) -> Measurement:
    return Measurement(
        metric=gate.metric,
        items=tuple(f"answer-{at}" for at in range(len(values))),
        values=tuple(values),
        units=tuple(units or ()),
        scale=gate.scale,
        undefined=undefined,
        verifier=verifier,
        dataset="held-out",
    )


def items(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong


@pytest.mark.parametrize(
    ("right", "wrong", "outcome"),
    [(29, 0, "PASS"), (28, 0, "INSUFFICIENT"), (370, 30, "INSUFFICIENT"), (20, 10, "FAIL")],
)
def test_yes_no_items(right: int, wrong: int, outcome: str) -> None:
    verdict = judge_gate(PRECISION, measured(PRECISION, items(right, wrong)))
    assert verdict.outcome == outcome
    assert verdict.bound == clopper_pearson_lower(right, right + wrong, 0.05)
    assert verdict.opposite_bound == clopper_pearson_upper(right, right + wrong, 0.05)
    assert (verdict.value, verdict.items) == (right / (right + wrong), right + wrong)
    assert (verdict.verifier, verdict.dataset, verdict.threshold) == ("lexical-1", "held-out", 0.90)


@pytest.mark.parametrize(("wrong", "of", "outcome"), [(0, 59, "PASS"), (0, 58, "INSUFFICIENT"), (20, 100, "FAIL")])
def test_at_most(wrong: int, of: int, outcome: str) -> None:
    verdict = judge_gate(FALSE_POSITIVES, measured(FALSE_POSITIVES, items(wrong, of - wrong)))
    assert verdict.outcome == outcome
    assert verdict.bound == clopper_pearson_upper(wrong, of, 0.05)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 80).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))),
    st.sampled_from(["items", "scores"]),
)
def test_the_mirrored_gate_says_the_same(count: tuple[int, int], evidence: str) -> None:
    """ "At least 0.9 right" and "at most 0.1 wrong" are one gate."""
    right, of = count
    least = Gate(metric="m", direction="at least", threshold=0.75, evidence=evidence)  # type: ignore[arg-type]
    most = replace(least, direction="at most", threshold=0.25)
    one, other = (
        judge_gate(least, measured(least, items(right, of - right))),
        judge_gate(most, measured(most, items(of - right, right))),
    )
    # The same names carry right in the one and wrong in the other, so both are bet on in the same order.
    mirrored = judge_gate(most, measured(most, [1.0 - value for value in items(right, of - right)]))
    assert one.outcome == mirrored.outcome
    assert one.items_needed == mirrored.items_needed
    assert one.bound == pytest.approx(1.0 - (mirrored.bound or 0.0))
    if evidence == "items":
        assert one.outcome == other.outcome


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_the_order_in_which_items_are_listed_does_not_matter(quarters: list[int], shuffle: object) -> None:
    values = [quarter / 4 for quarter in quarters]
    there = measured(RECALL, values)
    at = list(range(len(values)))
    shuffle.shuffle(at)  # type: ignore[attr-defined]
    back = replace(there, items=tuple(there.items[i] for i in at), values=tuple(there.values[i] for i in at))
    assert judge_gate(RECALL, there) == judge_gate(RECALL, back)


def test_better_scores_never_lose_a_pass() -> None:
    generator = np.random.default_rng(0)
    rank = {"FAIL": 0, "INSUFFICIENT": 1, "PASS": 2}
    for right in range(0, 201, 20):
        values = items(right, 200 - right)
        better = [min(1.0, value + 0.3 * float(generator.random())) for value in values]
        verdict, risen = (judge_gate(RECALL, measured(RECALL, list(found))) for found in (values, better))
        assert rank[risen.outcome] >= rank[verdict.outcome]


def test_a_verdict_without_enough_names_what_would_be() -> None:
    verdict = judge_gate(PRECISION, measured(PRECISION, items(190, 10)), minutes_per_item=0.5)
    assert verdict.outcome == "PASS"
    assert verdict.items_needed is None
    verdict = judge_gate(PRECISION, measured(PRECISION, items(94, 6)), minutes_per_item=0.5)
    assert verdict.outcome == "INSUFFICIENT"
    assert verdict.items_needed is not None
    assert 250 < verdict.items_needed < 400
    assert verdict.minutes_needed == verdict.items_needed / 2
    assert verdict.undecidable_below is None
    assert f"{verdict.items_needed:,} items would show a PASS" in verdict.reason
    losing = judge_gate(PRECISION, measured(PRECISION, items(85, 15)))
    assert losing.outcome == "INSUFFICIENT"
    assert "would show a FAIL" in losing.reason


@pytest.mark.parametrize("evidence", ["items", "scores"])
def test_close_to_the_threshold_it_is_undecidable(evidence: str) -> None:
    gate = replace(PRECISION, evidence=evidence)
    verdict = judge_gate(gate, measured(gate, items(90, 10)), minutes_per_item=1.0)
    assert verdict.outcome == "INSUFFICIENT"
    assert verdict.items_needed is None
    assert verdict.undecidable_below == (100_000 if evidence == "items" else 10_000)
    assert verdict.minutes_needed == verdict.undecidable_below
    assert f"undecidable below {verdict.undecidable_below:,} items" in verdict.reason


def test_the_number_named_for_scores_has_about_that_power() -> None:
    generator = np.random.default_rng(4)
    values = generator.binomial(5, generator.beta(9.4, 0.6, 60)) / 5
    verdict = judge_gate(RECALL, measured(RECALL, list(values)))
    assert verdict.outcome == "INSUFFICIENT"
    assert verdict.items_needed is not None
    again = np.random.default_rng(11).choice(values, (1_000, verdict.items_needed))
    assert 0.7 <= exceeds(again, 0.90, alpha=0.05).mean() <= 0.9


@pytest.mark.parametrize("undefined", [0, 12])
def test_nothing_measured_is_insufficient_with_the_count(undefined: int) -> None:
    for gate in (PRECISION, RECALL, HALLUCINATION):
        verdict = judge_gate(gate, measured(gate, [], undefined=undefined))
        assert (verdict.outcome, verdict.value, verdict.bound) == ("INSUFFICIENT", None, None)
        assert verdict.undefined == undefined
        assert ("undefined on all 12 items" if undefined else "no items") in verdict.reason
    empty = judge_gate(HALLUCINATION, measured(HALLUCINATION, [0.0] * 40, [0.0] * 40))
    assert (empty.outcome, empty.value) == ("INSUFFICIENT", None)
    assert "no units" in empty.reason


def test_pooled_ratio() -> None:
    """Per answer 0 to 1 of 4 claims: pooled 0.05 passes, and answers without claims change next to nothing."""
    wrong, claims = [0.0, 0.0, 0.0, 0.0, 1.0] * 60, [4.0] * 300
    verdict = judge_gate(HALLUCINATION, measured(HALLUCINATION, wrong, claims))
    assert verdict.outcome == "PASS"
    assert verdict.value == pytest.approx(0.05)
    assert verdict.bound is not None
    assert 0.05 < verdict.bound < 0.10
    silent = judge_gate(HALLUCINATION, measured(HALLUCINATION, wrong + [0.0] * 20, claims + [0.0] * 20))
    assert (silent.outcome, silent.value) == ("PASS", verdict.value)
    failing = judge_gate(HALLUCINATION, measured(HALLUCINATION, [1.0] * 100, [4.0] * 100))
    assert failing.outcome == "FAIL"


def test_an_answer_longer_than_the_bound_was_made_for() -> None:
    verdict = judge_gate(HALLUCINATION, measured(HALLUCINATION, [0.0] * 100, [4.0] * 99 + [9.0]))
    assert (verdict.outcome, verdict.bound) == ("INSUFFICIENT", None)
    assert "9 units" in verdict.reason
    assert "8 at most" in verdict.reason


KL = Gate(metric="kl", direction="at most", threshold=0.1, evidence="ratio", highest=2.0, most_units=100)


def test_kl_is_bounded_and_what_is_beyond_the_bound_can_fail_but_never_pass() -> None:
    fine = judge_gate(KL, measured(KL, [2.0] * 400, [80.0] * 400))  # 0.025 nats per token
    assert fine.outcome == "PASS"
    assert fine.value == pytest.approx(0.025)
    one_beyond = judge_gate(KL, measured(KL, [2.0] * 399 + [200.0], [80.0] * 400))  # that one 2.5 nats per token
    assert one_beyond.outcome == "INSUFFICIENT"
    assert "1 values are outside 0 to 2" in one_beyond.reason
    assert judge_gate(KL, measured(KL, [400.0] * 400, [80.0] * 400)).outcome == "FAIL"


def test_perplexity_is_gated_by_nats_per_token() -> None:
    gate = Gate(
        metric="perplexity",
        direction="at most",
        threshold=20,
        evidence="ratio",
        highest=12.0,
        most_units=64,
        scale="exp",
    )
    nats = np.random.default_rng(1).normal(2.5, 0.3, 300).clip(0, 12)
    verdict = judge_gate(gate, measured(gate, list(nats * 64), [64.0] * 300))
    assert verdict.outcome == "PASS"
    assert verdict.value == pytest.approx(math.exp(nats.mean()))
    assert verdict.bound is not None
    assert math.exp(2.5) < verdict.bound < 20


def test_paired_differences_against_a_baseline() -> None:
    gate = Gate(metric="factuality", direction="at least", threshold=0.0, evidence="scores", lowest=-1.0)
    generator = np.random.default_rng(2)
    before = (generator.random(300) < 0.6).astype(float)
    after = np.where(generator.random(300) < 0.25, 1.0, before)
    improved = paired_with(measured(gate, list(after)), measured(gate, list(before)))
    verdict = judge_gate(gate, improved)
    assert verdict.outcome == "PASS"
    assert verdict.value == pytest.approx(after.mean() - before.mean())
    assert judge_gate(gate, paired_with(measured(gate, list(before)), measured(gate, list(after)))).outcome == "FAIL"
    assert (
        judge_gate(gate, paired_with(measured(gate, list(before)), measured(gate, list(before)))).outcome
        == "INSUFFICIENT"
    )


def test_only_shared_items_are_paired() -> None:
    baseline = measured(RECALL, [0.5, 0.5, 0.5])
    candidate = replace(baseline, items=("answer-1", "answer-2", "new"), values=(0.75, 0.25, 1.0))
    paired = paired_with(candidate, baseline)
    assert paired.items == ("answer-1", "answer-2")
    assert (paired.values, paired.undefined) == ((0.25, -0.25), 2)
    with pytest.raises(UsageError, match="the candidate's verifier is lexical-2"):
        paired_with(replace(candidate, verifier="lexical-2"), baseline)


def test_attempts_on_the_same_items_cost_alpha() -> None:
    several = replace(PRECISION, attempts=3)
    verdict = judge_gate(several, measured(several, items(29, 0)))
    assert verdict.outcome == "INSUFFICIENT"
    assert verdict.alpha_each == pytest.approx(0.05 / 3)
    assert verdict.bound == clopper_pearson_lower(29, 29, 0.05 / 3)
    assert verdict.items_needed == 39


def test_looks_at_any_time_cost_more_than_one() -> None:
    any_time = replace(RECALL, looks="any time")
    values = items(285, 15)
    generator = np.random.default_rng(7)
    generator.shuffle(values)
    once, ever = judge_gate(RECALL, measured(RECALL, values)), judge_gate(any_time, measured(any_time, values))
    assert once.bound is not None
    assert ever.bound is not None
    assert ever.bound < once.bound < 0.95
    # More items never take back what was shown: the sequence's bound is the best so far.
    bounds = [judge_gate(any_time, measured(any_time, values[:size])).bound or 0.0 for size in range(20, 300, 40)]
    assert bounds == sorted(bounds)


def test_all_parts_must_pass() -> None:
    passing = judge_gate(PRECISION, measured(PRECISION, items(60, 0)))
    short = judge_gate(RECALL, measured(RECALL, items(10, 0)))
    failing = judge_gate(RECALL, measured(RECALL, items(10, 20)))

    def outcome(*verdicts: Verdict) -> str:
        return judge_all("citation accuracy", verdicts).outcome

    assert outcome(passing, passing) == "PASS"
    assert outcome(passing, short) == "INSUFFICIENT"
    assert outcome(passing, short, failing) == "FAIL"
    assert outcome() == "INSUFFICIENT"
    assert judge_all("citation accuracy", [passing, failing]).reason.startswith("recall: the upper bound")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threshold": 1.0}, "out of range"),
        ({"threshold": 0.0}, "out of range"),
        ({"threshold": 90}, "out of range"),
        ({"threshold": math.nan}, "out of range"),
        ({"alpha": 0.0}, "alpha 0"),
        ({"attempts": 0}, "attempts 0"),
        ({"most_units": 8}, "pooled ratios"),
        ({"highest": 2.0}, "yes/no"),
        ({"highest": math.inf}, "both finite"),
        ({"lowest": 1.0}, "lowest < highest"),
    ],
)
def test_a_gate_that_cannot_be(change: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        replace(PRECISION, **change)  # type: ignore[arg-type]


def test_a_measurement_that_cannot_be() -> None:
    fine = measured(RECALL, [0.5, 1.0])
    with pytest.raises(UsageError, match="answer-0 is there twice"):
        replace(fine, items=("answer-0", "answer-0"))
    with pytest.raises(UsageError, match="2 items, 1 values"):
        replace(fine, values=(1.0,))
    with pytest.raises(UsageError, match="answer-1 has"):
        replace(fine, values=(1.0, math.nan))


def test_a_measurement_of_something_else() -> None:
    with pytest.raises(UsageError, match="measurement is of recall"):
        judge_gate(PRECISION, measured(RECALL, [1.0]))
    with pytest.raises(UsageError, match="another value than 0 and 1"):
        judge_gate(PRECISION, measured(PRECISION, [0.5]))
    with pytest.raises(UsageError, match="no units"):
        judge_gate(HALLUCINATION, measured(HALLUCINATION, [0.0]))
    with pytest.raises(UsageError, match="on scale plain, measured on scale exp"):
        judge_gate(RECALL, replace(measured(RECALL, [1.0]), scale="exp"))
    with pytest.raises(UsageError, match="have units"):
        judge_gate(RECALL, measured(RECALL, [0.5], [1.0]))
