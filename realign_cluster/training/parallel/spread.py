"""A model's parameters spread over ranks: each holds some rows of every one, and all of them for a while when asked.

Rows are those of axis 0, as even as they divide; what has fewer rows than there are ranks is held whole by all. Must
not know what the parameters are for. Every method that says so is a collective: all ranks call it, with the same names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from realign_cluster.training.parallel.base import Piece
from realign_cluster.training.pieces import cut

BUCKET_BYTES = 16 << 20  # of whole parameters that share a collective; a larger one has its own and is not copied

Group = mx.distributed.Group


class SpreadParameters:
    """`pieces` says what this rank holds of each parameter, `own` are those arrays, by name in the whole model."""

    def __init__(self, model: nn.Module, group: Group, *, progress: Callable[[], None] = lambda: None) -> None:
        """Cuts the model in place, one parameter at a time: of lazily loaded weights the rest is read and dropped."""
        self._model = model
        self._group = group
        self._scatters = _has_sum_scatter(group)
        self.pieces: dict[str, Piece] = {}
        self.own: dict[str, mx.array] = {}
        whole = dict(tree_flatten(model.parameters()))
        for name in sorted(whole):
            value = whole.pop(name)
            self.pieces[name] = piece = _piece(tuple(value.shape), group.rank(), group.size())
            self.own[name] = mx.contiguous(cut(value, piece))
            mx.eval(self.own[name])
            self.hold({name: self.own[name]})
            progress()

    def hold(self, arrays: Mapping[str, mx.array]) -> None:
        """Puts `arrays` into the model."""
        self._model.update(tree_unflatten(list(arrays.items())))

    def replace(self, arrays: Mapping[str, mx.array]) -> None:
        """Other values for this rank's pieces, cast to their dtypes. Views are copied: they would keep the whole."""
        values = {name: mx.contiguous(value.astype(self.own[name].dtype)) for name, value in arrays.items()}
        mx.eval(values)
        self.own |= values
        self.hold(values)

    @contextmanager
    def borrowing(self, names: Iterable[str]) -> Iterator[None]:
        """The model may hold anything in the place of `names` until the end of the block, then its own pieces again."""
        try:
            yield
        finally:
            self.hold({name: self.own[name] for name in names})

    def hollow(self, names: Iterable[str]) -> dict[str, mx.array]:
        """Whole arrays in shape only: for code that has to run but whose results nobody will look at. Lazy."""
        return {name: mx.zeros(self.pieces[name].whole, dtype=self.own[name].dtype) for name in names}

    def gather(self, names: Iterable[str]) -> dict[str, mx.array]:
        """The whole arrays, evaluated. A collective."""
        chosen = sorted(names)
        whole = {name: self.own[name] for name in chosen if self.pieces[name].axis < 0}
        for bucket in self._buckets([name for name in chosen if name not in whole]):
            parts = [_padded(self.own[name], self._most_rows(name)).reshape(-1) for name in bucket]
            flat = parts[0] if len(parts) == 1 else mx.concatenate(parts)
            everybody = mx.distributed.all_gather(flat[None], group=self._group, stream=mx.cpu)
            at = 0
            for name, part in zip(bucket, parts, strict=True):
                whole[name] = self._joined(name, everybody[:, at : at + part.size])
                at += part.size
            mx.eval(everybody, *[whole[name] for name in bucket])
        return whole

    def reduce(self, gradients: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Of whole float32 gradients, summed over ranks, this rank's pieces; evaluated. A collective."""
        chosen = sorted(gradients)
        together = [name for name in chosen if self.pieces[name].axis < 0]
        reduced = dict(zip(together, self.sum_small([gradients[name] for name in together]), strict=True))
        for bucket in self._buckets([name for name in chosen if name not in reduced]):
            rows = [self._apart(name, gradients[name]) for name in bucket]
            flat = rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=1)
            own = self._sum_of_own_row(flat)
            at = 0
            for name, row in zip(bucket, rows, strict=True):
                ((start, end),) = self.pieces[name].ranges
                rest = self.pieces[name].whole[1:]
                reduced[name] = mx.contiguous(
                    own[at : at + (end - start) * math.prod(rest)].reshape(end - start, *rest)
                )
                at += row.shape[1]
            mx.eval([reduced[name] for name in bucket])
        return reduced

    def sum_small(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """Sums over ranks, with the same bits on all of them whatever the backend does. Evaluated. A collective."""
        if not arrays:
            return []
        flat = mx.concatenate([value.reshape(-1) for value in arrays])
        summed = mx.distributed.all_gather(flat[None], group=self._group, stream=mx.cpu).sum(axis=0)
        found, at = [], 0
        for value in arrays:
            found.append(summed[at : at + value.size].reshape(value.shape))
            at += value.size
        mx.eval(found)
        return found

    def _buckets(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Names of one dtype together, up to BUCKET_BYTES of what is held here."""
        bucket: list[str] = []
        room = 0
        for name in sorted(names, key=lambda name: (str(self.own[name].dtype), name)):
            size = math.prod(self.pieces[name].whole) * self.own[name].itemsize
            if bucket and (size > room or self.own[name].dtype != self.own[bucket[0]].dtype):
                yield bucket
                bucket = []
            room = (room if bucket else BUCKET_BYTES) - size
            bucket.append(name)
        if bucket:
            yield bucket

    def _most_rows(self, name: str) -> int:
        """That any rank holds of a parameter."""
        return -(-self.pieces[name].whole[0] // self._group.size())

    def _joined(self, name: str, everybody: mx.array) -> mx.array:
        """(ranks, padded piece) -> the whole array."""
        shape, most, size = self.pieces[name].whole, self._most_rows(name), self._group.size()
        if most * size == shape[0]:
            return everybody.reshape(shape)
        apart = everybody.reshape(size, most, *shape[1:])
        bounds = [_rows(shape[0], rank, size) for rank in range(size)]
        return mx.concatenate([apart[rank, : end - start] for rank, (start, end) in enumerate(bounds)])

    def _apart(self, name: str, whole: mx.array) -> mx.array:
        """The whole array -> (ranks, padded piece)."""
        most, size = self._most_rows(name), self._group.size()
        if most * size == whole.shape[0]:
            return whole.reshape(size, -1)
        bounds = [_rows(whole.shape[0], rank, size) for rank in range(size)]
        return mx.stack([_padded(whole[start:end], most).reshape(-1) for start, end in bounds])

    def _sum_of_own_row(self, rows: mx.array) -> mx.array:
        if self._scatters:
            return mx.distributed.sum_scatter(rows, group=self._group, stream=mx.cpu).reshape(-1)
        return mx.distributed.all_sum(rows, group=self._group, stream=mx.cpu)[self._group.rank()]


def _rows(rows: int, rank: int, size: int) -> tuple[int, int]:
    return rows * rank // size, rows * (rank + 1) // size


def _piece(shape: tuple[int, ...], rank: int, size: int) -> Piece:
    if not shape or shape[0] < size:
        return Piece(whole=shape)
    return Piece(whole=shape, axis=0, ranges=(_rows(shape[0], rank, size),))


def _padded(value: mx.array, rows: int) -> mx.array:
    """Zeros below `value` up to `rows`: collectives want equal shapes."""
    missing = rows - value.shape[0]
    return mx.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1)) if missing else value


def _has_sum_scatter(group: Group) -> bool:
    """jaccl and nccl have it, ring and mpi refuse before anything is sent."""
    try:
        mx.eval(mx.distributed.sum_scatter(mx.zeros((group.size(), 1)), group=group, stream=mx.cpu))
    except RuntimeError:
        return False
    return True
