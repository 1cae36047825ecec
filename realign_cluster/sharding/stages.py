"""A model cut into consecutive stages: this rank keeps its blocks, the ends keep the embedding, the norm and the head.

The model's own forward pass still runs, with stand-ins for what is elsewhere, so that its masks, scalings and per-block
differences stay its own business. Must not know what the model is run for, or how stages talk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from realign_cluster.domain.errors import UsageError
from realign_cluster.sharding.block_chain import NoChain, StandIn, TokenNumbers, watch

Layers = Sequence[tuple[int, int]]  # half-open ranges of blocks, in the order of the ranks


class CutModel:
    """This rank's part of `model`, whose parameters keep the names that they have in the whole model.

    `width` of hidden states; `takes` and `gives` are their dtypes before and after this stage's blocks. `vocabulary`
    and `logits_dtype` are the head's; `tied` says that it is the embedding. `prefix` of the names of what is cut.
    """

    def __init__(
        self, model: nn.Module, layers: Layers, rank: int, *, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Cuts `model` in place and reads what is left of it, block by block; of lazily loaded weights the others are
        never read. Raises UsageError for a model that cannot be cut.
        """
        outer, self.prefix = _language_model(model)
        _check_layout(model, outer, self.prefix)
        _check_layers(layers, len(outer.model.layers))
        try:
            self.width, dtypes = watch(outer.model)
        except NoChain as error:
            raise _cannot_cut(model, str(error)) from error
        logits = model(mx.array([[0, 1]]))  # never evaluated
        self.vocabulary, self.logits_dtype = logits.shape[-1], logits.dtype
        self.model, self._plain = model, type(model)
        self.rank, self.stages = rank, len(layers)
        self._held = start, end = layers[rank]
        self.takes, self.gives = dtypes[max(start - 1, 0)], dtypes[end - 1]
        self.tied = "lm_head" not in outer
        self._body, self._into, self._out_of = outer.model, _Edge(), _Edge()
        self._leave_out(outer, start, end, embedding=not (self.first or (self.last and self.tied)))
        for block in self._body.layers:
            mx.eval(block.parameters())
            progress()
        mx.eval(model.parameters())

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def last(self) -> bool:
        return self.rank == self.stages - 1

    @property
    def blocks(self) -> int:
        """Of the whole model."""
        return len(self._body.layers)

    def hidden(self, tokens: mx.array, cache: Sequence[Any] | None, received: mx.array | None) -> mx.array:
        """(B, T, width) for the stage after; not of the last one. `received` (B, T, width) from the stage before, None
        at the first.
        """
        with self.entered(received):
            self._body(tokens, cache=cache)  # what comes after the exit is never evaluated
            assert self._out_of.hidden is not None
            return self._out_of.hidden

    def call(self, tokens: mx.array, cache: Sequence[Any] | None, received: mx.array | None) -> mx.array:
        """The same of a plain call of the model: at the last stage logits (B, T, vocabulary). `cache` has an entry for
        each block of the whole model, and all of them are as far afterwards.
        """
        if self.last:
            with self.entered(received):
                result: mx.array = self._plain.__call__(self.model, tokens, cache=cache)
        else:
            result = self.hidden(tokens, cache, received)
        if cache is not None:
            self.advance(cache, tokens.shape[1])
        return result

    def advance(self, cache: Sequence[Any], tokens: int) -> None:
        """The entries of blocks that are elsewhere: masks may be made from the entry of any block."""
        start, end = self._held
        for elsewhere in [*cache[:start], *cache[end:]]:
            if hasattr(elsewhere, "offset"):
                elsewhere.offset += tokens

    @contextmanager
    def entered(self, received: mx.array | None) -> Iterator[None]:
        """Within the block the model's body begins with what came from the stage before."""
        self._into.hidden = received
        try:
            yield
        finally:
            self._into.hidden = self._out_of.hidden = None

    def _leave_out(self, outer: nn.Module, start: int, end: int, *, embedding: bool) -> None:
        blocks: list[nn.Module] = list(self._body.layers)
        for index, block in enumerate(blocks):
            if index == start - 1:
                blocks[index] = _Entrance(block, self._into)
            elif index == end:
                blocks[index] = _Exit(block, self._out_of)
            elif not start <= index < end:
                blocks[index] = StandIn(block)
        self._body.layers = blocks
        if embedding:
            self._body.embed_tokens = TokenNumbers(self.width, self.takes)
        if not self.last:
            self._body.norm = StandIn(self._body.norm)
            if "lm_head" in outer:
                outer.lm_head = StandIn(outer.lm_head)


@dataclass(slots=True)
class _Edge:
    """Hidden states on their way over the edge of a stage; no part of the model's tree, where they were parameters."""

    hidden: mx.array | None = None


class _Entrance(StandIn):
    """The block before the first one here: gives what came from the stage before."""

    def __init__(self, replaced: nn.Module, edge: _Edge) -> None:
        super().__init__(replaced)
        self._edge = edge

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden if self._edge.hidden is None else self._edge.hidden


class _Exit(_Entrance):
    """The block after the last one here: takes what the stage after needs."""

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        self._edge.hidden = hidden
        return hidden


def _language_model(model: nn.Module) -> tuple[nn.Module, str]:
    """The language model inside a multimodal wrapper, with the prefix of its parameters' names; else the model."""
    outer, prefix = model, ""
    while isinstance(inner := getattr(outer, "language_model", None), nn.Module):
        outer, prefix = inner, f"{prefix}language_model."
    return outer, prefix


def _check_layout(model: nn.Module, outer: nn.Module, prefix: str) -> None:
    """Raises UsageError unless every parameter is of a part that some stage holds."""
    body = getattr(outer, "model", None)
    parts = [getattr(body, name, None) for name in ("embed_tokens", "layers", "norm")]
    if not all(isinstance(part, nn.Module | list) for part in parts):
        raise _cannot_cut(model, "it has no model.embed_tokens, model.layers and model.norm")
    known = tuple(f"{prefix}{part}." for part in ("model.embed_tokens", "model.layers", "model.norm", "lm_head"))
    others = [name for name, _ in tree_flatten(model.parameters()) if not name.startswith(known)]
    if others:
        raise _cannot_cut(model, f"no stage is known for {others[0]}" + (" and others" if len(others) > 1 else ""))


def _check_layers(layers: Layers, blocks: int) -> None:
    ends = [0, *(end for _, end in layers)]
    if [start for start, _ in layers] != ends[:-1] or ends[-1] != blocks or any(a >= b for a, b in pairwise(ends)):
        raise ValueError(f"layers {list(layers)} are not consecutive ranges of {blocks} blocks")


def _cannot_cut(model: nn.Module, why: str) -> UsageError:
    kind = getattr(model, "model_type", type(model).__name__)
    return UsageError(
        f"models of type {kind} cannot be cut into a pipeline's stages: {why}", "--parallel data or tensor"
    )
