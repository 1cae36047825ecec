"""Agreement with human labels against the definitions, counted out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.verifiers.report import (
    area_under_roc,
    brier_score,
    exact_rate,
    expected_calibration_error,
    report_of,
)

ITEMS = st.lists(st.tuples(st.integers(0, 8).map(lambda eighths: eighths / 8), st.booleans()), max_size=40)


@given(ITEMS)
def test_auroc_is_the_share_of_pairs_in_the_right_order(items: list[tuple[float, bool]]):
    better = [score for score, truth in items if truth]
    worse = [score for score, truth in items if not truth]
    found = area_under_roc([score for score, _ in items], [truth for _, truth in items])
    if not better or not worse:
        assert found is None
    else:
        wins = sum((a > b) + (a == b) / 2 for a in better for b in worse)
        assert found == pytest.approx(wins / (len(better) * len(worse)))


def test_calibration_error_by_hand():
    # 30 items, two a bin; scores rise, so that bin i holds items 2i and 2i + 1
    scores = [(at + 0.5) / 30 for at in range(30)]
    truths = [at % 3 == 0 for at in range(30)]
    by_hand = sum(abs(sum(scores[i : i + 2]) - sum(truths[i : i + 2])) for i in range(0, 30, 2)) / 30
    assert expected_calibration_error(scores, truths) == pytest.approx(by_hand)
    assert expected_calibration_error([0.25] * 40, [True] * 10 + [False] * 30) == pytest.approx(0.0)
    assert expected_calibration_error([0.25] * 39 + [0.9], [True] * 10 + [False] * 29 + [True]) == pytest.approx(
        abs(39 * 0.25 - 10) / 40 + 0.1 / 40
    )
    assert expected_calibration_error([], []) is None


def test_brier():
    assert brier_score([1.0, 0.0, 0.5], [True, True, False]) == pytest.approx((0 + 1 + 0.25) / 3)
    assert brier_score([], []) is None


def at_most(count: int, n: int, rate: float) -> float:
    """The probability of at most `count` of `n`."""
    return sum(math.comb(n, at) * rate**at * (1 - rate) ** (n - at) for at in range(count + 1))


@pytest.mark.parametrize(("count", "n"), [(19, 38), (1, 200), (58, 59)])
def test_bounds_leave_two_and_a_half_percent_on_either_side(count: int, n: int):
    rate = exact_rate(count, n)
    assert rate.value == count / n
    assert rate.low is not None
    assert rate.high is not None
    assert 1 - at_most(count - 1, n, rate.low) == pytest.approx(0.025)
    assert at_most(count, n, rate.high) == pytest.approx(0.025)


def test_bounds_of_none_all_and_nothing():
    none, all_of_them, nothing = exact_rate(0, 59), exact_rate(59, 59), exact_rate(0, 0)
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 59)))
    assert (all_of_them.low, all_of_them.high) == (pytest.approx(0.025 ** (1 / 59)), 1.0)
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)


def test_a_report_counts_everything_once():
    report = report_of(
        verifier="f" * 32,
        dataset="made",
        threshold=0.6,
        scores=[0.9, 0.6, 0.59, 0.2, 0.7, None],
        said=["supported", "supported", "unverifiable", "contradicted", "supported", None],
        human=["yes", "yes", "yes", "no", "partly", "no"],
        supported=[True, True, True, False, False, False],
    )
    assert report.confusion == {
        "no": {"contradicted": 1, "undefined": 1},
        "partly": {"supported": 1},
        "yes": {"supported": 2, "unverifiable": 1},
    }
    assert (report.n, report.unanswered) == (6, 1)
    assert (report.sensitivity.count, report.sensitivity.n) == (2, 3)
    assert (report.specificity.count, report.specificity.n) == (1, 2)
    assert report.false_positive_rate == 0.5
    assert report.informed == pytest.approx(2 / 3 + 1 / 2 - 1)
    assert report.auroc == pytest.approx(4 / 6)


def test_a_report_without_one_kind_of_label_says_so():
    report = report_of(
        verifier="f", dataset="d", threshold=0.5, scores=[0.9], said=["supported"], human=["yes"], supported=[True]
    )
    assert report.auroc is None
    assert report.specificity.value is None
    assert report.false_positive_rate is None
    assert report.informed is None
    with pytest.raises(ValueError, match="NaN"):
        report_of(
            verifier="f", dataset="d", threshold=0.5, scores=[math.nan], said=["x"], human=["y"], supported=[True]
        )
    with pytest.raises(ValueError, match="same items"):
        report_of(verifier="f", dataset="d", threshold=0.5, scores=[0.1], said=[], human=["y"], supported=[True])
