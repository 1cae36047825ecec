"""All micro-batches through one stage, once: the schedule's actions carried out, gradients summed in float32.

The forward pass is kept, not computed again: the backward pass is laid out with it, for a cotangent that is still to
come. Waiting for a neighbour is over before work that needs it begins, so that no GPU waits for a peer. Must not know
methods, nor how strategies join what ranks have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import mlx.core as mx

from realign_cluster.domain.pipeline_schedule import Action, actions_of
from realign_cluster.sharding.wire import Wire
from realign_cluster.training.dropout import DropoutContext
from realign_cluster.training.parallel.base import MicroBatch, Objective
from realign_cluster.training.parallel.stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backward:
    """Laid out, not evaluated. `cotangent` is still to come, None at the last stage; `back` is for the stage before."""

    cotangent: mx.array | None
    gradients: list[mx.array]
    back: mx.array | None


class StagePass:
    """`metrics`: at the last stage what `objective` made of each micro-batch beside the loss, in order. `gradients` by
    name, float32.

    With `dropout` gradients are computed, under the keys of each micro-batch; without it nothing is.
    """

    def __init__(
        self,
        stage: Stage,
        wire: Wire,
        batches: Sequence[MicroBatch],
        objective: Objective,
        dropout: DropoutContext | None = None,
    ) -> None:
        self._stage, self._wire = stage, wire
        self._batches, self._objective, self._dropout = batches, objective, dropout
        self._backward_from = stage.stages if dropout is None else stage.backward_from
        self._received: dict[int, mx.array] = {}
        self._leaving: dict[int, mx.array] = {}
        self._backward: dict[int, _Backward] = {}
        self.metrics: list[mx.array] = []
        self.gradients = {name: mx.zeros(value.shape) for name, value in stage.trainable().items()}
        self.compute_seconds = 0.0

    def run(self, progress: Callable[[], None]) -> None:
        """`progress` is called before each action. All that was sent has gone out on return."""
        stage = self._stage
        for action in actions_of(
            stage.rank, stages=stage.stages, micro_batches=len(self._batches), backward_from=self._backward_from
        ):
            progress()
            self._do(action)
        self._wire.flush()

    def _do(self, action: Action) -> None:
        number, rank = action.micro_batch, self._stage.rank
        match action.kind:
            case "receive_activation":
                self._received[number] = self._wire.wait(self._expect(number, self._stage.takes, rank - 1))
            case "receive_cotangent":
                cotangent = self._backward[number].cotangent
                assert cotangent is not None
                self._wire.wait(cotangent)
            case "send_activation":
                self._wire.send(self._leaving.pop(number), rank + 1)
            case "send_cotangent":
                self._wire.send(self._leaving.pop(number), rank - 1)
            case "forward" | "backward":
                started = time.perf_counter()
                if action.kind == "forward":
                    self._go_forward(number)
                else:
                    self._go_backward(number)
                self.compute_seconds += time.perf_counter() - started
            case _:
                assert_never(action.kind)

    def _go_forward(self, number: int) -> None:
        received = self._received.pop(number, None)
        if self._stage.rank < self._backward_from:
            result = self._result(self._batches[number], received)
        else:
            result = self._lay_out(number, received)
        mx.eval(result)
        if self._stage.last:
            self.metrics.append(result[1])
        else:
            self._leaving[number] = result[0]

    def _result(self, batch: MicroBatch, received: mx.array | None) -> tuple[mx.array, ...]:
        """(hidden states for the next stage,), at the last stage (loss, metrics)."""
        found = self._stage.run(batch, received)
        return self._objective(found, batch) if self._stage.last else (found,)

    def _lay_out(self, number: int, received: mx.array | None) -> tuple[mx.array, ...]:
        """The same, with the backward pass that follows. Nothing is evaluated."""
        batch, stage = self._batches[number], self._stage
        parameters = stage.trainable()
        inputs = [received] if received is not None and stage.rank > self._backward_from else []

        def function(values: list[mx.array]) -> tuple[mx.array, ...]:
            stage.hold(dict(zip(parameters, values, strict=not inputs)))
            return self._result(batch, values[-1] if inputs else received)

        assert self._dropout is not None
        values = [*parameters.values(), *inputs]
        cotangent: mx.array | None = None
        result: Sequence[mx.array]
        with self._dropout.keyed(batch.keys):
            if stage.last:
                result, found = mx.value_and_grad(function)(values)
            else:
                cotangent = self._expect(number, stage.gives, stage.rank + 1)
                result, found = mx.vjp(lambda *traced: function(list(traced)), values, [cotangent])
        stage.hold(parameters)  # in place of what tracing left in the model
        self._backward[number] = _Backward(
            cotangent=cotangent, gradients=found[: len(parameters)], back=found[-1] if inputs else None
        )
        return tuple(result)

    def _go_backward(self, number: int) -> None:
        backward = self._backward.pop(number)
        for name, value in zip(self.gradients, backward.gradients, strict=True):
            self.gradients[name] = self.gradients[name] + value.astype(mx.float32)
        if backward.back is not None:
            self._leaving[number] = backward.back
        mx.eval(self.gradients, self._leaving)

    def _expect(self, number: int, dtype: mx.Dtype, rank: int) -> mx.array:
        return self._wire.expect((*self._batches[number].tokens.shape, self._stage.width), dtype, rank)
