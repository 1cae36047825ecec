"""Strategy "pipeline": consecutive blocks on each rank, micro-batches passing through one forward, one backward.

Every rank is given every micro-batch, so it knows all shapes. Each parameter's gradient arises on the rank that holds
it. What both ends hold (tied embeddings) is the first rank's: it gets the last one's gradient, and gives it the weights
back after an update, so that the two are equal to the bit even where unlike machines round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import mlx.core as mx

from realign_cluster.domain.section_limits import SectionName
from realign_cluster.sharding.wire import Wire
from realign_cluster.training.adapters import adapters_off
from realign_cluster.training.dropout import DropoutContext
from realign_cluster.training.parallel.base import MicroBatch, Objective, Piece, Sums
from realign_cluster.training.parallel.stage_pass import StagePass
from realign_cluster.training.parallel.stages import Stage

Group = mx.distributed.Group


class Pipeline:
    """`stage` is this rank's. `entering` is told what for before each piece of work and each wait."""

    def __init__(
        self,
        stage: Stage,
        group: Group,
        *,
        dropout: DropoutContext | None = None,
        entering: Callable[[SectionName], None] = lambda section: None,
    ) -> None:
        self._stage = stage
        self._wire = Wire(group)
        self._dropout = dropout or DropoutContext()
        self._entering = entering

    def parameters(self) -> dict[str, mx.array]:
        return self._own(self._stage.trainable())

    def update(self, parameters: Mapping[str, mx.array]) -> None:
        current = self.parameters()
        self._stage.hold({name: value.astype(current[name].dtype) for name, value in parameters.items()})
        self._stage.hold(self._to_other_end(self._stage.trainable(), back=False))

    def pieces(self) -> dict[str, Piece]:
        return {name: Piece(whole=tuple(value.shape)) for name, value in self.parameters().items()}

    def gradients(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> Sums:
        waited = self._wire.waited_seconds
        through = StagePass(self._stage, self._wire, batches, objective, self._dropout)
        through.run(lambda: self._entering("step"))
        self._entering("reduce")
        gradients = through.gradients
        for name, value in self._to_other_end(gradients, back=True).items():
            gradients[name] = gradients[name] + value
        mx.eval(gradients)
        return Sums(
            gradients=self._own(gradients),
            metrics=self._wire.sum(sum(through.metrics, mx.zeros(metrics))),
            compute_seconds=through.compute_seconds,
            reduce_seconds=self._wire.waited_seconds - waited,
        )

    def losses(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> mx.array:
        through = StagePass(self._stage, self._wire, batches, objective)
        through.run(lambda: self._entering("evaluate"))
        return self._wire.sum(sum(through.metrics, mx.zeros(metrics)))

    def log_probabilities(self, batches: Sequence[MicroBatch]) -> list[mx.array]:
        def by_sequence(found: mx.array, batch: MicroBatch) -> tuple[mx.array, mx.array]:
            return mx.zeros(()), mx.zeros(batch.sequences).at[batch.owners].add(found)

        through = StagePass(self._stage, self._wire, batches, by_sequence)
        with adapters_off(self._stage.model):
            through.run(lambda: self._entering("reference"))
        ends = list(accumulate((batch.sequences for batch in batches), initial=0))
        here = mx.concatenate(through.metrics) if through.metrics else mx.zeros(ends[-1])
        everywhere = self._wire.sum(here) if batches else here
        return [everywhere[start:end] for start, end in pairwise(ends)]

    def norm_squared(self, gradients: Mapping[str, mx.array]) -> mx.array:
        return self._wire.sum(sum((mx.sum(mx.square(value)) for value in gradients.values()), mx.zeros(())))

    @contextmanager
    def callable_model(self, section: SectionName = "generate") -> Iterator[None]:
        """Until the end of the block the model may be called, without gradients, by all ranks alike: each call is a
        collective and gives all logits on every rank.
        """
        model, plain = self._stage.model, type(self._stage.model)
        call = self._call

        class Pipelined(plain):  # type: ignore[misc, valid-type]
            def __call__(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
                return call(section, tokens, cache)

        model.__class__ = Pipelined
        try:
            yield
        finally:
            model.__class__ = plain

    def _call(self, section: SectionName, tokens: mx.array, cache: Sequence[Any] | None) -> mx.array:
        stage, wire = self._stage, self._wire
        self._entering(section)
        received: mx.array | None = None
        if not stage.first:
            received = wire.wait(wire.expect((*tokens.shape, stage.width), stage.takes, stage.rank - 1))
        result = stage.call(tokens, cache, received)
        mx.eval(result)
        if not stage.last:
            wire.send(result, stage.rank + 1)
            result = mx.zeros((*tokens.shape, stage.vocabulary), dtype=stage.logits_dtype)
        return wire.sum(result)

    def _own(self, values: dict[str, mx.array]) -> dict[str, mx.array]:
        """Without what is the first rank's."""
        others = self._stage.shared if self._stage.last else ()
        return {name: value for name, value in values.items() if name not in others}

    def _to_other_end(self, values: Mapping[str, mx.array], *, back: bool) -> dict[str, mx.array]:
        """Of what both ends hold: sent from the first rank to the last, or `back`. What has arrived here."""
        stage, wire = self._stage, self._wire
        sender, receiver = (stage.stages - 1, 0) if back else (0, stage.stages - 1)
        arrived: dict[str, mx.array] = {}
        for name in stage.shared:
            if stage.rank == sender:
                mx.eval(values[name])
                wire.send(values[name], receiver)
            elif stage.rank == receiver:
                arrived[name] = wire.wait(wire.expect(values[name].shape, values[name].dtype, sender))
        wire.flush()
        return arrived
