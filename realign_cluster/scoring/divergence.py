"""A model and its reference run side by side as if they were one: hidden states of both, then logits of both, and from
these the exact divergence at each position.

What `Forward` does with a model (batches, chunks, caches) so works for both. Must not know kinds or rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import mlx.core as mx
import numpy as np

from realign_cluster.scoring.forward import Floats, Integers, Valuation
from realign_cluster.scoring.head import SplitModel


class PairedModels:
    """Hidden states and logits of the model, then of the reference, along the last axis."""

    def __init__(self, model: SplitModel, reference: SplitModel) -> None:
        self._both = (model, reference)
        self.model = model.model
        self._width: int | None = None  # of the model's own hidden states
        self._dtypes: tuple[mx.Dtype, mx.Dtype] | None = None

    def make_cache(self) -> list[Any]:
        return [layer for split in self._both for layer in split.make_cache()]

    def kernels(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for split in self._both:
            stack.enter_context(split.kernels())
        return stack

    def hidden(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        layers = len(self._both[0].make_cache()) if cache is not None else 0
        caches = (None, None) if cache is None else (cache[:layers], cache[layers:])
        own, reference = (split.hidden(tokens, each) for split, each in zip(self._both, caches, strict=True))
        self._width, self._dtypes = own.shape[-1], (own.dtype, reference.dtype)
        return mx.concatenate([own.astype(mx.float32), reference.astype(mx.float32)], axis=-1)

    def each(self, batches: Iterable[mx.array]) -> Iterator[mx.array]:
        return (self.hidden(tokens) for tokens in batches)

    def kept(self, cache: Sequence[Any]) -> list[Any]:
        return [layer.state for layer in cache]

    def logits(self, hidden: mx.array) -> mx.array:
        assert self._width is not None
        assert self._dtypes is not None
        parts = (hidden[..., : self._width], hidden[..., self._width :])
        both = [
            split.logits(part.astype(dtype)).astype(mx.float32)
            for split, part, dtype in zip(self._both, parts, self._dtypes, strict=True)
        ]
        return mx.concatenate(both, axis=-1)


def divergences(logits: mx.array, rows: Integers, _targets: Integers) -> mx.array:
    """(n, 2 x vocabulary) logits of model and reference -> sum of pi (log pi - log ref) at `rows`, float32, nats."""
    own, reference = mx.split(logits, 2, axis=-1)
    own = own - mx.logsumexp(own, axis=-1, keepdims=True)
    reference = reference - mx.logsumexp(reference, axis=-1, keepdims=True)
    result: mx.array = (mx.exp(own) * (own - reference)).sum(axis=-1)[mx.array(rows)]
    return result


def divergences_on_cpu(logits: mx.array, rows: Integers, _targets: Integers) -> Floats:
    """The same with NumPy, whose exp is vectorised."""
    own, reference = np.split(np.array(logits), 2, axis=-1)
    own = own - own.max(axis=-1, keepdims=True)
    weights = np.exp(own)
    total = weights.sum(axis=-1, keepdims=True)
    reference = reference - reference.max(axis=-1, keepdims=True)
    own -= np.log(total)
    reference -= np.log(np.exp(reference).sum(axis=-1, keepdims=True))
    weights /= total
    result: Floats = np.einsum("nv,nv->n", weights, own - reference)[rows]
    return result


DIVERGENCES = Valuation(divergences, divergences_on_cpu)
