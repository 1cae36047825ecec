"""Verifier quality, calibration and agreement, each against a second way to compute it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.agreement import agreement_of
from realign_cluster.metrics.calibration import brier_score, calibration_error
from realign_cluster.metrics.detector import Labelled, auroc, detector_quality
from realign_cluster.metrics.measured import ItemId

SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), max_size=12)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_in_order(positives: list[float], negatives: list[float]):
    pairs = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    expected = sum(pairs) / len(pairs) if pairs else None
    assert auroc(positives, negatives) == (None if expected is None else pytest.approx(expected))


def test_auroc_by_hand():
    assert auroc([0.8, 0.4], [0.1, 0.35]) == 1.0
    assert auroc([0.35, 0.8], [0.1, 0.4]) == 0.75
    assert auroc([0.5], [0.5, 0.5]) == 0.5
    assert auroc([], [1.0]) is None
    with pytest.raises(ValueError, match="not a number"):
        auroc([float("nan")], [0.0])


def test_detector_by_hand():
    rows = [(True, True, 0.9), (True, False, 0.2), (False, True, 0.6), (False, False, 0.1), (False, False, 0.2)]
    found = detector_quality(
        [Labelled(item=ItemId(str(n)), positive=p, alarm=a, score=s) for n, (p, a, s) in enumerate(rows)]
    )
    assert found.false_positives.value == 1 / 3
    assert [item for item, _ in found.false_positives.defined] == ["2", "3", "4"]
    assert found.false_negatives.value == 1 / 2
    assert found.auroc == pytest.approx((3 + 1.5) / 6)


def test_a_missing_class_leaves_its_rate_undefined():
    found = detector_quality([Labelled(item=ItemId("a"), positive=True, alarm=True, score=1.0)])
    assert found.false_positives.value is None
    assert found.false_negatives.value == 0
    assert found.auroc is None


class TestCalibration:
    def test_by_hand(self):
        """Two bins of two: |0.15 - 0.5| and |0.85 - 1|, each with half of the items."""
        found = calibration_error([0.1, 0.9, 0.2, 0.8], [False, True, True, True], bins=2)
        assert [one.items for one in found.bins] == [2, 2]
        assert found.error == pytest.approx((0.35 + 0.15) / 2)

    def test_equal_mass(self):
        found = calibration_error([n / 150 for n in range(150)], [True] * 150)
        assert [one.items for one in found.bins] == [10] * 15

    def test_ties_stay_together(self):
        found = calibration_error([0.5] * 90 + [0.9] * 10, [True] * 45 + [False] * 45 + [True] * 10)
        assert [(one.items, one.frequency) for one in found.bins] == [(90, 0.5), (10, 1.0)]
        assert found.error == pytest.approx(0.1 * 0.1)

    def test_no_items_and_bad_ones(self):
        assert calibration_error([], []).error is None
        assert brier_score([]).value is None
        with pytest.raises(ValueError, match="between 0 and 1"):
            calibration_error([1.1], [True])
        with pytest.raises(ValueError, match="between 0 and 1"):
            brier_score([(ItemId("a"), float("nan"), True)])
        with pytest.raises(ValueError, match="1 probabilities for 2"):
            calibration_error([0.5], [True, False])

    def test_brier_by_hand(self):
        found = brier_score([(ItemId("a"), 0.8, True), (ItemId("b"), 0.8, False), (ItemId("c"), 0.5, True)])
        assert [value for _, value in found.defined] == pytest.approx([0.04, 0.64, 0.25])

    @given(st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=1), st.randoms())
    def test_properties(self, items: list[tuple[float, bool]], random):
        found = calibration_error(*zip(*items, strict=True))
        assert 0 <= found.error <= 1
        assert len(found.bins) <= 15
        assert sum(one.items for one in found.bins) == len(items)
        shuffled = list(items)
        random.shuffle(shuffled)
        again = calibration_error(*zip(*shuffled, strict=True))
        assert again.error == pytest.approx(found.error)
        assert [one.items for one in again.bins] == [one.items for one in found.bins]


class TestAgreement:
    def test_kappa_by_hand(self):
        """20 yes-yes, 15 no-no, 5 yes-no, 10 no-yes: observed 0.7, expected 0.5, kappa 0.4."""
        pairs = [("y", "y")] * 20 + [("n", "n")] * 15 + [("y", "n")] * 5 + [("n", "y")] * 10
        found = agreement_of([(ItemId(str(n)), first, second) for n, (first, second) in enumerate(pairs)])
        assert found.same.value == pytest.approx(0.7)
        assert found.kappa == pytest.approx(0.4)

    def test_undefined(self):
        assert agreement_of([]).kappa is None
        always = agreement_of([(ItemId("a"), True, True)])
        assert (always.same.value, always.kappa) == (1, None)
