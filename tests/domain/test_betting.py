"""The betting bound against a plain implementation of the paper's product, and its properties."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_cluster.domain.betting import LARGEST_STAKE, Looks, exceeds, lower_bound, p_value, upper_bound

scores_of = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60)
looks_of = st.sampled_from(["once", "any time"])


def plain_capital(scores: list[float], mean: float, alpha: float, looks: Looks) -> float:
    """The largest capital, one bet after the other, as the paper writes it."""
    capital, largest = 1.0, 0.0
    total, squares, variance = 0.5, 0.25, 0.25
    for count, score in enumerate(scores, 1):
        scale = len(scores) if looks == "once" else count * math.log(1 + count)
        stake = min(math.sqrt(2 * math.log(1 / alpha) / (variance * scale)), LARGEST_STAKE / mean)
        capital *= 1 + stake * (score - mean)
        largest = max(largest, capital)
        total += score
        squares += (score - total / (count + 1)) ** 2
        variance = squares / (count + 1)
    return largest


@settings(deadline=None)
@given(scores_of, looks_of, st.sampled_from([0.05, 0.01]))
def test_the_bound_is_where_the_plain_capital_reaches_one_over_alpha(
    scores: list[float], looks: Looks, alpha: float
) -> None:
    bound = lower_bound(scores, alpha=alpha, looks=looks)
    if bound > 1e-6:
        assert plain_capital(scores, bound - 1e-9, alpha, looks) >= 1 / alpha * (1 - 1e-6)
    if looks == "once":
        assert bound <= np.mean(scores)
    if bound < 1.0 - 1e-6 and (looks == "any time" or bound < np.mean(scores)):
        assert plain_capital(scores, bound + 1e-9, alpha, looks) <= 1 / alpha * (1 + 1e-6)


@settings(deadline=None)
@given(scores_of, looks_of)
def test_bounds_enclose_and_mirror(scores: list[float], looks: Looks) -> None:
    lower, upper = (bound(scores, alpha=0.05, looks=looks) for bound in (lower_bound, upper_bound))
    assert 0.0 <= lower <= 1.0
    assert 0.0 <= upper <= 1.0
    if looks == "once":
        assert lower <= np.mean(scores) + 1e-12
        assert upper >= np.mean(scores) - 1e-12
    assert upper == pytest.approx(1.0 - lower_bound([1.0 - score for score in scores], alpha=0.05, looks=looks))


@settings(deadline=None)
@given(scores_of, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_capital_falls_in_the_mean(scores: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert p_value(scores, low) <= p_value(scores, high)
    assert bool(exceeds(scores, high, alpha=0.05)) <= bool(exceeds(scores, low, alpha=0.05))
    assert bool(exceeds(scores, low, alpha=0.05)) == (p_value(scores, low) <= 0.05)


@settings(deadline=None)
@given(scores_of, st.integers(1, 64))
def test_a_ratio_with_equal_units_is_their_mean(scores: list[float], units: int) -> None:
    """Counted in parts of what an answer may have at most, so the same scores with fewer units can only say less."""
    whole = lower_bound(scores, np.ones(len(scores)), alpha=0.05)
    assert whole == pytest.approx(lower_bound(scores, alpha=0.05))
    part = np.full(len(scores), 1 / units)
    assert lower_bound(np.array(scores) / units, part, alpha=0.05) <= whole + 0.03


def test_a_streak_that_was_lost_again() -> None:
    """Kept by looks at any time; for one look the mean of all scores has the last word."""
    scores = np.concatenate([np.ones(120), np.full(60, 0.5)])
    assert scores.mean() == pytest.approx(5 / 6)
    assert lower_bound(scores, alpha=0.05, looks="any time") > 0.93
    assert lower_bound(scores, alpha=0.05) == pytest.approx(5 / 6)
    assert not exceeds(scores, 0.9, alpha=0.05)
    assert p_value(scores, 0.9) == 1.0


def test_items_without_units_change_little_and_never_crash() -> None:
    scores, sizes = np.full(100, 0.5), np.full(100, 0.5)
    with_empty = [np.append(values, np.zeros(5)) for values in (scores, sizes)]
    assert lower_bound(*with_empty, alpha=0.05) == pytest.approx(lower_bound(scores, sizes, alpha=0.05), abs=0.02)
    nothing = np.zeros(20)
    assert (lower_bound(nothing, nothing, alpha=0.05), upper_bound(nothing, nothing, alpha=0.05)) == (0.0, 1.0)
    assert (lower_bound([], alpha=0.05), upper_bound([], alpha=0.05), p_value([], 0.5)) == (0.0, 1.0, 1.0)


def test_many_runs_at_once_are_each_alone() -> None:
    scores = np.random.default_rng(1).beta(5, 1, (7, 40))
    together = lower_bound(scores, alpha=0.05)
    assert together == pytest.approx([lower_bound(row, alpha=0.05) for row in scores])
    assert list(exceeds(scores, 0.75, alpha=0.05)) == [bound >= 0.75 for bound in together]


@pytest.mark.parametrize("scores", [[1.2], [-0.1], [math.nan]])
def test_scores_out_of_range_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        lower_bound(scores, alpha=0.05)
    with pytest.raises(ValueError, match="size"):
        lower_bound([0.5], [0.4], alpha=0.05)


def test_ten_thousand_scores_take_well_under_a_second() -> None:
    scores = np.random.default_rng(2).beta(9, 1, 10_000)
    start = time.process_time()
    lower, upper = lower_bound(scores, alpha=0.05), upper_bound(scores, alpha=0.05)
    assert time.process_time() - start < 0.5
    assert 0.89 < lower < scores.mean() < upper < 0.91


def test_a_variance_that_is_small_gives_a_bound_that_is_close() -> None:
    """What Hoeffding's inequality cannot do: it says 0.0866 below the mean whatever the scores are."""
    scores = np.random.default_rng(3).normal(0.9, 0.02, 200).clip(0, 1)
    assert scores.mean() - lower_bound(scores, alpha=0.05) < 0.03
    assert math.sqrt(math.log(20) / 400) == pytest.approx(0.0866, abs=1e-4)
