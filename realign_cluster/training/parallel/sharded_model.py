"""A model of which this rank holds a shard, by mlx-lm's own `shard`, with adapters on what is here.

Says which elements of every array are here, and which gradients are only this rank's share of a sum. Must not know
steps or batches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers import distributed
from mlx.utils import tree_flatten

from realign_cluster.domain.divisibility import TENSOR_MODEL_TYPES
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import AdapterSettings, FineTune
from realign_cluster.training.adapter_layers import (
    LINEAR,
    Adapter,
    Site,
    dimensions,
    row_lengths,
    unchanged,
    whole_site,
)
from realign_cluster.training.adapters import attach
from realign_cluster.training.parallel.base import Piece

Group = mx.distributed.Group
Segments = int | Sequence[int | float]

JOINS_GRADIENTS = (nn.AllToShardedLinear, nn.QuantizedAllToShardedLinear)
JOINS_OUTPUTS = (nn.ShardedToAllLinear, nn.QuantizedShardedToAllLinear)
# Norms over the width of a head, of queries and keys of this rank's heads only.
_HEAD_NORM = re.compile(r"\.self_attn\.(q_norm|k_norm)\.")


class ShardedModel:
    """`model` is loaded lazily; it is changed in place, and what is here of it is evaluated block by block.

    `pieces` of every array that is cut and trainable, by name; `partial` are the names of replicated parameters whose
    gradients are to be summed over ranks, while those of the others are whole on each.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: AdapterSettings,
        kind: FineTune,
        seed: int,
        group: Group,
        *,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        if model.model_type not in TENSOR_MODEL_TYPES:
            raise UsageError(f"models of type {model.model_type} cannot be trained in shards", "--parallel pipeline")
        self.model = model
        self.group = group
        shapes = {name: tuple(value.shape) for name, value in tree_flatten(model.parameters())}
        self._lengths = _lengths_of_linears(model) if kind == "dora" else {}
        with _recorded_pieces() as recorded:
            model.shard(group)
        arrays = dict(tree_flatten(model.parameters()))
        self._weights = {name: recorded[id(value)][1] for name, value in arrays.items() if id(value) in recorded}
        self.adapters = attach(
            model, settings, kind, seed, linear_types=LINEAR + JOINS_GRADIENTS + JOINS_OUTPUTS, site_of=self._site
        )
        self._lengths.clear()
        if kind == "full":
            self._refuse_unknown_cuts(shapes, arrays)
        self.pieces, self.partial = self._lay_out()
        for block in model.layers:
            mx.eval(block.parameters())
            progress()
        mx.eval(model.parameters())

    def _site(self, name: str, linear: nn.Module) -> Site:
        piece = self._weights.get(f"{name}.weight")
        if piece is None:
            return whole_site(name, linear)
        packed = 32 // linear.bits if "scales" in linear else 1
        if piece.axis == len(piece.whole) - 2:
            inputs, outputs = dimensions(linear)[0], piece.whole[-2]
            return Site(
                name=name,
                inputs=inputs,
                input_ranges=((0, inputs),),
                outputs=outputs,
                output_ranges=piece.ranges,
                enter=self._joining_gradients if isinstance(linear, JOINS_GRADIENTS) else unchanged,
            )
        inputs, outputs = piece.whole[-1] * packed, dimensions(linear)[1]
        return Site(
            name=name,
            inputs=inputs,
            input_ranges=tuple((start * packed, end * packed) for start, end in piece.ranges),
            outputs=outputs,
            output_ranges=((0, outputs),),
            leave=self._sum if isinstance(linear, JOINS_OUTPUTS) else unchanged,
            join=self._sum,
            lengths=self._lengths.get(name),
        )

    def _joining_gradients(self, x: mx.array) -> mx.array:
        joined: mx.array = distributed.sum_gradients(self.group)(x)
        return joined

    def _sum(self, value: mx.array) -> mx.array:
        return mx.distributed.all_sum(value, group=self.group)

    def _refuse_unknown_cuts(self, shapes: dict[str, tuple[int, ...]], arrays: dict[str, mx.array]) -> None:
        for name, value in arrays.items():
            before = self._weights[name].whole if name in self._weights else tuple(value.shape)
            if before != shapes.get(name):
                raise UsageError(
                    f"how this model's {name} is cut between ranks is not known, so it cannot be trained in shards",
                    "--fine-tune lora, or --parallel pipeline",
                )

    def _lay_out(self) -> tuple[dict[str, Piece], frozenset[str]]:
        """Pieces and partial names of the trainable parameters.

        An adapter whose layer's outputs are cut: every rank's outputs add to the gradient of the replicated `lora_a`.
        Whose inputs are cut: the sum over ranks comes after `lora_b` and `m`, so each rank sees its own term of their
        gradients.
        """
        pieces: dict[str, Piece] = {}
        partial: set[str] = set()
        shares = tuple(f"{path}." for path, module in self.model.named_modules() if self._joins_inside(module))
        adapters = {path: module for path, module in self.model.named_modules() if isinstance(module, Adapter)}
        for name, value in tree_flatten(self.model.trainable_parameters()):
            path, _, leaf = name.rpartition(".")
            adapter = adapters.get(path)
            whole = Piece(whole=tuple(value.shape))
            pieces[name] = adapter.pieces()[leaf] if adapter else self._weights.get(name, whole)
            of_sharded = adapter is not None and adapter.site.sharded
            if pieces[name].axis < 0 and (of_sharded or name.startswith(shares) or _HEAD_NORM.search(name)):
                partial.add(name)
        return pieces, frozenset(partial)

    def _joins_inside(self, module: nn.Module) -> bool:
        """Whether a module joins gradients where it begins and outputs where it ends: what is between is partial."""
        return getattr(module, "sharding_group", None) is self.group


def split_ranges(size: int, segments: Segments, rank: int, ranks: int) -> tuple[tuple[int, int], ...]:
    """What `rank` gets of an axis that mlx cuts into `segments` (a count, or where all but the first begin, absolute
    or as fractions) and each of those into `ranks` equal parts.
    """
    if isinstance(segments, int):
        starts = [size // segments * number for number in range(segments)]
    else:
        starts = [0, *(int(start if isinstance(start, int) else start * size) for start in segments)]
    found = []
    for start, end in zip(starts, [*starts[1:], size], strict=True):
        part = (end - start) // ranks
        found.append((start + part * rank, start + part * (rank + 1)))
    return tuple(found)


@contextmanager
def _recorded_pieces() -> Iterator[dict[int, tuple[mx.array, Piece]]]:
    """By the id of each array that mlx cuts within the block: that array (so that the id stays its own), its piece."""
    recorded: dict[int, tuple[mx.array, Piece]] = {}
    original: Callable[..., Any] = distributed._shard

    def recording(parameters: Any, predicate: Callable[[str, mx.array], Any], group: Any = None) -> Any:
        parts = original(parameters, predicate, group)
        wholes = dict(tree_flatten(parameters))
        for path, part in tree_flatten(parts):
            how = predicate(path, wholes[path]) if isinstance(part, mx.array) else None
            if how is not None:
                axis, segments = how if isinstance(how, tuple) else (how, 1)
                whole = tuple(wholes[path].shape)
                ranges = split_ranges(whole[axis], segments, group.rank(), group.size())
                recorded[id(part)] = part, Piece(whole=whole, axis=axis % len(whole), ranges=ranges)
        return parts

    distributed._shard = recording
    try:
        yield recorded
    finally:
        distributed._shard = original


def _lengths_of_linears(model: nn.Module) -> dict[str, mx.array]:
    return {path: row_lengths(module) for path, module in model.named_modules() if isinstance(module, LINEAR)}
