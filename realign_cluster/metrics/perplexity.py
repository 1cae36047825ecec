"""Perplexity: exp(sum of negative log-likelihoods in nats / completion tokens), pooled over all texts.

Depends on the tokenizer, so two perplexities compare only under the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from realign_cluster.metrics.measured import ItemId, PooledRatio, pooled_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """`loss` is in nats per token; a gate on perplexity < t is one on loss < ln t."""

    loss: PooledRatio

    @property
    def value(self) -> float | None:
        """None without tokens; infinite where exp overflows."""
        if self.loss.value is None:
            return None
        return math.exp(self.loss.value) if self.loss.value < 709 else math.inf


def perplexity(texts: Iterable[tuple[ItemId, float, int]]) -> Perplexity:
    """(text, sum of negative log-likelihoods over its tokens, tokens). ValueError for a sum that is not a number."""
    rows = tuple(texts)
    for item, nats, _ in rows:
        if not math.isfinite(nats):
            raise ValueError(f"text {item!r} has a loss of {nats}")
    return Perplexity(loss=pooled_ratio("loss", "nats / token", rows))
