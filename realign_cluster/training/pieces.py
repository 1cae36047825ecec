"""Cutting whole arrays into the pieces that ranks hold, and putting pieces together again.

Must not know why something is cut the way it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import mlx.core as mx

from realign_cluster.training.parallel.base import Piece


def cut(whole: mx.array, piece: Piece) -> mx.array:
    """The part of `whole` that `piece` names. Raises ValueError if it is a piece of something of another shape."""
    if tuple(whole.shape) != piece.whole:
        raise ValueError(f"a piece of shape {piece.whole} cannot be cut from one of shape {tuple(whole.shape)}")
    if piece.axis < 0:
        return whole
    parts = [whole[there] for there, _ in _places(piece)]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=piece.axis)


def gather(
    parts: Mapping[str, mx.array], pieces: Mapping[str, Piece], group: mx.distributed.Group
) -> dict[str, mx.array]:
    """The whole arrays, evaluated, on every rank of `group`. All ranks hold the same names, each its piece."""
    whole = {}
    for name in sorted(parts):
        value, piece = parts[name], pieces[name]
        if piece.axis >= 0:
            padded = mx.zeros(piece.whole, dtype=value.dtype)
            for there, here in _places(piece):
                padded[there] = value[here]
            value = mx.distributed.all_sum(padded, group=group, stream=mx.cpu)
        mx.eval(value)
        whole[name] = value
    return whole


def _places(piece: Piece) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Of each range: where it lies in the whole array, and where in the piece."""
    before = (slice(None),) * piece.axis
    at = 0
    for start, end in piece.ranges:
        yield (*before, slice(start, end)), (*before, slice(at, at + end - start))
        at += end - start
