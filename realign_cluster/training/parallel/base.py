"""The seam between the training loop and the ways to spread a model: what a micro-batch is, what a strategy answers.

A strategy owns the model on this rank. The loop owns steps, optimizer, states. Gradients are of the summed, already
scaled loss, in float32, under the unsharded model's parameter names, joined over all ranks: whatever the strategy,
the loop then does the same thing with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows that go through the model at once. Padding is at the right; what is padded is never a target.

    tokens      (B, T) int32
    positions   (N,) int32: index into the B*T hidden states that predict the targets, ascending
    targets     (N,) int32: the token each of them has to predict
    owners      (N,) int32: which of the S sequences a target belongs to
    segments    (B, T) int32 or None: packed rows see only tokens of their own segment; None: one sequence a row
    keys        (B, T) uint32 or None: what dropout is keyed by, of (seed, step, row, position); None: no dropout
    reference   (S,) float32 or None: reference log-probability (sum over completion tokens) of each sequence
    lengths     (S,) int32: completion tokens of each sequence

    Preference: sequences 2i and 2i+1 are chosen and rejected of one pair. `sequences` is S.
    """

    tokens: mx.array
    positions: mx.array
    targets: mx.array
    owners: mx.array
    lengths: mx.array
    sequences: int
    segments: mx.array | None = None
    keys: mx.array | None = None
    reference: mx.array | None = None


# (log-probability of each target, float32 (N,); the micro-batch) -> (loss to minimise, scaled by the global counts,
# scalar; metrics (M,) float32, whose sum over micro-batches and ranks is what is reported)
Objective = Callable[[mx.array, MicroBatch], tuple[mx.array, mx.array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Which part of a whole tensor this rank holds: `ranges` of `axis`, concatenated. Axis -1: all of it."""

    whole: tuple[int, ...]
    axis: int = -1
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """`gradients` by parameter name (this rank's pieces); `metrics` (M,) summed over all ranks; times in seconds."""

    gradients: dict[str, mx.array]
    metrics: mx.array
    compute_seconds: float
    reduce_seconds: float


class Strategy(Protocol):
    """Made with the loaded model, adapters attached and everything else frozen. Collectives in the same order on all
    ranks.
    """

    def parameters(self) -> dict[str, mx.array]:
        """This rank's pieces of the trainable parameters, as the model holds them."""

    def update(self, parameters: Mapping[str, mx.array]) -> None:
        """Puts them back, cast to the model's dtype."""

    def pieces(self) -> dict[str, Piece]:
        """Where this rank's trainable parameters lie in the unsharded ones; optimizer moments lie the same."""

    def gradients(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> Sums:
        """Of this rank's micro-batches (data, sharded) or of all of them (tensor, pipeline). `metrics` is M.

        A rank without micro-batches takes part all the same.
        """

    def losses(self, batches: Sequence[MicroBatch], objective: Objective, metrics: int) -> mx.array:
        """Metrics only, no gradients: (M,) summed over ranks."""

    def log_probabilities(self, batches: Sequence[MicroBatch]) -> list[mx.array]:
        """(S,) float32 sums over completion tokens for each micro-batch, adapters switched off, no dropout.

        Data and sharded: of this rank's own batches, not summed over ranks. Tensor, pipeline: the same on all ranks.
        """

    def callable_model(self) -> AbstractContextManager[None]:
        """Until the end of the block the model that this was made with can be called, without gradients: alone where
        every rank holds a whole copy (single, data), else by all ranks alike.
        """

    def norm_squared(self, gradients: Mapping[str, mx.array]) -> mx.array:
        """Of the whole model's gradient, float32: each element counted once however it is spread."""
