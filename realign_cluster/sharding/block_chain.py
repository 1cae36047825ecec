"""Whether a model's blocks form a plain chain, found by watching one forward pass that computes nothing.

mlx-lm's models differ in what surrounds their blocks (scalings, masks, windows by layer). What a pipeline needs is only
that hidden states go from block to block and nothing else does. Must not know ranks, weights or training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


class NoChain(Exception):
    """What keeps the blocks from being a chain."""


class StandIn(nn.Module):  # type: ignore[misc]
    """In the place of a module that is elsewhere, with its plain attributes; passes on what it gets."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        self.__dict__.update((name, value) for name, value in vars(replaced).items() if name not in vars(self))

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden


class TokenNumbers(nn.Module):  # type: ignore[misc]
    """In an embedding's place: hidden states (B, T, width) that depend on the token in the simplest way."""

    def __init__(self, width: int, dtype: mx.Dtype, scale: float = 1.0) -> None:
        super().__init__()
        self._width, self._dtype, self._scale = width, dtype, scale

    def __call__(self, tokens: mx.array) -> mx.array:
        spread = mx.linspace(-self._scale, self._scale, self._width)
        return (tokens[..., None] + spread).astype(self._dtype)


def watch(body: nn.Module) -> tuple[int, list[mx.Dtype]]:
    """(width of the hidden states, dtype of each block's output) of a body with `embed_tokens` and `layers`.

    Each block has to be called once, in order, with the very array that the one before gave, and what else it is called
    with must not depend on hidden states. Raises NoChain otherwise. Reads no weights.
    """
    try:
        calls, again = _calls(body, 1.0), _calls(body, 2.0)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as error:
        raise NoChain(f"running its blocks apart fails: {error}") from error
    if [id(call.block) for call in calls] != [id(block) for block in body.layers]:
        raise NoChain("its blocks are not run once each in their order")
    if any(after.taken is not before.given for before, after in pairwise(calls)):
        raise NoChain("something is computed between its blocks")
    for one, other in zip(calls, again, strict=True):
        if len(one.others) != len(other.others) or not all(map(_equal, one.others, other.others)):
            raise NoChain("its blocks take more from earlier ones than hidden states")
    return calls[0].given.shape[-1], [call.given.dtype for call in calls]


@dataclass(frozen=True, slots=True)
class _Call:
    block: nn.Module
    taken: mx.array
    given: mx.array
    others: list[tuple[str, Any]]  # the arguments after the hidden states, flat


class _Watched(StandIn):
    """Keeps what the block is called with, has its types and shapes worked out, gives hidden states of its own."""

    def __init__(self, block: nn.Module, calls: list[_Call], fill: float) -> None:
        super().__init__(block)
        self.__dict__.update(_block=block, _calls=calls, _fill=fill)  # not children

    def __call__(self, hidden: mx.array, *others: Any, **named: Any) -> mx.array:
        result = self._block(hidden, *others, **named)  # never evaluated
        if not isinstance(result, mx.array) or result.shape != hidden.shape:
            raise TypeError("a block gives something else than hidden states")
        given = mx.full(result.shape, self._fill, dtype=result.dtype)
        self._calls.append(_Call(self._block, hidden, given, tree_flatten([others, named])))
        return given


def _calls(body: nn.Module, fill: float) -> list[_Call]:
    """The calls of blocks in one pass over four tokens; `fill` makes the hidden states of one watching its own."""
    calls: list[_Call] = []
    tokens = mx.array([[0, 1, 2, 3]])
    embedding, blocks = body.embed_tokens, body.layers
    plain = embedding(tokens)
    try:
        body.embed_tokens = TokenNumbers(plain.shape[-1], plain.dtype, fill)
        body.layers = [_Watched(block, calls, fill) for block in blocks]
        body(tokens, cache=None)
    finally:
        body.embed_tokens, body.layers = embedding, blocks
    return calls


def _equal(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    if isinstance(one[1], mx.array) and isinstance(other[1], mx.array):
        return one[0] == other[0] and bool(mx.array_equal(one[1], other[1]))
    return one[0] == other[0] and type(one[1]) is type(other[1])
