"""A state that was cut one way, cut another way: arrays of the wanted pieces from the parts of one step.

Each tensor's entry in a part's manifest says where it lies in the whole one, so that any layout can be read into any
other. Only bytes are moved: the result is bit-identical. Must not know how a strategy cuts, and never imports MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from realign_cluster.domain.errors import RealignError
from realign_cluster.store.part_manifest import PartManifest, PieceOf
from realign_cluster.store.state_part import Tensor, open_part, read_header

Array = NDArray[np.generic]
ITEM_TYPES: Final[Mapping[str, type[np.generic]]] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "F16": np.float16,
    "BF16": np.uint16, "U32": np.uint32, "I32": np.int32, "F32": np.float32, "U64": np.uint64, "I64": np.int64,
    "F64": np.float64,
}  # fmt: skip


class Piece(Protocol):
    """As `PieceOf`: `ranges` of `axis` of a `whole` shape, concatenated; axis -1: all of it."""

    @property
    def whole(self) -> tuple[int, ...]: ...
    @property
    def axis(self) -> int: ...
    @property
    def ranges(self) -> tuple[tuple[int, int], ...]: ...


class Misfit(RealignError):
    """These parts do not make up the wanted state: names the tensor and the part."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "use an older state")


class HeldPart(NamedTuple):
    manifest: PartManifest
    tensors: Mapping[str, Tensor]


def open_parts(paths: Iterable[Path], progress: Callable[[], None] = lambda: None) -> list[HeldPart]:
    """All parts of one step, verified and mapped. Raises Corrupt, and Misfit if they do not belong together. `progress`
    is called after each tensor.
    """
    parts = [HeldPart(read_header(path), open_part(path, progress)) for path in paths]
    states = [part.manifest.state for part in parts]
    if len({(state.step, state.layout, state.parts, state.generation) for state in states}) != 1:
        raise Misfit(f"{len(parts)} parts are not of one state: {', '.join(state.name for state in states)}")
    for index in range(states[0].parts):
        count = sum(state.part == index for state in states)
        if count != 1:
            what = "is there twice" if count else "is missing"
            raise Misfit(f"part {index} of {states[0].parts} {what} beside {states[0].name}")
    return parts


def whole_pieces(parts: Sequence[HeldPart]) -> dict[str, PieceOf]:
    """Every tensor that any part holds a piece of, as a whole."""
    return {name: PieceOf(whole=entry.piece.whole) for part in parts for name, entry in part.manifest.tensors.items()}


def pieces_from(parts: Sequence[HeldPart], wanted: Mapping[str, Piece]) -> Iterator[tuple[str, str, Array]]:
    """Name, dtype code and array of each wanted piece; bfloat16 comes as uint16. One at a time: a copy, or a read-only
    view where one part holds just what is wanted.

    Raises Misfit for a tensor that the parts lack, hold with gaps or overlaps, or do not agree on.
    """
    for name, piece in wanted.items():
        yield name, *_piece_from(parts, name, piece)


def _piece_from(parts: Sequence[HeldPart], name: str, piece: Piece) -> tuple[str, Array]:
    wanted = _plain(piece)
    held = _holders(parts, name)
    if not held:
        raise Misfit(f"{name} is in no part of {parts[0].manifest.state.name if parts else 'an empty state'}")
    dtype = next(iter(held.values())).dtype
    for plain, tensor in held.items():
        if plain.whole != wanted.whole:
            raise Misfit(f"{name} has shape {plain.whole} in {tensor.part}, and {wanted.whole} is wanted")
        if tensor.dtype != dtype:
            raise Misfit(f"{name} is {tensor.dtype} in {tensor.part} and {dtype} elsewhere")
    _check_cover(name, held)
    if wanted in held:
        return dtype, held[wanted].array
    joined = np.empty(wanted.shape, ITEM_TYPES[dtype])
    for target in _blocks(wanted):
        for plain, tensor in held.items():
            for source in _blocks(plain):
                begin = tuple(map(max, target.begin, source.begin))
                end = tuple(map(min, target.end, source.end))
                if all(b < e for b, e in zip(begin, end, strict=True)):
                    joined[target.slices(begin, end)] = tensor.array[source.slices(begin, end)]
    return dtype, joined


class _Holder(NamedTuple):
    """A piece of a tensor and the name of the part that it is in."""

    part: str
    dtype: str
    array: Array


def _holders(parts: Sequence[HeldPart], name: str) -> dict[PieceOf, _Holder]:
    """The different pieces there are of a tensor. Raises Misfit where parts differ on the same piece."""
    held: dict[PieceOf, _Holder] = {}
    seen: dict[PieceOf, tuple[str, int]] = {}
    for part in parts:
        entry = part.manifest.tensors.get(name)
        if entry is None:
            continue
        plain, at = _plain(entry.piece), part.manifest.state.name
        if plain.axis != -1 and not plain.ranges:
            continue  # a rank whose share of it is empty
        if seen.setdefault(plain, (entry.dtype, entry.crc32)) != (entry.dtype, entry.crc32):
            raise Misfit(f"{name} differs between {held[plain].part} and {at}")
        if plain not in held:
            tensor = part.tensors[name]
            array = np.frombuffer(tensor.data, ITEM_TYPES[tensor.dtype]).reshape(tensor.shape)
            held[plain] = _Holder(at, tensor.dtype, array)
    return held


def _check_cover(name: str, held: Mapping[PieceOf, _Holder]) -> None:
    """Raises Misfit unless the pieces make up the whole, each element once."""
    axes = {plain.axis for plain in held}
    if len(axes) > 1:
        raise Misfit(f"{name} is cut in different ways in {' and '.join(tensor.part for tensor in held.values())}")
    if axes == {-1}:
        return
    (axis,) = axes
    ranges = sorted((begin, end, tensor.part) for plain, tensor in held.items() for begin, end in plain.ranges)
    at, last = 0, ""
    for begin, end, part in ranges:
        if begin < at:
            raise Misfit(f"{name}: {begin} to {min(at, end)} of axis {axis} are in both {last} and {part}")
        if begin > at:
            raise Misfit(f"{name}: {at} to {begin} of axis {axis} are in no part; {part} begins behind them")
        at, last = end, part
    whole = next(iter(held)).whole[axis]
    if at < whole:
        raise Misfit(f"{name}: {at} to {whole} of axis {axis} are in no part; {last} ends before them")


def _plain(piece: Piece) -> PieceOf:
    """The one way to say it: adjacent ranges joined, empty ones left out, all of an axis as a whole."""
    whole, ranges = tuple(piece.whole), list[tuple[int, int]]()
    if piece.axis == -1 or not whole[piece.axis]:
        return PieceOf(whole=whole)
    for begin, end in piece.ranges:
        if begin == end:
            continue
        if ranges and ranges[-1][1] == begin:
            begin = ranges.pop()[0]
        ranges.append((begin, end))
    if ranges == [(0, whole[piece.axis])]:
        return PieceOf(whole=whole)
    return PieceOf(whole=whole, axis=piece.axis, ranges=tuple(ranges))


class _Block(NamedTuple):
    """One range of a piece: `begin` to `end` of the whole, axis by axis, which lies `shift` earlier in the piece."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    shift: tuple[int, ...]

    def slices(self, begin: Sequence[int], end: Sequence[int]) -> tuple[slice, ...]:
        """Where in the piece a region of the whole lies."""
        return tuple(slice(b - s, e - s) for b, e, s in zip(begin, end, self.shift, strict=True))


def _blocks(piece: PieceOf) -> Iterator[_Block]:
    rank, at = len(piece.whole), 0
    if piece.axis == -1:
        yield _Block((0,) * rank, piece.whole, (0,) * rank)
    for begin, end in piece.ranges:
        on_axis = [
            (begin, end, begin - at) if axis == piece.axis else (0, length, 0)
            for axis, length in enumerate(piece.whole)
        ]
        yield _Block(*(tuple(column) for column in zip(*on_axis, strict=True)))
        at += end - begin
