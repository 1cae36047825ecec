"""The state of a rank as named tensors and scalars: what is kept, and what a new generation begins from.

Tensors are the optimizer's (`optimizer.MasterOptimizer.state`), cut as this rank holds its parameters. Scalars are what
decides about the steps to come and cannot be computed again: the best validation loss and how long ago it was. There is
no random state: what is drawn depends on the seed, the step and the row. Must not know files' formats or threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from realign_cluster.domain.standing import is_better
from realign_cluster.domain.world import RankSpec, StateKind, StatePart
from realign_cluster.store.part_manifest import PartHeader, PieceOf
from realign_cluster.store.resharding import open_parts, pieces_from
from realign_cluster.store.state_part import data_path
from realign_cluster.training.keeper import State
from realign_cluster.training.optimizer import MasterOptimizer, parameter_of
from realign_cluster.training.parallel.base import Piece


@dataclass(slots=True, kw_only=True)
class Standing:
    """What evaluations have said so far. `best_loss` None before the first."""

    best_loss: float | None = None
    best_step: int = 0
    worse: int = 0  # evaluations since the best one

    def judge(self, loss: float, step: int) -> bool:
        """Takes note of an evaluation; whether it is the best so far."""
        if is_better(loss, self.best_loss):
            self.best_loss, self.best_step, self.worse = loss, step, 0
            return True
        self.worse += 1
        return False


def state_of(
    kind: StateKind,
    step: int,
    *,
    spec: RankSpec,
    run: str,
    config: str,
    optimizer: MasterOptimizer,
    pieces: Mapping[str, Piece],
    standing: Standing,
) -> State:
    """Of this rank, after `step` steps. The arrays are those of the optimizer: they never change."""
    world = spec.world
    tensors = optimizer.state()
    cut = {name: pieces[parameter] for name in tensors if (parameter := parameter_of(name)) is not None}
    header = PartHeader(
        kind=kind,
        step=step,
        part=spec.rank if world.parts > 1 else 0,
        parts=world.parts,
        layout=world.layout,
        generation=spec.generation,
        run=run,
        config=config,
        scalars={"best_loss": standing.best_loss, "best_step": standing.best_step, "worse": standing.worse},
        pieces={
            name: PieceOf(whole=piece.whole, axis=piece.axis, ranges=piece.ranges)
            for name, piece in cut.items()
            if piece.axis != -1
        },
    )
    return State(header=header, tensors=tensors)


def digest_of(weights: Mapping[str, mx.array]) -> str:
    """BLAKE2b-128 over names and bytes, in hex: equal weights, equal digest."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.shape} {value.dtype}\n".encode())
        digest.update(np.array(value, copy=False).tobytes())
    return digest.hexdigest()


def restore(
    folder: Path,
    parts: Sequence[StatePart],
    optimizer: MasterOptimizer,
    pieces: Mapping[str, Piece],
    progress: Callable[[], None],
) -> Standing:
    """Puts the state of `parts`, however it was cut, into `optimizer`. Raises Corrupt or Misfit, naming the part."""
    held = open_parts([data_path(folder, part) for part in parts], progress)
    expected = optimizer.state()
    wanted = {
        name: pieces[parameter] if (parameter := parameter_of(name)) is not None else PieceOf(whole=tuple(value.shape))
        for name, value in expected.items()
    }
    restored = {name: _array(dtype, array) for name, dtype, array in pieces_from(held, wanted)}
    optimizer.restore(restored)
    scalars = held[0].manifest.scalars
    best = scalars.get("best_loss")
    return Standing(
        best_loss=float(best) if best is not None else None,
        best_step=int(scalars.get("best_step") or 0),
        worse=int(scalars.get("worse") or 0),
    )


def _array(dtype: str, array: np.ndarray) -> mx.array:
    value = mx.array(array)
    return value.view(mx.bfloat16) if dtype == "BF16" else value
