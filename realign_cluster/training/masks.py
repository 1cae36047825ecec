"""Packed rows in one sequence without attention across them: a stand-in for a block's cache that gives the mask.

mlx-lm's models ask a cache for their mask and take positions from its offset. Rotary positions only matter relative
to one another, so a row that begins in the middle of a sequence needs no position of its own. Models with absolute
positions cannot be packed: `takes_segments` says which can.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


def segment_mask(segments: mx.array, window: int | None = None) -> mx.array:
    """(B, 1, T, T) bool: position i sees j <= i of its own segment, within `window` positions. `segments` (B, T)
    int32.
    """
    length = segments.shape[1]
    rows, columns = mx.arange(length)[:, None], mx.arange(length)[None]
    seen = rows >= columns
    if window is not None:
        seen = seen & (rows < columns + window)
    return (seen & (segments[:, :, None] == segments[:, None, :]))[:, None]


class SegmentCache:
    """Keeps nothing; one serves every block of a model."""

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self._segments = segments

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        return segment_mask(self._segments, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values


def takes_segments(model: nn.Module) -> bool:
    """Whether two rows packed into one sequence give the logits that each gives alone. A model in parts is called by
    all ranks alike.
    """
    first, second = mx.array([[1, 2, 3, 0]]), mx.array([[2, 1, 0, 3]])
    cache = SegmentCache(mx.array([[0, 0, 0, 0, 1, 1, 1, 1]]))
    try:
        packed = model(mx.concatenate([first, second], axis=1), cache=[cache] * len(model.layers))
        alone = mx.concatenate([model(first), model(second)], axis=1)
        bound = 1e-4 if alone.dtype == mx.float32 else 0.05
        return bool((mx.abs(packed - alone).max() <= bound * mx.maximum(1.0, mx.abs(alone).max())).item())
    except (TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False
