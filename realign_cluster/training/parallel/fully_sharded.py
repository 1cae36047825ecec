"""Strategy "sharded": every rank holds its rows of each parameter, and a block's whole weights only while it runs.

Each rank computes its own micro-batches with the whole model, a block at a time: weights are gathered, the block runs,
they are dropped. The backward pass gathers them again, computes the block again from the hidden states that went into
it, and sums the weights' gradients over ranks, so that each rank is left with those of its rows. Gathering is evaluated
apart from the computing: no GPU waits for a peer.

Ranks go through the same collectives in step, so they all run as many micro-batches as the one that has most; a rank
that has none left runs a blank one, which no objective counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from realign_cluster.domain.section_limits import SectionName
from realign_cluster.training.adapters import adapters_off
from realign_cluster.training.dropout import DropoutContext
from realign_cluster.training.forward import Forward
from realign_cluster.training.parallel.base import MicroBatch, Objective, Piece, Sums
from realign_cluster.training.parallel.block_calls import Blocks, Plain, watch
from realign_cluster.training.parallel.spread import SpreadParameters

Group = mx.distributed.Group
_Run = Callable[[mx.array], list[mx.array]]  # hidden states -> what follows from them


@dataclass(frozen=True, slots=True)
class _Call:
    """What a block was run with; of what comes after the last block, the hidden states alone."""

    hidden: mx.array
    others: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


class FullySharded:
    """Made on all ranks at once. `entering` is told what for before every wait for others."""

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        *,
        dropout: DropoutContext | None = None,
        entering: Callable[[SectionName], None] = lambda section: None,
    ) -> None:
        """Cuts `model` in place, adapters attached, gradient checkpointing not. Raises UsageError if it cannot be run
        block by block.
        """
        self._model = model
        self._group = group
        self._dropout = dropout or DropoutContext()
        self._entering = entering
        self._section: SectionName = "load"
        self._waited = 0.0
        self._trainable = frozenset(name for name, _ in tree_flatten(model.trainable_parameters()))
        self._blocks = Blocks(model)
        self._reads = watch(model, self._blocks)
        self._ends = self._reads.before | self._reads.after
        self._trains_beginning = bool(self._reads.before & self._trainable)
        trained = [index for index, names in enumerate(self._reads.blocks) if names & self._trainable]
        self._lowest = 0 if self._trains_beginning else min(trained, default=len(self._reads.blocks))
        self._spread = SpreadParameters(model, group, progress=lambda: entering("load"))
        with self.callable_model("load"):
            self._forward = Forward(model)

    def parameters(self) -> dict[str, mx.array]:
        return {name: self._spread.own[name] for name in sorted(self._trainable)}

    def update(self, parameters: Mapping[str, mx.array]) -> None:
        self._spread.replace(parameters)

    def pieces(self) -> dict[str, Piece]:
        return {name: self._spread.pieces[name] for name in sorted(self._trainable)}

    def gradients(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> Sums:
        started, self._waited, self._section = time.perf_counter(), 0.0, "step"
        total = mx.zeros(metrics)
        sums = {name: mx.zeros(value.shape) for name, value in self.parameters().items()}
        for batch in self._in_step(batches):
            with self._dropout.keyed(batch.keys):
                total = total + self._add_gradients(batch, objective, metrics, sums)
            mx.eval(total, sums)
        self._section = "reduce"
        (total,) = self._sum_small([total])
        return Sums(
            gradients=sums,
            metrics=total,
            compute_seconds=time.perf_counter() - started - self._waited,
            reduce_seconds=self._waited,
        )

    def losses(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> mx.array:
        self._section = "evaluate"
        total = mx.zeros(metrics)
        for number, batch in enumerate(self._in_step(batches)):
            found = self._ahead(batch)
            if number < len(batches):  # an objective may know its own micro-batches only
                total = total + objective(found, batch)[1]
                mx.eval(total)
        return self._sum_small([total])[0]

    def log_probabilities(self, batches: Sequence[MicroBatch]) -> list[mx.array]:
        self._section = "reference"
        found = []
        with adapters_off(self._model):
            for batch in self._in_step(batches):
                found.append(mx.zeros(batch.sequences).at[batch.owners].add(self._ahead(batch)))
                mx.eval(found[-1])
        return found[: len(batches)]

    def norm_squared(self, gradients: Mapping[str, mx.array]) -> mx.array:
        cut, whole = mx.zeros(()), mx.zeros(())
        for name, value in gradients.items():
            squares = mx.square(value).sum(axis=-1).sum()  # row by row: float32 loses less
            if self._spread.pieces[name].axis < 0:
                whole = whole + squares
            else:
                cut = cut + squares
        return self._sum_small([cut])[0] + whole

    @contextmanager
    def callable_model(self, section: SectionName = "generate") -> Iterator[None]:
        """Until the end of the block the model may be called, without gradients, by all ranks alike. A collective."""
        self._section = section
        with self._spread.borrowing(self._ends), self._blocks.turn(self._run_block):
            self._spread.hold(self._gather(self._ends))
            yield

    def _in_step(self, batches: Sequence[MicroBatch]) -> Iterable[MicroBatch]:
        """Own micro-batches, then blank ones until every rank has had its own. A collective."""
        with self._waiting():
            counts = mx.distributed.all_gather(mx.array([len(batches)]), group=self._group, stream=mx.cpu)
            most = int(np.array(counts).max())
        return [*batches, *[_blank()] * (most - len(batches))]

    def _run_block(self, index: int, plain: Plain, hidden: mx.array, *others: Any, **named: Any) -> mx.array:
        names = self._reads.blocks[index]
        with self._spread.borrowing(names):
            self._spread.hold(self._gather(names))
            output = plain(hidden, *others, **named)
            mx.eval(output)
        return output

    def _ahead(self, batch: MicroBatch, calls: list[_Call] | None = None) -> mx.array:
        """(N,) log-probabilities, evaluated. With `calls` they are not: what each block and the end would be run with
        is added there, and the end has no weights.
        """
        before, after, last = self._reads.before, self._reads.after, len(self._reads.blocks) - 1

        def turn(index: int, plain: Plain, hidden: mx.array, *others: Any, **named: Any) -> mx.array:
            if index == 0:
                mx.eval(hidden)
                self._spread.hold(self._spread.hollow(before))
            output = self._run_block(index, plain, hidden, *others, **named)
            if calls is not None:
                calls.append(_Call(hidden, others, named))
            if index == last and calls is not None:
                calls.append(_Call(output))
            elif index == last:
                self._spread.hold(self._gather(after))
            return output

        with self._spread.borrowing(self._ends), self._blocks.turn(turn):
            self._spread.hold(self._spread.hollow(after) | self._gather(before))
            result = self._forward.log_probabilities(batch)
            if calls is None:
                mx.eval(result)
        return result

    def _add_gradients(
        self, batch: MicroBatch, objective: Objective, metrics: int, sums: dict[str, mx.array]
    ) -> mx.array:
        """Adds this micro-batch's gradients to `sums`, with those of the other ranks' at the same turn; (M,) metrics of
        this one.
        """
        calls: list[_Call] = []
        self._ahead(batch, calls)
        run: _Run = partial(self._end, batch, objective)
        last, ones = calls.pop().hidden, [mx.array(1.0), mx.zeros(metrics)]
        cotangent, (part,) = self._back(self._reads.after, run, last, ones, sums, further=self._lowest < len(calls))
        while len(calls) > self._lowest:
            call, index = calls.pop(), len(calls)
            run = partial(self._again, index, call)
            further = self._lowest < index or self._trains_beginning
            cotangent, _ = self._back(self._reads.blocks[index], run, call.hidden, [cotangent], sums, further=further)
        if self._trains_beginning:
            run = partial(self._beginning, batch)
            self._back(self._reads.before, run, mx.zeros(()), [cotangent], sums, further=False)
        return part

    def _back(
        self,
        names: frozenset[str],
        run: _Run,
        hidden: mx.array,
        cotangents: list[mx.array],
        sums: dict[str, mx.array],
        *,
        further: bool,
    ) -> tuple[mx.array, list[mx.array]]:
        """Adds to `sums` the gradients of the parameters `names`, of all ranks: (the cotangent of `hidden` if it has to
        go `further`, all but the first of what `run` gave).
        """
        gradients, cotangent, rest = self._gradients_of(names, run, hidden, cotangents, further=further)
        for name, value in self._reduce(gradients).items():
            sums[name] = sums[name] + value
        mx.eval(sums)
        return cotangent, rest

    def _gradients_of(
        self, names: frozenset[str], run: _Run, hidden: mx.array, cotangents: list[mx.array], *, further: bool
    ) -> tuple[dict[str, mx.array], mx.array, list[mx.array]]:
        trained = sorted(names & self._trainable)

        def function(hidden: mx.array, *values: mx.array) -> list[mx.array]:
            self._spread.hold(dict(zip(trained, values, strict=True)))
            return run(hidden)

        with self._spread.borrowing(names | self._ends):
            whole = self._spread.hollow(self._ends - names) | self._gather(names)
            self._spread.hold(whole)
            outputs, found = mx.vjp(function, [hidden, *[whole[name] for name in trained]], cotangents)
            gradients = {name: value.astype(mx.float32) for name, value in zip(trained, found[1:], strict=True)}
            cotangent, rest = found[0] if further else mx.zeros(()), outputs[1:]
            mx.eval(gradients, cotangent, rest)
        return gradients, cotangent, rest

    def _end(self, batch: MicroBatch, objective: Objective, hidden: mx.array) -> list[mx.array]:
        """(loss, metrics) of the hidden states that the last block gave."""
        last = len(self._reads.blocks) - 1

        def turn(index: int, plain: Plain, passing: mx.array, *others: Any, **named: Any) -> mx.array:
            return hidden if index == last else passing

        with self._blocks.turn(turn):
            return list(objective(self._forward.log_probabilities(batch), batch))

    def _again(self, index: int, call: _Call, hidden: mx.array) -> list[mx.array]:
        return [self._blocks.plain(index)(hidden, *call.others, **call.named)]

    def _beginning(self, batch: MicroBatch, _: mx.array) -> list[mx.array]:
        """The hidden states that the first block takes."""
        arrived: list[mx.array] = []

        def turn(index: int, plain: Plain, passing: mx.array, *others: Any, **named: Any) -> mx.array:
            if index == 0:
                arrived.append(passing)
            return passing

        with self._blocks.turn(turn):
            self._forward.log_probabilities(batch)
        return arrived

    def _gather(self, names: Iterable[str]) -> dict[str, mx.array]:
        with self._waiting():
            return self._spread.gather(names)

    def _reduce(self, gradients: Mapping[str, mx.array]) -> dict[str, mx.array]:
        with self._waiting():
            return self._spread.reduce(gradients)

    def _sum_small(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        mx.eval(arrays)
        with self._waiting():
            return self._spread.sum_small(arrays)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._entering(self._section)
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started


def _blank() -> MicroBatch:
    """One token and one target, of a sequence of length 0: goes through the model and counts as nothing."""
    nothing = mx.zeros((1,), dtype=mx.int32)
    return MicroBatch(
        tokens=nothing[None],
        positions=nothing,
        targets=nothing,
        owners=nothing,
        lengths=mx.zeros((2,), dtype=mx.int32),
        sequences=2,
        reference=mx.zeros((2,)),
    )
