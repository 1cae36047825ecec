"""What is only displayed, and what several attempts or comparisons may claim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from realign_cluster.domain.bootstrap import bootstrap_interval
from realign_cluster.domain.multiplicity import holm, split_alpha


def test_the_bootstrap_is_near_scipys_percentile_interval() -> None:
    values = np.random.default_rng(5).beta(6, 2, 150)
    ours = bootstrap_interval(values, seed=1, resamples=10_000)
    generator = np.random.default_rng(2)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", random_state=generator)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.002)


def test_the_bootstrap_of_a_ratio_weighs_answers_by_their_units() -> None:
    right, claims = [8.0, 1.0, 1.0, 0.0] * 20, [8.0, 2.0, 1.0, 0.0] * 20
    interval = bootstrap_interval(right, claims, seed=3)
    assert interval is not None
    assert interval[0] < 10 / 11 < interval[1]
    assert bootstrap_interval(right, claims, seed=3) == interval
    assert bootstrap_interval(right, claims, seed=4) != interval


def test_why_the_bootstrap_is_not_gated_on() -> None:
    assert bootstrap_interval([1.0] * 5, seed=0) == (1.0, 1.0)
    assert bootstrap_interval([], seed=0) is None
    assert bootstrap_interval([0.0], [0.0], seed=0) is None


def test_holm_reference() -> None:
    """0.01 <= 0.05 / 4, 0.02 > 0.05 / 3: the first only, though 0.03 would pass alone."""
    assert holm([0.02, 0.01, 0.03, 0.04]) == (False, True, False, False)
    assert holm([0.010, 0.016, 0.024, 0.049]) == (True, True, True, True)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_bonferroni_does_and_nothing_above_alpha(p_values: list[float]) -> None:
    for p_value, rejected in zip(p_values, holm(p_values), strict=True):
        assert rejected or p_value > 0.05 / len(p_values)
        assert not rejected or p_value <= 0.05


def test_attempts_share_alpha() -> None:
    assert split_alpha(0.05, 1) == 0.05
    assert split_alpha(0.05, 4) == 0.0125
    with pytest.raises(ValueError, match="one attempt"):
        split_alpha(0.05, 0)
