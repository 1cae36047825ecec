"""From a micro-batch to the log-probability of each target: body, then the head at the wanted positions only.

Differentiable. Logits are taken in slices that are computed again in the backward pass, so that a large vocabulary
never stands in memory at every position. Must not know methods, ranks or optimizers.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from realign_cluster.scoring.head import SplitModel
from realign_cluster.training.masks import SegmentCache
from realign_cluster.training.parallel.base import MicroBatch

LOGIT_BYTES = 256 << 20  # of float32 logits that may exist at once; beyond it slices are computed again


class Forward:
    """`model` is a whole mlx-lm model, sharded by its own `shard` or not."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._split = SplitModel(model)

    def log_probabilities(self, batch: MicroBatch) -> mx.array:
        """(N,) float32: log p of each target of `batch` given what is before it."""
        cache: list[Any] | None = None
        if batch.segments is not None:
            cache = [SegmentCache(batch.segments)] * len(self.model.layers)
        hidden = self._split.hidden(batch.tokens, cache=cache)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return self.head(mx.take(flat, batch.positions, axis=0), batch.targets)

    def head(self, hidden: mx.array, targets: mx.array) -> mx.array:
        """(N, width) hidden states or, of a model that cannot be split, logits -> (N,) float32."""
        return target_log_probabilities(self._split.logits, hidden, targets, head_parameters(self.model))


def target_log_probabilities(logits_of: Any, hidden: mx.array, targets: mx.array, head: nn.Module | None) -> mx.array:
    """log-softmax of `logits_of(hidden)` at `targets`, (N,) float32. `head` holds the head's own parameters."""

    def whole(part: mx.array, wanted: mx.array) -> mx.array:
        logits = logits_of(part).astype(mx.float32)
        chosen = mx.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        return chosen - mx.logsumexp(logits, axis=-1)

    count = hidden.shape[0]
    width = _logit_width(logits_of, hidden)
    rows = max(1, LOGIT_BYTES // (4 * width))
    if count <= rows:
        return whole(hidden, targets)

    def slice_at(start: int) -> mx.array:
        def again(parameters: dict[str, Any], part: mx.array) -> mx.array:
            if head is not None:
                head.update(parameters)
            return whole(part, targets[start : start + rows])

        return mx.checkpoint(again)(parameters, hidden[start : start + rows])

    parameters = head.trainable_parameters() if head is not None else {}
    return mx.concatenate([slice_at(start) for start in range(0, count, rows)])


def head_parameters(model: nn.Module) -> nn.Module | None:
    """The module whose weights turn hidden states into logits: `lm_head`, or the embedding where they are tied."""
    outer = model
    while isinstance(inner := getattr(outer, "language_model", None), nn.Module):
        outer = inner
    if isinstance(head := getattr(outer, "lm_head", None), nn.Module):
        return head
    body = getattr(outer, "model", None)
    embedding = getattr(body, "embed_tokens", None)
    return embedding if isinstance(embedding, nn.Module) else None


def _logit_width(logits_of: Any, hidden: mx.array) -> int:
    """Size of the vocabulary, from the lazy shape: nothing is computed."""
    return int(logits_of(hidden[:1]).shape[-1])
