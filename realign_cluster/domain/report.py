"""What a worker says of itself once its model is loaded: read by the coordinator before it trusts the node."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ScoringPoint(Loose):
    """One cell of the calibration: sequences padded to `length` tokens, `batch` at a time."""

    length: int
    batch: int
    tokens_per_second: float
    rows_per_second: float
    spread: float  # (max - min) / median over the repeats


class Calibration(Loose):
    """Measured on one node for one model and task. `cost_per_second` is in domain.batching.row_cost units."""

    measured_at: str  # ISO 8601, UTC
    mode: str  # "quick" or "full"
    cost_per_second: float
    rows_per_second: float
    spread: float
    seconds: float  # how long the measuring took
    matmul_gflops: dict[str, float] = Field(default_factory=dict)  # by dtype
    memory_gigabytes_per_second: float | None = None
    scoring: tuple[ScoringPoint, ...] = ()
    best_batch: dict[str, int] = Field(default_factory=dict)  # length -> batch
    batch_tokens: int | None = None  # the budget that was fastest
    headroom_bytes: int | None = None
    thermal_before: str = "unknown"
    thermal_after: str = "unknown"


class WorkerReport(Loose):
    model_hash: str
    dtype: str  # "float32", "float16", "bfloat16", "4-bit"...
    load_seconds: float
    weights_bytes: int
    peak_bytes: int
    device: str
    blas: str
    blas_core_type: str
    blas_threads: int
    tokens_per_byte: float | None = None
    mixture: bool = False
    canaries_alone: tuple[dict[str, Any], ...] = ()
    canaries_batched: tuple[dict[str, Any], ...] = ()
    canary_tokens: tuple[int, ...] = ()  # scored tokens per canary: the bounds are nats per token
    calibration: Calibration | None = None
