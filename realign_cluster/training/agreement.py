"""What all ranks decide together after a step: to stop, to use new shares, to leave a snapshot.

Each rank says what it has heard and whether it is ready; all see what all said, so all decide the same. One small
collective a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One rank's view. `snapshot_every` is the interval that its own measurements ask for."""

    stop: bool
    shares_version: int
    snapshot_ready: bool
    snapshot_every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """`shares_version` is the newest that every rank has; a snapshot is left only where every rank can."""

    stop: bool
    shares_version: int
    snapshot_ready: bool
    snapshot_every: int


def agree(voice: Voice, group: mx.distributed.Group | None) -> Agreed:
    own = [int(voice.stop), voice.shares_version, int(voice.snapshot_ready), voice.snapshot_every]
    if group is None or group.size() == 1:
        said = np.array([own])
    else:
        said = np.array(mx.distributed.all_gather(mx.array([own], dtype=mx.int32), group=group, stream=mx.cpu))
    return Agreed(
        stop=bool(said[:, 0].any()),
        shares_version=int(said[:, 1].min()),
        snapshot_ready=bool(said[:, 2].all()),
        snapshot_every=int(said[:, 3].max()),
    )
