"""What a worker without a model says of itself, and how fast it is. Must not import MLX."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from realign_cluster.domain.batching import NOOP_TOKENS_PER_BYTE, row_cost
from realign_cluster.domain.job import NO_MODEL
from realign_cluster.domain.report import Calibration, WorkerReport
from realign_cluster.scoring.rows import noop_payload

MEASURED_ROWS = 20_000


def report_of_noop(samples: Sequence[bytes], measure: str) -> WorkerReport:
    """Its rows cost by their bytes: there is no text of theirs that a model would read."""
    calibration = None
    if measure != "none" and samples:
        rows = [samples[at % len(samples)] for at in range(MEASURED_ROWS)]
        times = []
        for _ in range(3):
            started = time.monotonic()
            noop_payload(rows)
            times.append(time.monotonic() - started)
        seconds = sorted(times)[1]
        cost = sum(row_cost(len(raw), NOOP_TOKENS_PER_BYTE) for raw in rows)
        calibration = Calibration(
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            mode=measure,
            cost_per_second=cost / seconds,
            rows_per_second=MEASURED_ROWS / seconds,
            spread=(max(times) - min(times)) / seconds,
            seconds=sum(times),
        )
    return WorkerReport(
        model_hash=NO_MODEL,
        dtype="none",
        load_seconds=0.0,
        weights_bytes=0,
        peak_bytes=0,
        device="none",
        blas="none",
        blas_core_type="",
        blas_threads=0,
        calibration=calibration,
    )
