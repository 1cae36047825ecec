"""Rows scored by one worker on this machine, without daemon, cluster or run folder: for a few thousand rows in memory.

The worker is the one that daemons start, and the only process that imports MLX. A row that fails is named and the
others are scored; a worker that dies ends it: there is nobody to go on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.report import WorkerReport
from realign_cluster.node.logs import OutputLog
from realign_cluster.node.orders import SCORING_MODULE, WorkOrder
from realign_cluster.node.worker_process import Launch, WorkerProcess

UNIT_ROWS: Final = 256
DRAIN_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalScores:
    """`scores[i]`: of row i by kind, None where `errors[i]` says why there are none. `report`: of the worker."""

    scores: tuple[dict[str, Any] | None, ...]
    errors: dict[int, str]
    report: WorkerReport


async def score_here(
    job: ScoreJob,
    model_folder: Path,
    rows: Sequence[bytes],
    *,
    cores: int | None = None,
    measure: str = "none",
    samples: Sequence[bytes] = (),
) -> LocalScores:
    """`rows`: JSON objects. `cores` None: all of the machine. `measure` "quick" or "full": the report then holds a
    calibration on `samples`; with no rows that is all. Raises UsageError where the worker refuses the job, and
    RunFailed, with its last words, where it died.
    """
    order = WorkOrder(
        job=job,
        job_json=job.model_dump_json().encode(),
        model_dir=str(model_folder),
        samples=tuple(samples),
        launch=Launch(module=SCORING_MODULE, blas_threads=job.blas_threads, blas_core_type=job.blas_core_type),
    )
    cores = cores or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        output = OutputLog(Path(folder) / "worker.log")
        try:
            worker = await WorkerProcess.start(order.launch, cores, output)
            try:
                talk = _Talk(worker, rows)
                worker.write(order.frame(measure, cores))
                end = await worker.follow(talk.take, DRAIN_SECONDS)
            finally:
                await worker.close()
            if talk.refusal:
                raise UsageError(talk.refusal)
            if not talk.done or talk.report is None:
                raise RunFailed(
                    f"the scoring worker ended before its work was done: {end.reason}\n{output.last_lines()}",
                    "score fewer or shorter rows, or look at what it said",
                )
        finally:
            output.close()
    return LocalScores(
        scores=tuple(talk.scores.get(row) for row in range(len(rows))), errors=talk.errors, report=talk.report
    )


class _Talk:
    """What is said to the worker, frame by frame: one unit after the other, long rows together, then stop."""

    def __init__(self, worker: WorkerProcess, rows: Sequence[bytes]) -> None:
        self._worker = worker
        self._rows = rows
        by_length = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        self._units = [by_length[at : at + UNIT_ROWS] for at in range(0, len(by_length), UNIT_ROWS)]
        self._attempt = 0
        self._sent: dict[int, list[int]] = {}
        self.scores: dict[int, dict[str, Any]] = {}
        self.errors: dict[int, str] = {}
        self.report: WorkerReport | None = None
        self.refusal = ""

    @property
    def done(self) -> bool:
        return len(self.scores) + len(self.errors) == len(self._rows)

    def take(self, frame: dict[str, Any]) -> None:
        match frame.get("op"):
            case "ready":
                self.report = WorkerReport.model_validate_json(frame["report"])
                self._send()
                self._send()  # tokenised while the first is computed
            case "result":
                lines = bytes(frame["payload"]).split(b"\n")
                for row, line in zip(self._sent.pop(frame["attempt"]), lines, strict=True):
                    scores = orjson.loads(line)
                    if "error" in scores:  # refused by itself: too long, or not for this template
                        self.errors[row] = str(scores["error"]["message"])
                    else:
                        self.scores[row] = scores
                self._send()
            case "failed":
                unit = self._sent.pop(frame["attempt"])
                self.errors[unit.pop(int(frame["row"]))] = str(frame["message"])
                if unit:
                    self._units.append(unit)
                self._send()
            case "refused":
                self.refusal = str(frame["message"])

    def _send(self) -> None:
        if self.done:
            self._worker.write({"op": "stop"})
        if not self._units:
            return
        unit = self._units.pop()
        self._attempt += 1
        self._sent[self._attempt] = unit
        rows = b"\n".join(self._rows[row] for row in unit)
        frame = {"op": "unit", "attempt": self._attempt, "unit": self._attempt, "lease": 1}
        self._worker.write({**frame, "rows": rows, "count": len(unit), "cost": float(len(rows))})
