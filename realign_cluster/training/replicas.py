"""Replicas made equal again: unlike devices round differently, and what their copies hold drifts apart step by step.

Only collectives over bits are used, so that copies that are equal stay as they are to the bit. Must not know steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

Group = mx.distributed.Group


def of_first(value: mx.array, group: Group) -> mx.array:
    """Rank 0's, on all ranks, to the bit. A collective."""
    bits = _bits(value)
    own = bits if group.rank() == 0 else mx.zeros_like(bits)
    return mx.distributed.all_sum(own, group=group, stream=mx.cpu).view(value.dtype).reshape(value.shape)


def aligned(state: Mapping[str, mx.array], group: Group) -> dict[str, mx.array] | None:
    """Rank 0's `state` where any rank's differs from another's; None where all are equal. A collective."""
    sums = mx.stack([mx.sum(_bits(value)) for _, value in sorted(state.items())])  # wraps around: any bit counts
    said = np.array(mx.distributed.all_gather(sums[None], group=group, stream=mx.cpu))
    if (said == said[0]).all():
        return None
    found: dict[str, mx.array] = {}
    for name, value in sorted(state.items()):
        found[name] = of_first(value, group)
        mx.eval(found[name])
    return found


def _bits(value: mx.array) -> mx.array:
    """As one line of uint32."""
    return value.reshape(-1).view(mx.uint32)
