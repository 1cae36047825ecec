"""How far a model has moved from its reference: KL(pi || reference) in nats per completion token.

The exact value at a token is the sum over the vocabulary of pi (log pi - log reference); it is summed over the
completion's tokens where the models are, prompt and padding left out, and comes here as one sum for each completion.
k1, k2 and k3 are estimates from the log-probabilities of the sampled tokens alone (Schulman 2020, "Approximating KL
divergence"), for where the exact sum costs too much; they are named as such. 0.1 per token over 200 tokens is 20 nats
for the sequence.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from realign_cluster.metrics.measured import ItemId, PooledRatio, pooled_ratio


class Estimator(StrEnum):
    EXACT = "exact"  # over the whole vocabulary: never negative
    K1 = "k1"  # log pi - log reference: unbiased, may be negative, large variance
    K2 = "k2"  # half its square: never negative, biased, small variance
    K3 = "k3"  # reference / pi - 1 + log pi - log reference: unbiased and never negative


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionDivergence:
    """One completion sampled from pi: the sum over its `tokens` completion tokens, in nats."""

    prompt: ItemId
    nats: float
    tokens: int


def kl_per_token(completions: Iterable[CompletionDivergence], estimator: Estimator = Estimator.EXACT) -> PooledRatio:
    """Nats / completion tokens, pooled; the items are prompts, the completions of one prompt added up.

    ValueError for a sum that is not finite, or that is negative where it cannot be (beyond float32's rounding).
    """
    nats: dict[ItemId, list[float]] = defaultdict(list)
    tokens: dict[ItemId, int] = defaultdict(int)
    for one in completions:
        if not math.isfinite(one.nats) or one.tokens < 0:
            raise ValueError(f"prompt {one.prompt!r}: {one.nats} nats over {one.tokens} tokens")
        if estimator is not Estimator.K1 and one.nats < -1e-5 * max(one.tokens, 1):
            raise ValueError(f"prompt {one.prompt!r}: {one.nats} nats, which {estimator} cannot be")
        nats[one.prompt].append(one.nats)
        tokens[one.prompt] += one.tokens
    return pooled_ratio(
        f"KL ({estimator})", "nats / completion token",
        ((prompt, math.fsum(sums), tokens[prompt]) for prompt, sums in nats.items()),
    )  # fmt: skip


def estimate_nats(estimator: Estimator, logprobs: Sequence[float], reference_logprobs: Sequence[float]) -> float:
    """Sum over sampled tokens, in nats, from the log-probability of each under pi and under the reference."""
    if len(logprobs) != len(reference_logprobs):
        raise ValueError(f"{len(logprobs)} log-probabilities and {len(reference_logprobs)} of the reference")
    difference = np.asarray(logprobs, dtype=np.float64) - np.asarray(reference_logprobs, dtype=np.float64)
    match estimator:
        case Estimator.K1:
            return float(difference.sum())
        case Estimator.K2:
            return float((difference**2 / 2).sum())
        case Estimator.K3:
            return float((np.expm1(-difference) + difference).sum())
        case Estimator.EXACT:
            raise ValueError("the exact divergence needs the whole vocabulary, not the sampled tokens alone")
