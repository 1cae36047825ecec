"""Measuring at join and for calibration, on the tiny model in a worker process."""

from __future__ import annotations

from pathlib import Path

import orjson

from realign_cluster.domain.report import WorkerReport
from tests.scoring.making import make_job
from tests.scoring.worker_process import WorkerProcess

ROWS = [orjson.dumps({"prompt": "Count. " * at, "response": "One, two, three. " * (20 - at)}) for at in range(1, 20)]


def test_full(tiny_model: Path) -> None:
    job = make_job(tiny_model, "loglik", max_tokens=160, memory_limit_bytes=700 * 2**20)
    with WorkerProcess() as worker:
        worker.prepare(job, tiny_model, measure="full", samples=ROWS)
        phases = set()
        for frame in worker.frames():
            if frame["op"] == "phase":
                phases.add(frame["phase"])
                assert 0.0 <= frame["fraction"] <= 1.0
            if frame["op"] == "ready":
                break
        report = WorkerReport.model_validate_json(frame["report"])
    assert phases == {"load", "canary", "measure"}
    calibration = report.calibration
    assert calibration is not None
    assert calibration.mode == "full"
    assert set(calibration.matmul_gflops) == {"float32", "float16", "bfloat16"}
    assert all(rate > 0 for rate in calibration.matmul_gflops.values())
    assert calibration.memory_gigabytes_per_second is not None
    assert calibration.memory_gigabytes_per_second > 0.1
    assert {point.length for point in calibration.scoring} == {128, 160}  # no longer than the job's sequences
    assert {point.batch for point in calibration.scoring if point.length == 128} >= {1, 4, 8}
    assert all(point.tokens_per_second > 0 and point.spread >= 0 for point in calibration.scoring)
    for length, batch in calibration.best_batch.items():
        points = {point.batch: point.tokens_per_second for point in calibration.scoring if point.length == int(length)}
        assert points[batch] == max(points.values())
    assert calibration.headroom_bytes is not None
    assert 0 < calibration.headroom_bytes < 700 * 2**20
    assert calibration.thermal_before
