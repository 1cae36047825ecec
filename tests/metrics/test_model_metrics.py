"""Divergence and perplexity: by hand, and against the sum over a whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.divergence import CompletionDivergence, Estimator, estimate_nats, kl_per_token
from realign_cluster.metrics.measured import ItemId
from realign_cluster.metrics.perplexity import perplexity


def completion(prompt: str, nats: float, tokens: int) -> CompletionDivergence:
    return CompletionDivergence(prompt=ItemId(prompt), nats=nats, tokens=tokens)


class TestDivergence:
    def test_pooled_over_tokens_with_prompts_as_items(self):
        found = kl_per_token([completion("a", 2.0, 10), completion("a", 1.0, 20), completion("b", 20.0, 200)])
        assert found.value == 23 / 230
        assert found.defined == (("a", 3.0, 30), ("b", 20.0, 200))
        assert found.unit == "nats / completion token"

    def test_an_empty_completion_counts_nothing(self):
        found = kl_per_token([completion("a", 0.0, 0)])
        assert found.value is None
        assert found.undefined == ("a",)

    @pytest.mark.parametrize("nats", [math.nan, math.inf, -0.5])
    def test_what_no_divergence_can_be_is_refused(self, nats: float):
        with pytest.raises(ValueError, match="prompt 'a'"):
            kl_per_token([completion("a", nats, 10)])

    def test_k1_may_be_negative_and_rounding_is_no_error(self):
        assert kl_per_token([completion("a", -0.5, 10)], Estimator.K1).value == -0.05
        assert kl_per_token([completion("a", -1e-6, 10)]).value == pytest.approx(0, abs=1e-6)

    def test_estimators_of_one_token_by_hand(self):
        """log pi - log reference = ln 2: k1 ln 2, k2 (ln 2)^2 / 2, k3 1/2 - 1 + ln 2."""
        logs = [math.log(0.5)], [math.log(0.25)]
        assert estimate_nats(Estimator.K1, *logs) == pytest.approx(0.693147, abs=1e-6)
        assert estimate_nats(Estimator.K2, *logs) == pytest.approx(0.240227, abs=1e-6)
        assert estimate_nats(Estimator.K3, *logs) == pytest.approx(0.193147, abs=1e-6)
        with pytest.raises(ValueError, match="whole vocabulary"):
            estimate_nats(Estimator.EXACT, *logs)
        with pytest.raises(ValueError, match="2 log-probabilities and 1"):
            estimate_nats(Estimator.K1, [0.0, 0.0], [0.0])

    def test_k1_and_k3_are_unbiased(self):
        """Weighted by pi over the whole vocabulary they give the exact divergence."""
        generator = np.random.default_rng(7)
        pi, reference = generator.dirichlet(np.ones(50), size=2)
        exact = float((pi * np.log(pi / reference)).sum())
        for estimator in (Estimator.K1, Estimator.K3):
            each = [estimate_nats(estimator, [math.log(p)], [math.log(q)]) for p, q in zip(pi, reference, strict=True)]
            assert float(pi @ np.array(each)) == pytest.approx(exact)

    @given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), max_size=20))
    def test_k2_and_k3_are_never_negative(self, pairs: list[tuple[float, float]]):
        logs, reference = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        assert estimate_nats(Estimator.K2, logs, reference) >= 0
        assert estimate_nats(Estimator.K3, logs, reference) >= 0


class TestPerplexity:
    def test_by_hand(self):
        """A uniform choice among 20 at each of 3 tokens, and certainty at one: 20^(3/4)."""
        found = perplexity([(ItemId("a"), 3 * math.log(20), 3), (ItemId("b"), 0.0, 1)])
        assert found.value == pytest.approx(20**0.75)
        assert found.loss.defined == (("a", pytest.approx(3 * math.log(20)), 3), ("b", 0.0, 1))

    def test_edges(self):
        assert perplexity([]).value is None
        assert perplexity([(ItemId("a"), 0.0, 0)]).value is None
        assert perplexity([(ItemId("a"), 1e6, 1)]).value == math.inf
        with pytest.raises(ValueError, match="text 'a'"):
            perplexity([(ItemId("a"), math.nan, 1)])
