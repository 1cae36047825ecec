"""Exact bounds against reference values, an independent implementation, and themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from realign_cluster.domain.exact_bounds import (
    clopper_pearson,
    clopper_pearson_lower,
    clopper_pearson_upper,
    items_for_power,
    items_without_error,
    passing_power,
    passing_successes,
    rate_for_power,
    wilson,
)

counts = st.integers(1, 500).flatmap(lambda items: st.tuples(st.integers(0, items), st.just(items)))


def test_wilson_reference() -> None:
    assert wilson(19, 38) == pytest.approx((0.348499, 0.651501), abs=5e-7)
    with pytest.raises(ValueError, match="at least one item"):
        wilson(0, 0)


@settings(deadline=None)
@given(counts, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_both_intervals_are_those_of_scipy(count: tuple[int, int], confidence: float) -> None:
    successes, items = count
    for ours, method in (
        (clopper_pearson(successes, items, confidence), "exact"),
        (wilson(*count, confidence), "wilson"),
    ):
        theirs = binomtest(successes, items).proportion_ci(confidence, method=method)
        assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@settings(deadline=None)
@given(counts, st.floats(0.001, 0.4))
def test_bounds_grow_with_successes_and_mirror_each_other(count: tuple[int, int], alpha: float) -> None:
    successes, items = count
    lower, upper = clopper_pearson_lower(successes, items, alpha), clopper_pearson_upper(successes, items, alpha)
    assert 0.0 <= lower <= successes / items <= upper <= 1.0
    assert upper == pytest.approx(1.0 - clopper_pearson_lower(items - successes, items, alpha))
    assert clopper_pearson_lower(successes + 1, items + 1, alpha) >= lower
    assert clopper_pearson_lower(successes, items + 1, alpha) <= lower


def test_nothing_measured_bounds_nothing() -> None:
    assert (clopper_pearson_lower(0, 0, 0.05), clopper_pearson_upper(0, 0, 0.05)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="more successes"):
        clopper_pearson_lower(3, 2, 0.05)
    with pytest.raises(ValueError, match=r"more successes|below zero"):
        clopper_pearson_upper(3, 2, 0.05)


@pytest.mark.parametrize(("threshold", "items"), [(0.80, 14), (0.85, 19), (0.90, 29), (0.95, 59)])
def test_smallest_number_without_an_error(threshold: float, items: int) -> None:
    assert items_without_error(threshold, 0.05) == items
    assert clopper_pearson_lower(items, items, 0.05) >= threshold
    assert clopper_pearson_lower(items - 1, items - 1, 0.05) < threshold
    assert clopper_pearson_upper(0, items, 0.05) <= 1.0 - threshold < clopper_pearson_upper(0, items - 1, 0.05)


@settings(deadline=None)
@given(st.integers(0, 400), st.floats(0.05, 0.98), st.sampled_from([0.05, 0.025, 0.01]))
def test_passing_successes_are_those_whose_bound_passes(items: int, threshold: float, alpha: float) -> None:
    bounds = clopper_pearson_lower(np.arange(items + 1), np.full(items + 1, items), alpha)
    assert passing_successes(items, threshold, alpha) == items + 1 - int(np.sum(bounds >= threshold))


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5, 0.9), st.floats(0.03, 0.09))
def test_items_for_power_is_the_first_that_has_it(threshold: float, gap: float) -> None:
    items = items_for_power(threshold + gap, threshold, 0.05)
    assert items is not None
    powers = np.asarray(passing_power(np.arange(1, items + 1), threshold + gap, threshold, 0.05))
    assert powers[-1] >= 0.8
    if items <= 1_000:
        assert np.all(powers[:-1] < 0.8)
    needed = int(passing_successes(items, threshold, 0.05))
    assert powers[-1] == pytest.approx(binom.sf(needed - 1, items, threshold + gap))


def test_no_number_of_items_shows_what_is_not_so() -> None:
    assert items_for_power(0.90, 0.90, 0.05) is None
    assert items_for_power(0.89, 0.90, 0.05) is None
    assert items_for_power(0.9001, 0.90, 0.05) is None


def test_rate_for_power_has_that_power() -> None:
    rate = rate_for_power(400, 0.90, 0.05)
    assert rate is not None
    assert passing_power(400, rate, 0.90, 0.05) == pytest.approx(0.8)
    assert rate_for_power(28, 0.90, 0.05) is None
