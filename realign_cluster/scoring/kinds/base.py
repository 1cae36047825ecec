"""What a score kind is, and the arithmetic that several kinds share. Knows sequences and numbers, not models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from realign_cluster.domain.job import ScoreJob
from realign_cluster.scoring.encode import Scored, TextEncoder
from realign_cluster.scoring.sample import Sample

NOT_FINITE: Final = "the model's log-likelihood is not finite"

LogProbs = npt.NDArray[np.float32]  # of the scored tokens of one sequence, in order; nats
# What is wanted at each scored token: its log-probability, or how far the reference's distribution is there.
Measure = Literal["log-probability", "divergence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindPlan:
    """Sequences to score for one row, and what becomes of their log-probabilities (or what else `measure` says).

    `trunk` tokens at the start of every sequence are likely to be shared with other rows: they are prefilled apart
    and kept. It must follow from the row alone, because it decides the shape in which the row is computed.
    """

    sequences: tuple[Scored, ...]
    reduce: Callable[[Sequence[LogProbs]], dict[str, Any]]
    trunk: int = 0
    measure: Measure = "log-probability"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan:
    """A prompt to answer, None where there is nothing to answer, and what becomes of the samples and the row's seed."""

    prompt: tuple[int, ...] | None
    reduce: Callable[[Sequence[Sample], int], dict[str, Any]]


class Kind(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> KindPlan | SamplePlan: ...


def total(logprobs: LogProbs) -> float | None:
    """Sum in float64; None where the model gave something that is not a number (16-bit overflow)."""
    value = float(np.sum(logprobs, dtype=np.float64))
    return value if math.isfinite(value) else None


def completion_scores(scored: Scored, logprobs: LogProbs) -> dict[str, Any]:
    """{"sum", "mean", "tokens"} of one completion, null with "undefined" where there is no such number."""
    value = total(logprobs) if len(logprobs) else None
    scores = {"sum": value, "mean": None if value is None else value / len(logprobs), "tokens": len(logprobs)}
    return scores if value is not None else scores | {"undefined": scored.reason or NOT_FINITE}
