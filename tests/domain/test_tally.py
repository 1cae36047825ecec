"""Distributions in bounded memory, and scores counted by path."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_cluster.domain.tally import EXACT_VALUES, GROUPS, Distribution, Tally


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_small_distributions_are_exact(values):
    distribution = Distribution()
    distribution.add(np.array(values))
    summary = distribution.summary()
    assert summary["count"] == len(values)
    assert (summary["min"], summary["max"]) == (min(values), max(values))
    assert summary["mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert summary["quantiles"]["0.5"] in values
    assert sum(summary["histogram"]["counts"]) == len(values)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_large_distributions_keep_their_quantiles_in_bounded_memory(seed):
    values = np.random.default_rng(seed).lognormal(0, 2, 6 * EXACT_VALUES)
    distribution = Distribution()
    for window in np.array_split(values, 97):
        distribution.add(window)
        assert distribution._held <= EXACT_VALUES
    ranked = np.sort(values)
    for q in (0.01, 0.25, 0.5, 0.75, 0.99):
        rank = np.searchsorted(ranked, distribution.quantile(q)) / len(values)
        assert rank == pytest.approx(q, abs=8 / GROUPS)
    assert distribution.mean == pytest.approx(values.mean())
    assert distribution.quantile(1) == values.max()


def test_scores_are_counted_by_path_and_nulls_apart():
    tally = Tally()
    tally.add_scores(
        [
            {"loglik": {"sum": -3, "mean": -1.5, "tokens": 2, "truncated": False}},
            {"loglik": {"sum": None, "mean": None, "tokens": 0, "truncated": False, "undefined": "no tokens"}},
            {"judge": {"probabilities": {"a": 0.25, "b": 0.75}, "label": "b"}},
        ]
    )
    summary = tally.score_summary()
    assert set(summary) == {
        "judge.probabilities.a",
        "judge.probabilities.b",
        "loglik.mean",
        "loglik.sum",
        "loglik.tokens",
    }
    assert (summary["loglik.sum"]["count"], summary["loglik.sum"]["undefined"]) == (1, 1)
    assert summary["loglik.tokens"]["mean"] == 1.0


def test_no_rows_give_no_figures():
    assert Distribution().summary() == {"count": 0, "undefined": 0, "mean": None, "min": None, "max": None}
    assert Distribution().quantile(0.5) is None
    assert Tally().duplicate_fraction == 0.0
