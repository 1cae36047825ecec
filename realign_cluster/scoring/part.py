"""One rank's part of a model that a group holds, and how a batch gets through all of them.

The last rank leads. A batch's tokens go round the ring of ranks: from the leader to the first, and on from each to the
next. Of a pipeline, hidden states follow them and arrive where the tokens came from. So all ranks call the same model
alike, and only the leader knows rows and scores. Must not know frames, jobs or how ranks were joined.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from realign_cluster.domain.divisibility import TENSOR_MODEL_TYPES
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.world import WorldPlan
from realign_cluster.scoring.head import SplitModel
from realign_cluster.sharding.stages import CutModel
from realign_cluster.sharding.wire import Wire

Group = mx.distributed.Group
NO_CACHE = -1


class OutOfStep(BaseException):
    """Nobody knows what the other ranks wait for: this process ends, and the group with it. No row is tried again."""


class Part(Protocol):
    """`ahead`: how many batches the ranks before the leader may be ahead of it. `wire`: what a rank hears and says."""

    model: nn.Module
    wire: Wire
    ahead: int

    def lead(self, tokens: mx.array, cache: Sequence[Any] | None, run: Callable[[], mx.array]) -> mx.array: ...
    def follow(self, tokens: mx.array, cache: Sequence[Any] | None) -> None: ...


def make_part(model: nn.Module, world: WorldPlan, group: Group, progress: Callable[[], None]) -> Part:
    """Cuts a lazily loaded model in place and reads this rank's part of it. Raises UsageError if it cannot be cut."""
    if not all(hasattr(layer, "offset") for layer in make_prompt_cache(model)):
        raise UsageError(f"models of type {model.model_type} keep a state of which no part can be taken back")
    if world.parallel == "pipeline":
        return PipelinePart(CutModel(model, world.layers, group.rank(), progress=progress), group)
    return TensorPart(model, group, progress)


class PipelinePart:
    def __init__(self, cut: CutModel, group: Group) -> None:
        self._cut = cut
        self.model = cut.model
        self.ahead = group.size() - 1
        self.wire = Wire(group)

    def lead(self, tokens: mx.array, cache: Sequence[Any] | None, run: Callable[[], mx.array]) -> mx.array:
        with self._cut.entered(self._receive(tokens)):
            return self._done(run(), tokens, cache)

    def follow(self, tokens: mx.array, cache: Sequence[Any] | None) -> None:
        received = None if self._cut.first else self._receive(tokens)
        self.wire.send(self._done(self._cut.hidden(tokens, cache, received), tokens, cache), self._cut.rank + 1)

    def _receive(self, tokens: mx.array) -> mx.array:
        shape = (*tokens.shape, self._cut.width)
        return self.wire.wait(self.wire.expect(shape, self._cut.takes, self._cut.rank - 1))

    def _done(self, hidden: mx.array, tokens: mx.array, cache: Sequence[Any] | None) -> mx.array:
        _evaluate(hidden, cache)
        if cache is not None:
            self._cut.advance(cache, tokens.shape[1])
        return hidden


class TensorPart:
    """The sums in every block keep all ranks together, so none is ahead."""

    ahead = 0

    def __init__(self, model: nn.Module, group: Group, progress: Callable[[], None]) -> None:
        if model.model_type not in TENSOR_MODEL_TYPES:
            raise UsageError(f"models of type {model.model_type} are not cut between ranks")
        self.model = model
        self.wire = Wire(group)
        model.shard(group)
        for block in model.layers:
            mx.eval(block.parameters())
            progress()
        mx.eval(model.parameters())
        # Making one runs the model: a collective, and the leader makes its own.
        self._split = SplitModel(model) if group.rank() < group.size() - 1 else None

    def lead(self, tokens: mx.array, cache: Sequence[Any] | None, run: Callable[[], mx.array]) -> mx.array:
        return _evaluate(run(), cache)

    def follow(self, tokens: mx.array, cache: Sequence[Any] | None) -> None:
        assert self._split is not None
        _evaluate(self._split.hidden(tokens, cache), cache)


class LeadingModel(SplitModel):
    """The model of a group, on the rank that leads it: what it is asked for, all ranks compute."""

    def __init__(self, part: Part, group: Group) -> None:
        super().__init__(part.model)
        self._part = part
        self._first = Wire(group)  # apart from what comes in: neither waits for the other
        self._under_way = 0

    def hidden(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        self._check()
        self._announce(tokens, NO_CACHE if cache is None else cache[0].offset)
        return self._run(tokens, cache)

    def each(self, batches: Iterable[mx.array]) -> Iterator[mx.array]:
        """While one batch is here, those after it are with the ranks before."""
        self._check()
        announced: deque[mx.array] = deque()
        for tokens in batches:
            self._announce(tokens, NO_CACHE)
            announced.append(tokens)
            if len(announced) > self._part.ahead:
                yield self._run(announced.popleft(), None)
        while announced:
            yield self._run(announced.popleft(), None)

    def kept(self, cache: Sequence[Any]) -> list[Any]:
        return []  # evaluated already

    def _check(self) -> None:
        if self._under_way:
            raise OutOfStep(f"{self._under_way} batches are under way that nobody waits for")

    def _announce(self, tokens: mx.array, offset: int) -> None:
        self._under_way += 1
        for said in (mx.array([*tokens.shape, offset], dtype=mx.int32), tokens):
            mx.eval(said)
            self._first.send(said, 0)
        if self._part.ahead == 0:
            self._first.flush()  # before sums of the model's own use the same link

    def _run(self, tokens: mx.array, cache: Sequence[Any] | None) -> mx.array:
        try:
            hidden = self._part.lead(tokens, cache, lambda: super(LeadingModel, self).hidden(tokens, cache))
        except Exception as error:
            raise OutOfStep(f"a batch did not get through the group: {error}") from error
        self._under_way -= 1
        return hidden


def follow(part: Part, group: Group, progress: Callable[[], None]) -> NoReturn:
    """Takes part in whatever the leader computes. Raises RuntimeError when the group is over."""
    wire, rank, leader = part.wire, group.rank(), group.size() - 1
    before = (rank - 1) % group.size()
    cache: list[Any] = []
    while True:
        heading = wire.wait(wire.expect((3,), mx.int32, before))
        rows, length, offset = (int(number) for number in heading.tolist())  # type: ignore[union-attr, arg-type]
        tokens = wire.wait(wire.expect((rows, length), mx.int32, before))
        if rank + 1 < leader:
            wire.send(heading, rank + 1)
            wire.send(tokens, rank + 1)
            wire.flush()  # before sums of the model's own use the same link
        if offset == 0:
            cache = make_prompt_cache(part.model)
        for layer in cache if offset > 0 else []:
            layer.trim(layer.offset - offset)
        part.follow(tokens, cache if offset >= 0 else None)
        progress()


def _evaluate(hidden: mx.array, cache: Sequence[Any] | None) -> mx.array:
    mx.eval(hidden, [layer.state for layer in cache or [] if not layer.empty()])
    return hidden
