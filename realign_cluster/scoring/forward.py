"""Log-probabilities of chosen tokens, fast: length-sorted batches, logits only where they are scored, prefixes
prefilled once.

Takes trees of token segments and fills in one float32 per wanted token. Knows mlx-lm's models and caches; must not
know texts, rows or score kinds. A tree with children is run alone, its cache rewound between children; trees without
are batched by length.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx_lm.models.cache import KVCache, RotatingKVCache

from realign_cluster.scoring.segments import Segment, flatten, join_trunks

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How to cut work for one device. All in tokens, except `logit_rows`."""

    batch_tokens: int  # of one batch, padding included; a longer sequence is a batch of its own
    # A sequence is run this many tokens at a time: bounds memory, and on a CPU skips attention above the diagonal.
    chunk: int
    logit_rows: int  # positions whose logits exist at once


@dataclass(slots=True)
class Work:
    """What a run did. `tokens` went through the model, without padding; `padded` with it; `shapes` counts (batch,
    length).
    """

    tokens: int = 0
    padded: int = 0
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, other: Work) -> None:
        self.tokens += other.tokens
        self.padded += other.padded
        self.shapes += other.shapes

    def describe(self) -> str:
        """ "32x256 16x512": batch sizes by padded length, most frequent first."""
        return " ".join(f"{batch}x{length}" for (batch, length), _ in self.shapes.most_common(8))


class RunnableModel(Protocol):
    """What is run: one model (`head.SplitModel`), or two side by side."""

    @property
    def model(self) -> nn.Module: ...
    def make_cache(self) -> list[Any]: ...
    def kernels(self) -> AbstractContextManager[Any]: ...
    def hidden(self, tokens: mx.array, cache: Sequence[Any] | None = None) -> mx.array: ...
    def each(self, batches: Iterable[mx.array]) -> Iterator[mx.array]: ...
    def kept(self, cache: Sequence[Any]) -> list[Any]: ...
    def logits(self, hidden: mx.array) -> mx.array: ...


class Valuation(NamedTuple):
    """What becomes of (n, vocabulary) logits: k wanted (row, target) pairs -> (k,) float32; and the same in NumPy."""

    on_device: Callable[[mx.array, Integers, Integers], mx.array]
    on_cpu: Callable[[mx.array, Integers, Integers], Floats]


class Forward:
    """Runs one model. `one_by_one`: every tree alone and unpadded, so that a row's numbers depend on that row only.

    `valuation`: what a number says of its token; its log-probability unless another is given.
    """

    def __init__(
        self,
        split: RunnableModel,
        shape: Shape,
        *,
        on_cpu: bool,
        one_by_one: bool,
        valuation: Valuation | None = None,
    ) -> None:
        self.shape = shape
        self.split = split
        self._valuation = valuation or LOG_PROBABILITIES
        self._on_cpu = on_cpu
        self._one_by_one = one_by_one
        self._pending: deque[tuple[Integers, mx.array, Floats]] = deque()

    def run(self, trees: Iterable[Segment], results: Floats, progress: Callable[[], None] | None = None) -> Work:
        """Fill `results` at every slot of `trees`. `progress` is called after each piece of work that the device
        finished.
        """
        work, step = Work(), progress or _nothing
        single, branching = self._sort(trees)
        self._pending.clear()  # of a run that failed
        with self._kernels():
            self._run_batches(list(self._batches(single)), results, work, step)
            for tree in branching:
                self._run_tree(tree, self.split.make_cache(), results, work, step)
            while self._pending:
                self._take_oldest()
        return work

    def run_batched(self, trees: list[Segment], results: Floats, progress: Callable[[], None]) -> None:
        """All of `trees`, which have no children and are of one length, in one batch: for measuring."""
        with self._kernels():
            self._run_batches([trees], results, Work(), progress)
            while self._pending:
                self._take_oldest()

    def _kernels(self) -> AbstractContextManager[Any]:
        return self.split.kernels() if self._on_cpu else nullcontext()

    def _sort(self, trees: Iterable[Segment]) -> tuple[list[Segment], list[Segment]]:
        """Those without children, longest first, and those with, joined. Whether a tree may branch follows from it
        alone.
        """
        single: list[Segment] = []
        branching: list[Segment] = []
        cache: list[Any] = []
        for tree in trees:
            if tree.children:
                cache = cache or self.split.make_cache()
                if _can_rewind(cache, _depth(tree)):
                    branching.append(tree)
                    continue
            single += flatten(tree)
        single.sort(key=lambda tree: -len(tree.tokens))
        return single, join_trunks(branching)

    def _batches(self, trees: Sequence[Segment]) -> Iterable[list[Segment]]:
        """Longest first, so that neighbours are of like length."""
        batch: list[Segment] = []
        for tree in trees:
            room = self.shape.batch_tokens >= len(batch[0].tokens) * (len(batch) + 1) if batch else True
            if batch and (self._one_by_one or not room):
                yield batch
                batch = []
            batch.append(tree)
        if batch:
            yield batch

    def _run_batches(
        self, batches: Sequence[list[Segment]], results: Floats, work: Work, progress: Callable[[], None]
    ) -> None:
        """Longest first."""
        for batch in batches:
            length = len(batch[0].tokens)
            work.shapes[len(batch), length] += 1
            work.tokens += sum(len(tree.tokens) for tree in batch)
            work.padded += len(batch) * length
        long = [batch for batch in batches if len(batch[0].tokens) > self.shape.chunk]
        short = batches[len(long) :]
        for batch in long:
            cache = self.split.make_cache()
            self._run_chunks(_padded(batch), cache, _Wanted.of(batch), results, progress)
        hidden_of_each = self.split.each(mx.array(_padded(batch)) for batch in short)
        for batch, hidden in zip(short, hidden_of_each, strict=True):
            self._collect(hidden, _Wanted.of(batch), 0, results, ())
            progress()

    def _run_tree(
        self, tree: Segment, cache: list[Any], results: Floats, work: Work, progress: Callable[[], None]
    ) -> None:
        """Leaves the cache at the end of this segment."""
        tokens = np.array([tree.tokens], dtype=np.int32)
        work.shapes[1, tokens.size] += 1
        work.tokens += tokens.size
        work.padded += tokens.size
        self._run_chunks(tokens, cache, _Wanted.of([tree]), results, progress)
        for child in tree.children:
            self._run_tree(child, cache, results, work, progress)
            for layer in cache:
                layer.trim(len(child.tokens))

    def _run_chunks(
        self, tokens: Integers, cache: list[Any], wanted: _Wanted, results: Floats, progress: Callable[[], None]
    ) -> None:
        for start in range(0, tokens.shape[1], self.shape.chunk):
            end = min(start + self.shape.chunk, tokens.shape[1])
            hidden = self.split.hidden(mx.array(tokens[:, start:end]), cache)
            self._collect(hidden, wanted.between(start, end), start, results, self.split.kept(cache))
            progress()

    def _collect(self, hidden: mx.array, wanted: _Wanted, start: int, results: Floats, state: Any) -> None:
        """Log-probabilities from hidden states (batch, length, width) that begin at position `start`; also evaluates
        `state`.
        """
        if not len(wanted.slots):
            self._evaluate(state or hidden)
            return
        flat = wanted.rows * hidden.shape[1] + (wanted.positions - start)
        places, place_of = np.unique(flat, return_inverse=True)
        chosen = hidden.reshape(-1, hidden.shape[-1])[mx.array(places.astype(np.int32))]
        step = self.shape.logit_rows
        for first in range(0, len(places), step):
            logits = self.split.logits(chosen[first : first + step])
            inside = np.flatnonzero((place_of >= first) & (place_of < first + step))
            rows = (place_of[inside] - first).astype(np.int32)
            slots, targets = wanted.slots[inside], wanted.targets[inside]
            if self._on_cpu:
                results[slots] = self._valuation.on_cpu(logits, rows, targets)
            else:
                self._pending.append((slots, self._valuation.on_device(logits, rows, targets), results))
                mx.async_eval(self._pending[-1][1])  # type: ignore[no-untyped-call]
                if len(self._pending) > 1:
                    self._take_oldest()
        if state:
            self._evaluate(state)

    def _evaluate(self, arrays: Any) -> None:
        """On a GPU only begin: the next piece is put together meanwhile, and MLX itself bounds what is in flight."""
        if self._on_cpu:
            mx.eval(arrays)
        else:
            mx.async_eval(arrays)  # type: ignore[no-untyped-call]

    def _take_oldest(self) -> None:
        slots, values, results = self._pending.popleft()
        results[slots] = np.array(values)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a batch has to give, one entry per token: row of the batch, position in it, target token, slot of the
    result.
    """

    rows: Integers
    positions: Integers
    targets: Integers
    slots: Integers

    @staticmethod
    def of(batch: Sequence[Segment]) -> _Wanted:
        counts = [len(tree.slots) for tree in batch]
        return _Wanted(
            np.repeat(np.arange(len(batch), dtype=np.int32), counts),
            np.array([position for tree in batch for position in tree.positions], dtype=np.int32),
            np.array([target for tree in batch for target in tree.targets], dtype=np.int32),
            np.array([slot for tree in batch for slot in tree.slots], dtype=np.int32),
        )

    def between(self, start: int, end: int) -> _Wanted:
        inside = (self.positions >= start) & (self.positions < end)
        return _Wanted(self.rows[inside], self.positions[inside], self.targets[inside], self.slots[inside])


def _padded(batch: Sequence[Segment]) -> Integers:
    """(batch, length of the longest, which is the first), zeros at the end of the others."""
    tokens = np.zeros((len(batch), len(batch[0].tokens)), dtype=np.int32)
    for row, tree in enumerate(batch):
        tokens[row, : len(tree.tokens)] = tree.tokens
    return tokens


def _log_probabilities(logits: mx.array, rows: Integers, targets: Integers) -> mx.array:
    """(n, vocabulary) logits, k wanted (row, target) pairs -> (k,) float32, nats."""
    logits = logits.astype(mx.float32)
    at = mx.array(rows)
    return logits[at, mx.array(targets)] - mx.logsumexp(logits, axis=-1)[at]


def _log_probabilities_on_cpu(logits: mx.array, rows: Integers, targets: Integers) -> Floats:
    """The same with NumPy, whose exp is vectorised: MLX's CPU backend takes about 10 ns an element for it, NumPy half
    of one.
    """
    values = np.array(logits.astype(mx.float32), copy=False)
    highest = values.max(axis=-1, keepdims=True)
    values -= highest
    picked = values[rows, targets]
    np.exp(values, out=values)
    result: Floats = picked - np.log(values.sum(axis=-1))[rows]
    return result


LOG_PROBABILITIES = Valuation(_log_probabilities, _log_probabilities_on_cpu)


def _can_rewind(cache: Sequence[Any], tokens: int) -> bool:
    """Plain caches always; windowed ones while nothing has rotated out; recurrent state never."""
    return all(
        type(layer) is KVCache or (type(layer) is RotatingKVCache and tokens < layer.max_size and layer.keep == 0)
        for layer in cache
    )


def _depth(tree: Segment) -> int:
    return len(tree.tokens) + max((_depth(child) for child in tree.children), default=0)


def _nothing() -> None:
    return None
