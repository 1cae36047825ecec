"""The whole picture of a node: scoring speed by length and batch size, matrix products, memory bandwidth.

Every figure is the median of several repeats. Must not know rows or kinds: it runs sequences of made-up tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from realign_cluster.domain.report import ScoringPoint
from realign_cluster.scoring import device
from realign_cluster.scoring.forward import Forward
from realign_cluster.scoring.model import LoadedModel
from realign_cluster.scoring.segments import Segment

LENGTHS = (128, 512, 2048)
BATCHES = (1, 4, 8, 16, 32, 64)
REPEATS = 3
POINT_SECONDS = 4.0  # a cell that takes longer once is not repeated, and larger batches of that length are left out
MATMUL_SIZE = {"cpu": 1024, "metal": 4096, "cuda": 4096}
COPY_BYTES = 256 * 2**20

Phase = Callable[[str, str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullMeasurements:
    matmul_gflops: dict[str, float] = field(default_factory=dict)  # by dtype
    memory_gigabytes_per_second: float | None = None
    scoring: tuple[ScoringPoint, ...] = ()
    best_batch: dict[str, int] = field(default_factory=dict)  # length -> batch


def full_measurements(forward: Forward, model: LoadedModel, max_tokens: int, phase: Phase) -> FullMeasurements:
    points: list[ScoringPoint] = []
    longest = min(model.longest_tokens, max_tokens)
    lengths = sorted({min(length, longest) for length in LENGTHS})
    for at, length in enumerate(lengths):
        for batch in BATCHES:
            if batch * length > model.fit.batch_tokens and batch > 1:
                break
            phase("measure", f"{batch} sequences of {length} tokens", at / len(lengths))
            point = _score_point(forward, model, length, batch, phase)
            points.append(point)
            if batch / point.rows_per_second > POINT_SECONDS:
                break
    best = {
        str(length): max(
            (point for point in points if point.length == length), key=lambda point: point.tokens_per_second
        ).batch
        for length in lengths
    }
    return FullMeasurements(
        matmul_gflops={name: _matmul_gflops(dtype, phase) for name, dtype in DTYPES.items()},
        memory_gigabytes_per_second=_copy_speed(phase),
        scoring=tuple(points),
        best_batch=best,
    )


DTYPES: Mapping[str, mx.Dtype] = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def _score_point(forward: Forward, model: LoadedModel, length: int, batch: int, phase: Phase) -> ScoringPoint:
    """`batch` sequences of `length` tokens at once, the second half of each scored."""
    kept = forward.shape
    draw = np.random.default_rng(length)
    half = length // 2
    seconds: list[float] = []
    forward.shape = replace(kept, batch_tokens=batch * length)
    try:
        for _ in range(REPEATS):
            trees = [
                Segment(
                    tokens=draw.integers(0, model.vocabulary, size=length).tolist(),
                    positions=list(range(half, length)),
                    targets=draw.integers(0, model.vocabulary, size=length - half).tolist(),
                    slots=list(range(row * (length - half), (row + 1) * (length - half))),
                )
                for row in range(batch)
            ]
            results = np.zeros(batch * (length - half), dtype=np.float32)
            started = time.monotonic()
            forward.run_batched(trees, results, lambda: phase("measure", f"{batch} sequences of {length} tokens", 0.5))
            seconds.append(time.monotonic() - started)
            if seconds[-1] > POINT_SECONDS:
                break
    finally:
        forward.shape = kept
    middle = statistics.median(seconds)
    return ScoringPoint(
        length=length,
        batch=batch,
        tokens_per_second=batch * length / middle,
        rows_per_second=batch / middle,
        spread=(max(seconds) - min(seconds)) / middle,
    )


def _matmul_gflops(dtype: mx.Dtype, phase: Phase) -> float:
    """Of a square product, best of several: what the library reaches, not what a model gets."""
    size = MATMUL_SIZE[device.backend()]
    if device.backend() == "cpu" and dtype != mx.float32:
        size //= 4  # half precision is emulated there, a hundred times slower
    left, right = (mx.random.normal((size, size)).astype(dtype) for _ in range(2))
    mx.eval(left, right)
    rates = []
    for _ in range(REPEATS + 1):
        phase("measure", "matrix products", 0.9)
        started = time.monotonic()
        mx.eval(left @ right)
        rates.append(2 * size**3 / (time.monotonic() - started) / 1e9)
    return max(rates)


def _copy_speed(phase: Phase) -> float:
    """Bytes read and written per second by adding a number to a large array, in GB/s."""
    source = mx.zeros((COPY_BYTES // 4,), dtype=mx.float32)
    mx.eval(source)
    rates = []
    for _ in range(REPEATS + 1):
        phase("measure", "memory bandwidth", 0.95)
        started = time.monotonic()
        mx.eval(source + 1.0)
        rates.append(2 * COPY_BYTES / (time.monotonic() - started) / 1e9)
    return statistics.median(rates[1:])
