"""Curves against laws they were drawn from, thresholds against their promise, and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.verifiers.calibration import Calibrated, calibrate, calibrated, load_calibration
from realign_cluster.metrics.verifiers.curves import Curve, choose_threshold, fit_isotonic, fit_platt
from realign_cluster.metrics.verifiers.lexical import LexicalRules, LexicalVerifier
from realign_cluster.metrics.verifiers.verdict import Pair, Span, Verdict, Verifier
from tests.metrics.verifiers.made import Chosen, by_number, drawn


def test_platt_finds_the_law_again():
    scores, truths = drawn(20_000, 1, slope=0.5, intercept=-1.0)
    ((slope, intercept),) = fit_platt(scores, truths).points
    assert slope == pytest.approx(0.5, abs=0.03)
    assert intercept == pytest.approx(-1.0, abs=0.05)


def test_platt_on_few_labels_is_not_certain():
    """Platt's targets: of two and two, separated, 3/4 and 1/4 are the most it may say on average."""
    curve = fit_platt([0.1, 0.1, 0.9, 0.9], [False, False, True, True])
    assert [curve.probability(score) for score in (0.1, 0.9)] == pytest.approx([1 / 4, 3 / 4], abs=1e-4)


def test_a_verifier_worse_than_chance_is_not_turned_round():
    scores, truths = drawn(2_000, 2, slope=-1.0, intercept=0.0)
    curve = fit_platt(scores, truths)
    assert curve.points[0][0] == 0.0
    assert curve.probability(0.01) == curve.probability(0.99) == pytest.approx(np.mean(truths), abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 12).map(lambda twelfths: twelfths / 12), st.booleans()), min_size=1))
def test_isotonic_is_the_least_squares_line_that_never_falls(items: list[tuple[float, bool]]):
    scores, truths = [score for score, _ in items], [truth for _, truth in items]
    curve = fit_isotonic(scores, truths)
    values = sorted(set(scores))
    counts = [scores.count(value) for value in values]
    means = [np.mean([truth for score, truth in items if score == value]) for value in values]
    expected = isotonic_regression(means, weights=counts).x
    assert [curve.probability(value) for value in values] == pytest.approx(list(expected))


@settings(max_examples=20)
@given(st.integers(0, 50), st.sampled_from(["platt", "isotonic"]))
def test_curves_keep_the_order(seed: int, method: str):
    scores, truths = drawn(40, seed, slope=1.0, intercept=0.0)
    curve = (fit_platt if method == "platt" else fit_isotonic)(scores, truths)
    probabilities = [curve.probability(score) for score in (0.0, *sorted(scores), 1.0)]
    assert probabilities == sorted(probabilities)
    assert all(0 <= probability <= 1 for probability in probabilities)


@pytest.mark.parametrize(
    ("method", "points"),
    [
        ("platt", ((-1.0, 0.0),)),
        ("platt", ()),
        ("isotonic", ()),
        ("isotonic", ((0.2, 0.5), (0.4, 0.4))),
        ("isotonic", ((0.4, 0.5), (0.2, 0.6))),
    ],
)
def test_curves_that_do_not_keep_the_order_are_no_curves(method: str, points: tuple[tuple[float, float], ...]):
    with pytest.raises(ValueError, match="curve"):
        Curve(method=method, points=points)  # type: ignore[arg-type]


def test_thresholds_keep_their_promise():
    """Of 400 samples, how often the chosen threshold's true false positive rate is above the limit: at most 5 %.
    Scores of unsupported items are uniform, so the rate at threshold t is 1 - t.
    """
    broken = 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        scores = np.concatenate([generator.random(120), generator.beta(4, 1, 120)]).tolist()
        threshold = choose_threshold(scores, [False] * 120 + [True] * 120, max_false_positive_rate=0.1)
        broken += 1 - threshold > 0.1
    assert broken <= 31  # the 99 % quantile of a binomial of 400 at 5 %


def test_thresholds_need_labels():
    scores, truths = [0.9] * 40 + [0.1] * 58, [True] * 40 + [False] * 58
    with pytest.raises(UsageError, match=r"58 labels.*\n.*at least 59"):
        choose_threshold(scores, truths, max_false_positive_rate=0.05)
    assert choose_threshold([*scores, 0.1], [*truths, False], max_false_positive_rate=0.05) == 0.9
    with pytest.raises(UsageError, match="no threshold"):
        choose_threshold([1.0] * 60, [False] * 60, max_false_positive_rate=0.05)
    for limit in (0.0, 1.0, -0.1):
        with pytest.raises(UsageError, match="between 0 and 1"):
            choose_threshold(scores, truths, max_false_positive_rate=limit)


def labelled(count: int, seed: int) -> tuple[list[Pair], list[str], list[bool]]:
    scores, truths = drawn(count, seed, slope=0.5, intercept=-1.0)
    pairs = [Pair(claim=str(score), evidence=f"text {at}") for at, score in enumerate(scores)]
    return pairs, ["good" if truth else "bad" for truth in truths], truths


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_helps_on_the_half_that_it_did_not_see(method: str):
    pairs, human, truths = labelled(4_000, 3)
    raw = Chosen(by_number)
    verifier = calibrate(raw, pairs, human, truths, dataset="drawn", method=method)  # type: ignore[arg-type]
    assert isinstance(verifier, Verifier)
    report = verifier.calibration_report()
    assert report is not None
    assert (report.n, verifier.calibration.fitted_on) == (2_000, 2_000)
    assert report.ece is not None
    assert report.ece < 0.05
    raw_gap = np.abs(expit(0.5 * logit([float(pair.claim) for pair in pairs]) - 1) - [float(p.claim) for p in pairs])
    assert raw_gap.mean() > 0.1
    assert sum(sum(counts.values()) for counts in report.confusion.values()) == 2_000


def test_pairs_on_one_evidence_stay_on_one_side():
    pairs, human, truths = labelled(200, 4)
    pairs = [Pair(claim=pair.claim, evidence=f"text {at // 50}") for at, pair in enumerate(pairs)]
    verifier = calibrate(Chosen(by_number), pairs, human, truths, dataset="drawn")
    fitted = [at for at in range(200) if at // 50 % 2 == 0]
    assert verifier.calibration.curve == fit_platt(
        [float(pairs[at].claim) for at in fitted], [truths[at] for at in fitted]
    )


def test_a_false_positive_limit_moves_the_threshold():
    pairs, human, truths = labelled(4_000, 5)
    loose = calibrate(Chosen(by_number), pairs, human, truths, dataset="drawn")
    strict = calibrate(Chosen(by_number), pairs, human, truths, dataset="drawn", max_false_positive_rate=0.05)
    assert strict.calibration.threshold > loose.calibration.threshold == 0.5
    assert strict.fingerprint() != loose.fingerprint()
    report = strict.calibration_report()
    assert report is not None
    assert report.specificity.high is not None
    assert report.specificity.high > 0.95


def test_labels_of_one_kind_are_refused():
    pairs, human, _ = labelled(20, 6)
    with pytest.raises(UsageError, match="of 10 labels to calibrate on 10 are supported"):
        calibrate(Chosen(by_number), pairs, human, [True] * 20, dataset="drawn")


def test_a_file_belongs_to_its_verifier(tmp_path: Path):
    pairs, human, truths = labelled(100, 7)
    verifier = calibrate(Chosen(by_number), pairs, human, truths, dataset="drawn", method="isotonic")
    path = tmp_path / "calibration.json"
    verifier.calibration.save(path)
    again = Calibrated(Chosen(by_number), load_calibration(path))
    assert again.score(pairs) == verifier.score(pairs)
    assert again.fingerprint() == verifier.fingerprint() != Chosen(by_number).fingerprint()
    with pytest.raises(UsageError, match="the calibration is of verifier"):
        Calibrated(LexicalVerifier(LexicalRules(kin=0.1)), load_calibration(path))
    path.write_text(path.read_text().replace('"threshold"', '"treshold"', 1))
    with pytest.raises(UsageError, match="no calibration"):
        load_calibration(path)
    with pytest.raises(UsageError, match="No such file"):
        load_calibration(tmp_path / "none.json")


def test_labels_follow_the_threshold_and_what_spoke_against():
    curve = Curve(method="isotonic", points=((0.0, 0.0), (1.0, 1.0)))
    span = Span(start=1, end=2)
    against = Verdict(supported=0.4, label="contradicted", span=span, reason="number mismatch")
    assert calibrated(against, curve, 0.5) == against
    assert calibrated(against, curve, 0.3).label == "supported"
    assert calibrated(Verdict(supported=0.9, label="supported"), curve, 0.95).label == "unverifiable"
    nothing = Verdict(supported=None, label=None, reason="the claim is empty")
    assert calibrated(nothing, curve, 0.5) is nothing
