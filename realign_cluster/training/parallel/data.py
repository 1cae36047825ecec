"""Strategies "single" and "data": a whole copy of the model on every rank, each computing its own rows.

Gradients are summed over micro-batches in float32 and then over ranks, in buckets, in the same order everywhere. A rank
without rows adds zeros. On a GPU the buckets of the last micro-batch are reduced on the CPU while the backward pass
goes on; on the CPU backend they wait for it, since the ring's spinning threads would take the cores that it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from realign_cluster.domain.section_limits import SectionName
from realign_cluster.training.adapters import adapters_off
from realign_cluster.training.dropout import DropoutContext
from realign_cluster.training.forward import Forward
from realign_cluster.training.parallel.base import MicroBatch, Objective, Piece, Sums

BUCKET_BYTES = 16 << 20

Group = mx.distributed.Group


class DataParallel:
    """`group` None: the one rank there is. `entering` hears "reduce" or "wait" when the waiting for others
    begins."""

    def __init__(
        self,
        model: nn.Module,
        group: Group | None = None,
        *,
        dropout: DropoutContext | None = None,
        entering: Callable[[SectionName], None] = lambda section: None,
    ) -> None:
        self._model = model
        self._dropout = dropout or DropoutContext()
        self._forward = Forward(model)
        self._group = group if group is not None and group.size() > 1 else None
        self._entering = entering
        self._overlap = self._group is not None and mx.default_device() != mx.cpu
        self._names = sorted((name for name, _ in tree_flatten(model.trainable_parameters())), key=_in_order)

    def parameters(self) -> dict[str, mx.array]:
        found = dict(tree_flatten(self._model.trainable_parameters()))
        return {name: found[name] for name in self._names}

    def update(self, parameters: Mapping[str, mx.array]) -> None:
        current = self.parameters()
        cast = [(name, value.astype(current[name].dtype)) for name, value in parameters.items()]
        self._model.update(tree_unflatten(cast))

    def pieces(self) -> dict[str, Piece]:
        return {name: Piece(whole=tuple(value.shape)) for name, value in self.parameters().items()}

    def gradients(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> Sums:
        started = time.perf_counter()
        parameters = self.parameters()
        total = mx.zeros(metrics)
        sums: dict[str, mx.array] = {}
        for batch in batches:
            self._entering("step")
            values, part = self._one(parameters, batch, objective)
            total = total + part
            sums = {name: sums[name] + value if sums else value for name, value in values.items()}
            if not (self._overlap and batch is batches[-1]):
                mx.eval(sums, total)
        self._model.update(tree_unflatten(list(parameters.items())))
        if not sums:
            sums = {name: mx.zeros(value.shape) for name, value in parameters.items()}
        if self._group is None:
            return Sums(
                gradients=sums, metrics=total, compute_seconds=time.perf_counter() - started, reduce_seconds=0.0
            )
        if self._overlap:
            reduced, total = reduce_in_buckets(sums, total, self._group)
            mx.async_eval(reduced, total)  # type: ignore[no-untyped-call]
            mx.eval(sums)
            computed = time.perf_counter()
            self._entering("reduce")
        else:
            mx.eval(sums, total)
            computed = time.perf_counter()
            self._entering("reduce")
            reduced, total = reduce_in_buckets(sums, total, self._group)
        mx.eval(reduced, total)
        return Sums(
            gradients=reduced,
            metrics=total,
            compute_seconds=computed - started,
            reduce_seconds=time.perf_counter() - computed,
        )

    def losses(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> mx.array:
        total = mx.zeros(metrics)
        for batch in batches:
            self._entering("evaluate")
            total = total + objective(self._forward.log_probabilities(batch), batch)[1]
            mx.eval(total)
        if self._group is None:
            return total
        self._entering("wait")
        return mx.distributed.all_sum(total, group=self._group, stream=mx.cpu)

    def log_probabilities(self, batches: Sequence[MicroBatch]) -> list[mx.array]:
        found = []
        with adapters_off(self._model):
            for batch in batches:
                self._entering("reference")
                targets = self._forward.log_probabilities(batch)
                sums = mx.zeros(batch.sequences).at[batch.owners].add(targets)
                mx.eval(sums)
                found.append(sums)
        return found

    def callable_model(self) -> AbstractContextManager[None]:
        return nullcontext()

    def norm_squared(self, gradients: Mapping[str, mx.array]) -> mx.array:
        return mx.sum(mx.stack([mx.sum(mx.square(value)) for value in gradients.values()]))

    def _one(
        self, parameters: dict[str, mx.array], batch: MicroBatch, objective: Objective
    ) -> tuple[dict[str, mx.array], mx.array]:
        def loss(values: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
            self._model.update(tree_unflatten(list(values.items())))
            return objective(self._forward.log_probabilities(batch), batch)

        with self._dropout.keyed(batch.keys):
            (_, part), gradients = mx.value_and_grad(loss)(parameters)
        return {name: value.astype(mx.float32) for name, value in gradients.items()}, part


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    """For sorting: blocks by their number, "layers.2" before "layers.10"."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def reduce_in_buckets(
    gradients: Mapping[str, mx.array], metrics: mx.array, group: Group
) -> tuple[dict[str, mx.array], mx.array]:
    """Sums over ranks, lazily. Each bucket depends on the one before: the order of collectives is the same on all
    ranks.

    The last bucket carries the metrics.
    """
    reduced: dict[str, mx.array] = {}
    before: mx.array | None = None
    buckets = list(_buckets(gradients))
    for number, names in enumerate(buckets):
        flat = [gradients[name].reshape(-1) for name in names]
        if number == len(buckets) - 1:
            flat.append(metrics)
        bucket = flat[0] if len(flat) == 1 else mx.concatenate(flat)
        if before is not None:
            (bucket,) = mx.depends([bucket], [before])
        before = summed = mx.distributed.all_sum(bucket, group=group, stream=mx.cpu)
        at = 0
        for name in names:
            size = gradients[name].size
            reduced[name] = summed[at : at + size].reshape(gradients[name].shape)
            at += size
        metrics = summed[at:] if number == len(buckets) - 1 else metrics
    return reduced, metrics


def _buckets(gradients: Mapping[str, mx.array]) -> list[list[str]]:
    """Names in reverse, as the backward pass reaches them, cut into buckets of BUCKET_BYTES (float32)."""
    buckets: list[list[str]] = [[]]
    size = 0
    for name in reversed(list(gradients)):
        if buckets[-1] and size + gradients[name].nbytes > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(name)
        size += gradients[name].nbytes
    return buckets
