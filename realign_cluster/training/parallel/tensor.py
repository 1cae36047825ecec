"""Strategy "tensor": every rank computes every micro-batch with its shard of the model.

What is cut has its whole gradient here. What every rank has a copy of gets either the sum of the ranks' shares or,
where each already has all of it, their mean: equal bits everywhere even where unlike machines round differently. For
the same reason losses are averaged: all ranks decide alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx

from realign_cluster.domain.section_limits import SectionName
from realign_cluster.training.parallel.base import MicroBatch, Objective, Piece, Sums
from realign_cluster.training.parallel.data import DataParallel, reduce_in_buckets
from realign_cluster.training.parallel.sharded_model import ShardedModel


class TensorParallel:
    def __init__(
        self,
        sharded: ShardedModel,
        *,
        entering: Callable[[SectionName], None] = lambda section: None,
    ) -> None:
        self._sharded = sharded
        self._group = sharded.group
        self._entering = entering
        self._shard = DataParallel(sharded.model, None, dropout=sharded.adapters.dropout, entering=entering)

    def parameters(self) -> dict[str, mx.array]:
        return self._shard.parameters()

    def update(self, parameters: Mapping[str, mx.array]) -> None:
        self._shard.update(parameters)

    def pieces(self) -> dict[str, Piece]:
        return self._sharded.pieces

    def gradients(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> Sums:
        own = self._shard.gradients(batches, objective, metrics)
        started = time.perf_counter()
        self._entering("reduce")
        copies = {
            name: value if name in self._sharded.partial else value / self._group.size()
            for name, value in own.gradients.items()
            if not self._is_cut(name)
        }
        joined, total = reduce_in_buckets(copies, own.metrics / self._group.size(), self._group)
        mx.eval(joined, total)
        return Sums(
            gradients=own.gradients | joined,
            metrics=total,
            compute_seconds=own.compute_seconds,
            reduce_seconds=time.perf_counter() - started,
        )

    def losses(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> mx.array:
        return self._mean(self._shard.losses(batches, objective, metrics))

    def log_probabilities(self, batches: Sequence[MicroBatch]) -> list[mx.array]:
        return [self._mean(sums) for sums in self._shard.log_probabilities(batches)]

    def callable_model(self) -> AbstractContextManager[None]:
        return nullcontext()

    def norm_squared(self, gradients: Mapping[str, mx.array]) -> mx.array:
        here = _squares(value for name, value in gradients.items() if self._is_cut(name))
        everywhere = _squares(value for name, value in gradients.items() if not self._is_cut(name))
        return mx.distributed.all_sum(here, group=self._group, stream=mx.cpu) + everywhere

    def _is_cut(self, name: str) -> bool:
        return self._sharded.pieces[name].axis >= 0

    def _mean(self, value: mx.array) -> mx.array:
        return mx.distributed.all_sum(value / self._group.size(), group=self._group, stream=mx.cpu)


def _squares(values: Iterable[mx.array]) -> mx.array:
    return sum((mx.sum(mx.square(value)) for value in values), mx.zeros(()))
