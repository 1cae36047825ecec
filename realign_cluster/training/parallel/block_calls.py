"""The calls of a model's blocks, for whoever runs them one by one; and which parameters a model reads around them.

Found by watching one forward pass that is built but never computed, not by the model's type. Must not know ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from realign_cluster.domain.errors import UsageError

Plain = Callable[..., mx.array]  # (hidden states, other arguments) -> hidden states
Turn = Callable[..., mx.array]  # (index of a block, what it computes, hidden states, other arguments) -> hidden states


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Parameter names: read `before` the first block, of each of the `blocks`, read `after` the last.

    Tied embeddings are both before and after.
    """

    before: frozenset[str]
    blocks: tuple[frozenset[str], ...]
    after: frozenset[str]


class Blocks:
    """The blocks of a model, whose calls go through whoever has the turn. Parameters keep their names."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: list[nn.Module] = list(model.layers)
        self._types = [type(block) for block in self.modules]
        self._turn: Turn | None = None
        for index, block in enumerate(self.modules):
            block.__class__ = self._taking_calls(index)

    @contextmanager
    def turn(self, turn: Turn) -> Iterator[None]:
        """Until the end of the block, a call of block i with `hidden` and others is turn(i, plain, hidden, others):
        `plain` is the block as it was.
        """
        before, self._turn = self._turn, turn
        try:
            yield
        finally:
            self._turn = before

    def plain(self, index: int) -> Plain:
        """The block as it was."""
        return partial(self._types[index].__call__, self.modules[index])

    def _taking_calls(self, index: int) -> type:
        was = self._types[index]

        def call(_: nn.Module, *arguments: Any, **named: Any) -> mx.array:
            if self._turn is None:
                return self.plain(index)(*arguments, **named)
            return self._turn(index, self.plain(index), *arguments, **named)

        return type(was.__name__, (was,), {"__call__": call, "__module__": was.__module__})


def watch(model: nn.Module, blocks: Blocks) -> Reads:
    """Raises UsageError unless the blocks are a chain: each called once, in order, with the hidden states of the one
    before and otherwise only with what depends on neither weights nor hidden states.
    """
    names, ends = _parameters(model, blocks)
    watched = _Watched(frozenset(ends))  # names alone: classes made below outlive it until they are collected
    others = []
    try:
        for fill in (mx.zeros, mx.ones):
            model.update(tree_unflatten([(name, fill(value.shape, value.dtype)) for name, value in ends.items()]))
            others.append(watched.run(model, blocks, fill))
    finally:
        model.update(tree_unflatten(list(ends.items())))
    for index, (one, other) in enumerate(zip(*others, strict=True)):
        if len(one) != len(other) or not all(map(_equal, one, other)):
            raise _not_a_chain(f"block {index} takes more than hidden states")
    if between := watched.read["between"]:
        raise _not_a_chain(f"{min(between)} is used between its blocks")
    return Reads(before=frozenset(watched.read["before"]), blocks=names, after=frozenset(watched.read["after"]))


class _Watched:
    """Where parameters of the ends were read, in passes whose blocks give made-up hidden states."""

    def __init__(self, ends: frozenset[str]) -> None:
        self._ends = ends
        self.read: dict[str, set[str]] = {"before": set(), "between": set(), "after": set()}

    def run(self, model: nn.Module, blocks: Blocks, fill: Callable[..., mx.array]) -> list[list[Any]]:
        """What each block was called with besides hidden states, flat."""
        where = "before"
        given: list[mx.array] = []
        found: list[list[Any]] = []

        def turn(index: int, plain: Plain, hidden: mx.array, *others: Any, **named: Any) -> mx.array:
            nonlocal where
            if index != len(given) or (given and hidden is not given[-1]):
                raise _not_a_chain(f"block {index} is not given what the one before it gives")
            output = plain(hidden, *others, **named)  # never computed
            if not isinstance(output, mx.array) or output.shape != hidden.shape:
                raise _not_a_chain(f"block {index} gives more than hidden states")
            given.append(fill(output.shape, output.dtype))
            found.append([value for _, value in tree_flatten([others, named])])
            where = "after" if len(given) == len(blocks.modules) else "between"
            return given[-1]

        def note(name: str) -> None:
            if name in self._ends:
                self.read[where].add(name)

        with blocks.turn(turn), _reads_noted(model, note):
            model(mx.array([[0, 1, 2, 3]], dtype=mx.int32))
        if where != "after":
            raise _not_a_chain(f"{len(given)} of {len(blocks.modules)} blocks were run")
        return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, mx.array) and isinstance(other, mx.array):
        return bool(mx.array_equal(one, other))
    return type(one) is type(other)


def _parameters(model: nn.Module, blocks: Blocks) -> tuple[tuple[frozenset[str], ...], dict[str, mx.array]]:
    """(names of each block's parameters, the other parameters by name). Raises UsageError for one with two names."""
    paths = {id(module): path for path, module in model.named_modules()}
    everything = dict(tree_flatten(model.parameters()))
    seen: dict[int, str] = {}
    for name, value in everything.items():
        if seen.setdefault(id(value), name) != name:
            raise _not_a_chain(f"{name} is also {seen[id(value)]}")
    prefixes = [paths[id(block)] + "." for block in blocks.modules]
    names = tuple(frozenset(name for name in everything if name.startswith(prefix)) for prefix in prefixes)
    inside = frozenset().union(*names)
    return names, {name: value for name, value in everything.items() if name not in inside}


@contextmanager
def _reads_noted(model: nn.Module, note: Callable[[str], None]) -> Iterator[None]:
    """Until the end of the block, `note` is told the name of every array of a module that is looked at."""
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if any(isinstance(value, mx.array) for value in module.values()):
                stack.callback(setattr, module, "__class__", type(module))
                module.__class__ = _noting(type(module), f"{path}." if path else "", note)
        yield


def _noting(was: type, prefix: str, note: Callable[[str], None]) -> type:
    """Modules are dictionaries of their arrays: they are read as items, by `get`, or as attributes, which use `get`."""

    def look(value: Any, key: str) -> Any:
        if isinstance(value, mx.array):
            note(prefix + key)
        return value

    return type(
        was.__name__,
        (was,),
        {
            "__getitem__": lambda module, key: look(dict.__getitem__(module, key), key),
            "get": lambda module, key, default=None: look(dict.get(module, key, default), key),
            "__module__": was.__module__,
        },
    )


def _not_a_chain(why: str) -> UsageError:
    return UsageError(
        f"this model cannot be run block by block: {why}", "--parallel data or tensor, or a model of another type"
    )
