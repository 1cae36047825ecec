"""How often a gate passes what it should not: by enumeration, and in simulations that catch the wrong bounds too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom

from realign_cluster.domain.betting import exceeds
from realign_cluster.domain.exact_bounds import clopper_pearson_lower, clopper_pearson_upper, passing_successes, wilson
from realign_cluster.domain.gate import Gate, Measurement
from realign_cluster.domain.gates import judge_gate, order_of
from realign_cluster.domain.multiplicity import split_alpha
from realign_cluster.domain.retention import BenchmarkPair, judge_benchmark
from tests.domain.made_answers import (
    MOST_CLAIMS,
    Answers,
    Making,
    all_or_none,
    bootstrap_passes,
    exact_passes,
    rare_disasters,
    varying,
    wilson_passes,
)

ALPHA = 0.05
FAST, FULL, AT_ONCE = 4_000, 20_000, 2_000


@pytest.mark.parametrize("threshold", [0.80, 0.85, 0.90, 0.95, 0.99])
def test_yes_no_items_enumerated(threshold: float) -> None:
    """Every number of items to 400, at the threshold itself: all outcomes with their probabilities."""
    for items in range(1, 401):
        successes = np.arange(items + 1)
        chance = binom.pmf(successes, items, threshold)
        passes = clopper_pearson_lower(successes, np.full_like(successes, items), ALPHA) >= threshold
        fails = clopper_pearson_upper(successes, np.full_like(successes, items), ALPHA) < threshold
        assert chance[passes].sum() <= ALPHA + 1e-12
        assert chance[fails].sum() <= ALPHA + 1e-12


def test_wilson_fails_the_enumeration() -> None:
    successes = np.arange(26)
    low, _ = wilson(successes, np.full(26, 25), 0.9)
    assert binom.pmf(successes, 25, 0.9)[low >= 0.9].sum() == pytest.approx(0.072, abs=5e-4)


def test_the_gates_verdict_is_what_is_enumerated() -> None:
    gate = Gate(metric="m", direction="at least", threshold=0.9, evidence="items")
    for items in (28, 29, 60, 200):
        passing = []
        for right in range(items + 1):
            values = (1.0,) * right + (0.0,) * (items - right)
            names = tuple(map(str, range(items)))
            bounds = clopper_pearson_lower(right, items, ALPHA)
            if bounds >= 0.9:  # the others are INSUFFICIENT or FAIL, and their power takes time
                made = Measurement(metric="m", items=names, values=values, verifier="", dataset="")
                passing.append(judge_gate(gate, made).outcome)
        assert set(passing) <= {"PASS"}


def our_passes(made: Answers, threshold: float, evidence: str) -> npt.NDArray[np.bool_]:
    if evidence == "ratio":
        return exceeds(made.right / MOST_CLAIMS, threshold, made.claims / MOST_CLAIMS, alpha=ALPHA)
    return exceeds(made.scores, threshold, alpha=ALPHA)


def wrong_passes(making: Making, threshold: float, answers: int, runs: int, evidence: str) -> dict[str, float]:
    """Rates at a truth that is the threshold: of our bound and of those it is not."""
    made = making(np.random.default_rng(answers), threshold, runs, answers)
    if evidence == "ratio":
        bootstrap = bootstrap_passes(made.right, made.claims, threshold)
    else:
        bootstrap = bootstrap_passes(made.scores, np.ones_like(made.scores), threshold)
    return {
        "ours": float(our_passes(made, threshold, evidence).mean()),
        "bootstrap": float(bootstrap.mean()),
        "wilson": float(wilson_passes(made, threshold).mean()),
        "exact on claims": float(exact_passes(made, threshold).mean()),
    }


CASES = [
    (varying, "scores"),
    (varying, "ratio"),
    (all_or_none, "scores"),
    (all_or_none, "ratio"),
    (rare_disasters, "ratio"),
]


@pytest.mark.parametrize("answers", [25, 60, 200])
@pytest.mark.parametrize(("making", "evidence"), CASES)
def test_clustered_answers(making: Making, evidence: str, answers: int) -> None:
    assert wrong_passes(making, 0.90, answers, FAST, evidence)["ours"] <= ALPHA


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("threshold", [0.80, 0.90, 0.95])
@pytest.mark.parametrize("answers", [25, 60, 200, 400])
@pytest.mark.parametrize(("making", "evidence"), CASES)
def test_clustered_answers_soak(making: Making, evidence: str, answers: int, threshold: float) -> None:
    generator, passed = np.random.default_rng(answers), 0
    for _ in range(FULL // AT_ONCE):
        passed += our_passes(making(generator, threshold, AT_ONCE, answers), threshold, evidence).sum()
    assert passed / FULL <= ALPHA


@pytest.mark.parametrize(
    ("making", "evidence", "wrong"),
    [
        (all_or_none, "ratio", ("bootstrap", "wilson", "exact on claims")),
        (all_or_none, "scores", ("bootstrap",)),
        (rare_disasters, "ratio", ("bootstrap", "wilson", "exact on claims")),
        (varying, "ratio", ("bootstrap", "wilson")),
    ],
)
def test_the_same_check_catches_bounds_that_are_wrong(making: Making, evidence: str, wrong: tuple[str, ...]) -> None:
    """By more than three standard errors of the simulation (0.0034 at 4,000 runs)."""
    rates = wrong_passes(making, 0.90, 25, FAST, evidence)
    for name in wrong:
        assert rates[name] > ALPHA + 0.0103, f"{name}: {rates}"


def test_looking_again_after_every_answer() -> None:
    """400 looks at one model: the sequence passes wrongly once in twenty at most, the bound for one look (and Wilson's)
    far more often. `exceeds` with looks at any time answers for all of them at once.
    """
    made = all_or_none(np.random.default_rng(5), 0.90, FAST, 400)
    right = (made.right > 0).astype(float)
    assert exceeds(right, 0.90, alpha=ALPHA, looks="any time").mean() <= ALPHA
    at = np.arange(1, 401)
    counted = np.cumsum(right, axis=1).astype(int)
    assert (counted >= passing_successes(at, 0.90, ALPHA)).any(axis=1).mean() > 0.10
    assert (wilson(counted, at, 0.9)[0] >= 0.90).any(axis=1).mean() > 0.15


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("making", [varying, all_or_none, rare_disasters])
def test_looking_again_soak(making: Making) -> None:
    generator, passed = np.random.default_rng(6), 0
    for _ in range(FULL // AT_ONCE):
        made = making(generator, 0.90, AT_ONCE, 400)
        right, claims = made.right / MOST_CLAIMS, made.claims / MOST_CLAIMS
        passed += exceeds(right, 0.90, claims, alpha=ALPHA, looks="any time").sum()
    assert passed / FULL <= ALPHA


LOOKS = tuple(range(50, 401, 50))  # items at each: fifty are added until the gate passes


@pytest.mark.parametrize("evidence", ["items", "scores"])
def test_adding_items_until_it_passes(evidence: str) -> None:
    """One model at the threshold. Eight looks, declared, have an eighth of alpha each; with all of it each, they pass
    wrongly too often. Where one was declared the first alone can pass (`gates.of_look`).
    """
    made = all_or_none(np.random.default_rng(11), 0.90, FAST, LOOKS[-1])

    def passed(items: int, alpha: float) -> npt.NDArray[np.bool_]:
        part = Answers(made.right[:, :items], made.claims[:, :items])
        if evidence == "items":
            right = (part.right > 0).sum(axis=1)
            return np.asarray(right >= passing_successes(items, 0.90, alpha))
        return exceeds(part.scores, 0.90, alpha=alpha)

    shared = split_alpha(ALPHA, len(LOOKS))
    ours = np.any([passed(items, shared) for items in LOOKS], axis=0)
    uncorrected = np.any([passed(items, ALPHA) for items in LOOKS], axis=0)
    assert ours.mean() <= ALPHA
    assert uncorrected.mean() > ALPHA + 0.0103


def test_attempts_on_the_same_items() -> None:
    """Four candidates at the threshold, judged on the same items until one passes."""
    attempts = 4
    generator = np.random.default_rng(8)
    passed, uncorrected = np.zeros(FAST, dtype=bool), np.zeros(FAST, dtype=bool)
    for _ in range(attempts):
        scores = all_or_none(generator, 0.90, FAST, 200).scores
        passed |= exceeds(scores, 0.90, alpha=split_alpha(ALPHA, attempts))
        uncorrected |= exceeds(scores, 0.90, alpha=ALPHA)
    assert passed.mean() <= ALPHA
    assert uncorrected.mean() > 2 * ALPHA


def test_differences_that_are_none() -> None:
    """Paired, nothing gained on average: one answer in five changes, either way."""
    changes = np.random.default_rng(9).choice([-1.0, 0.0, 1.0], (FAST, 200), p=[0.1, 0.8, 0.1])
    assert exceeds((changes + 1) / 2, 0.5, alpha=ALPHA).mean() <= ALPHA
    assert exceeds((1 - changes) / 2, 0.5, alpha=ALPHA).mean() <= ALPHA


def retention_passes(runs: int, items: int, seed: int) -> float:
    """Truth 0.95: baseline 0.70 with chance 0.25, after 0.6775; lost by chance of each item, some gained."""
    generator = np.random.default_rng(seed)
    names = tuple(map(str, range(items)))
    passed = 0
    for _ in range(runs):
        before = generator.random(items) < 0.70
        chance = generator.random(items)
        after = np.where(before, chance >= (0.7 + 0.3 * 0.05 - 0.6775) / 0.7, chance < 0.05)
        pair = BenchmarkPair(
            benchmark="b", items=names, before=tuple(before * 1.0), after=tuple(after * 1.0), chance=0.25
        )
        passed += judge_benchmark(pair).outcome == "PASS"
    return passed / runs


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_retention_at_its_threshold() -> None:
    """800 runs only, since each searches its bounds; 0.05 and two standard errors (0.0077)."""
    assert retention_passes(800, 200, 1) <= ALPHA + 0.0154


@pytest.mark.parametrize("evidence", ["scores", "ratio"])
def test_what_is_simulated_is_what_judge_gate_says(evidence: str) -> None:
    gate = Gate(
        metric="m",
        direction="at least",
        threshold=0.90,
        evidence=evidence,  # type: ignore[arg-type]
        most_units=MOST_CLAIMS if evidence == "ratio" else 1.0,
    )
    names = tuple(map(str, range(80)))
    order = order_of(names)
    seen = set()
    for truth in (0.8, 0.97, 0.99):
        made = all_or_none(np.random.default_rng(12), truth, 12, 80)
        ordered = Answers(made.right[:, order], made.claims[:, order])
        for at, passed in enumerate(our_passes(ordered, 0.90, evidence)):
            values, units = (made.right[at], made.claims[at]) if evidence == "ratio" else (made.scores[at], ())
            measurement = Measurement(
                metric="m", items=names, values=tuple(values), units=tuple(units), verifier="", dataset=""
            )
            verdict = judge_gate(gate, measurement)
            assert (verdict.outcome == "PASS") == passed
            seen.add(verdict.outcome)
    assert seen == {"PASS", "INSUFFICIENT", "FAIL"}
