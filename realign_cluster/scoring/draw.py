"""Which token comes next: from logits and one uniform number a sequence, by the inverse of the cumulative distribution.

The number belongs to a sequence and to a place in it, so that what is drawn does not depend on which other sequences
are near. Temperature first, then top_k, then top_p of what is left (the order of transformers and vLLM). Pure.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from realign_cluster.domain.job import Sampling

UNIFORM_BITS = 23  # u * total stays below total in float32

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


class Drawn(NamedTuple):
    """One token for each sequence, (batch,) int32, and its log-probability, (batch,) float32, nats: the model's own,
    at temperature 1 with nothing left out.
    """

    tokens: mx.array | Tokens
    logprobs: mx.array | Floats


def uniforms(row_seed: int, sample: int, count: int) -> Floats:
    """(count,) in [0, 1), the same for the same arguments on every machine: Philox with the key (row_seed, sample)."""
    raw = np.random.Philox(key=np.array([row_seed, sample], dtype=np.uint64)).random_raw(count)
    result: Floats = ((raw >> np.uint64(64 - UNIFORM_BITS)) * 2.0**-UNIFORM_BITS).astype(np.float32)
    return result


def draw(logits: mx.array, numbers: Floats, sampling: Sampling) -> Drawn:
    """`logits` (batch, vocabulary), `numbers` (batch,). Lazy: nothing is evaluated."""
    logits = logits.astype(mx.float32)
    if sampling.temperature == 0:
        tokens = mx.argmax(logits, axis=-1)
    else:
        scaled = logits / sampling.temperature
        if 0 < sampling.top_k < logits.shape[-1]:
            least = mx.topk(scaled, sampling.top_k, axis=-1).min(axis=-1, keepdims=True)
            scaled = mx.where(scaled < least, -mx.inf, scaled)
        weights = mx.softmax(scaled, axis=-1, precise=True)
        if sampling.top_p < 1:
            falling = -mx.sort(-weights, axis=-1)
            above = mx.cumsum(falling, axis=-1) - falling
            least = mx.where(above < sampling.top_p, falling, mx.inf).min(axis=-1, keepdims=True)
            weights = mx.where(weights < least, 0.0, weights)
        below = mx.cumsum(weights, axis=-1)
        tokens = (below <= mx.array(numbers)[:, None] * below[:, -1:]).sum(axis=-1)
    tokens = tokens.astype(mx.int32)
    own = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
    return Drawn(tokens, own)


def draw_on_cpu(logits: mx.array, numbers: Floats, sampling: Sampling) -> Drawn:
    """The same in NumPy, whose exp is vectorised."""
    values: Floats = np.array(logits.astype(mx.float32))
    values -= values.max(axis=-1, keepdims=True)
    rows = np.arange(len(values))
    if sampling.temperature == 0:
        tokens = values.argmax(axis=-1)
    else:
        weights = values if sampling.temperature == 1 else values / np.float32(sampling.temperature)
        if 0 < sampling.top_k < values.shape[-1]:
            least = np.partition(weights, -sampling.top_k, axis=-1)[:, -sampling.top_k, None]
            weights = np.where(weights < least, np.float32(-np.inf), weights)
        weights = np.exp(weights)
        if sampling.top_p < 1:
            falling = -np.sort(-weights, axis=-1)
            above = np.cumsum(falling, axis=-1) - falling
            kept = above < sampling.top_p * falling.sum(axis=-1, keepdims=True)
            weights[weights < np.where(kept, falling, np.inf).min(axis=-1, keepdims=True)] = 0.0
        below = np.cumsum(weights, axis=-1)
        tokens = (below <= numbers[:, None] * below[:, -1:]).sum(axis=-1)
    picked = values[rows, tokens]
    np.exp(values, out=values)
    return Drawn(tokens.astype(np.int32), picked - np.log(values.sum(axis=-1)))
