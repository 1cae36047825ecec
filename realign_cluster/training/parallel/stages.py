"""A stage of a pipeline that is trained: what of its part is trainable, and a micro-batch's way through it.

Must not know the order of micro-batches, gradients or how stages talk. How the model is cut is in `sharding.stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from realign_cluster.sharding.stages import CutModel, Layers
from realign_cluster.training.forward import Forward
from realign_cluster.training.masks import SegmentCache
from realign_cluster.training.parallel.base import MicroBatch


class Stage(CutModel):
    """`shared` names the trainable parameters that the first and the last stage both hold (tied embeddings).
    `backward_from` is the first stage with anything to train, the number of stages if there is none.
    """

    def __init__(
        self, model: nn.Module, layers: Layers, rank: int, *, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Adapters are attached and gradient checkpointing is set before. Raises UsageError for a model that cannot be
        cut.
        """
        trainable = [name for name, _ in tree_flatten(model.trainable_parameters())]
        super().__init__(model, layers, rank, progress=progress)
        embedding = f"{self.prefix}model.embed_tokens."
        tied = self.tied and self.stages > 1
        self.shared = tuple(name for name in trainable if tied and name.startswith(embedding))
        self.backward_from = min((_stage_of(name, self.prefix, layers) for name in trainable), default=self.stages)
        self._forward = Forward(model) if self.last else None

    def trainable(self) -> dict[str, mx.array]:
        return dict(sorted(tree_flatten(self.model.trainable_parameters())))

    def hold(self, parameters: Mapping[str, mx.array]) -> None:
        if parameters:  # an empty tree has no form
            self.model.update(tree_unflatten(list(parameters.items())))

    def run(self, batch: MicroBatch, received: mx.array | None) -> mx.array:
        """`received` (B, T, width): hidden states from the stage before, None at the first. Hidden states (B, T, width)
        for the stage after; at the last stage the log-probability of each target, (N,) float32.
        """
        if self._forward is not None:
            with self.entered(received):
                return self._forward.log_probabilities(batch)
        cache = None if batch.segments is None else [SegmentCache(batch.segments)] * self.blocks
        return self.hidden(batch.tokens, cache, received)


def _stage_of(name: str, prefix: str, layers: Layers) -> int:
    """The first stage that holds the parameter."""
    part, _, rest = name.removeprefix(f"{prefix}model.").partition(".")
    if part == "embed_tokens":
        return 0
    if part != "layers":
        return len(layers) - 1
    block = int(rest.partition(".")[0])
    return next(stage for stage, (start, end) in enumerate(layers) if start <= block < end)
