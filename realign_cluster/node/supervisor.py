"""The worker child of this daemon: started for a job, fed with units, killed as a group, restarted with back-off.

Knows nothing of streams, coordinators or spools: it tells its listener. Never waits for the worker on the way of a
message, so a hung worker hangs nothing else. MLX lives in the worker only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import structlog

from realign_cluster.node.logs import OutputLog
from realign_cluster.node.orders import WorkOrder
from realign_cluster.node.work_queue import Held, WorkQueue
from realign_cluster.node.worker_process import WorkerProcess
from realign_cluster.rpc.frames import FrameError
from realign_cluster.rpc.pb.common_pb2 import WorkerState

log = structlog.get_logger()

BACK_OFF_FIRST_SECONDS = 0.2
BACK_OFF_LAST_SECONDS = 30.0
DRAIN_SECONDS = 1.0
STOP_SECONDS = 3.0


class WorkerListener(Protocol):
    def worker_waiting(self, port: int, pid: int, generation: int) -> None: ...
    def worker_ready(self, report: bytes, pid: int, generation: int) -> None: ...
    def worker_exited(
        self,
        *,
        generation: int,
        reason: str,
        computing: Held | None,
        lost: list[Held],
        asked: bool,
        back_off_seconds: float,
        last_lines: str,
    ) -> None: ...
    def worker_refused(self, code: str, message: str) -> None: ...
    def measuring(self, what: str, fraction: float) -> None: ...
    def result(self, held: Held, frame: dict[str, Any]) -> None: ...
    def unit_failed(self, held: Held, frame: dict[str, Any]) -> None: ...


class Supervisor:
    def __init__(self, *, output: OutputLog, cores: int, listener: WorkerListener) -> None:
        self._output = output
        self._cores = cores
        self._listener = listener
        self.queue = WorkQueue()
        self.state: WorkerState = WorkerState.WORKER_ABSENT
        self.generation = 0
        self.progress = 0
        self.phase = ""
        self._order: WorkOrder | None = None
        self._report: bytes | None = None
        self._port = 0  # on which it will listen when it is told to join its group
        self._task: asyncio.Task[None] | None = None
        self._worker: WorkerProcess | None = None
        self._asked = ""  # why we are killing it, if we are
        self._crashes = 0
        self._wake = asyncio.Event()
        self._last_progress: object = None
        self._calibration: object = None  # of this order, from the first report that had one
        self._ending = False

    @property
    def pid(self) -> int:
        """Of the worker process; 0 while there is none."""
        return self._worker.pid if self._worker is not None else 0

    # --- what the run asks ------------------------------------------------------------------------------------------

    async def prepare(self, order: WorkOrder) -> None:
        """Makes a worker for this order be there. A running one that fits is kept, and reported ready again at once.

        One that refused the same job is started once more: whoever asks now has to be told, or it fits by now.
        """
        current = self._order
        alive = self._task is not None and not self._task.done() and self.state != WorkerState.WORKER_REFUSED
        if current is not None and alive and order.same_worker(current):
            if self._report is None:  # starting, or backing off: it will be reported when it is ready
                if self._port:
                    self._listener.worker_waiting(self._port, self.pid, self.generation)
                return
            if order.measure == "none" or (order.measure == "quick" and _calibration(self._report) is not None):
                self._listener.worker_ready(self._report, self.pid, self.generation)
                return
        await self.stop_worker(kill=True)
        self._order = order
        self._crashes = 0
        self._calibration = None
        self._task = asyncio.create_task(self._supervise(order))

    @property
    def in_group(self) -> bool:
        """Whether its worker is of no use to anybody but the group that it is part of."""
        return self._order is not None and bool(self._order.group)

    def join(self, generation: int, addresses: Iterable[str]) -> None:
        """To a worker that waits for it; another one than is meant has to be told itself."""
        if self._port and generation == self.generation:
            self._port = 0
            self._write({"op": "go", "addresses": list(addresses)})

    def submit(
        self,
        *,
        run_id: str,
        epoch: int,
        attempt: int,
        unit: int,
        lease: int,
        count: int,
        cost: float,
        rows: bytes,
        row_ids: bytes = b"",
    ) -> None:
        """Raises QueueFull."""
        if self.queue.add(
            run_id=run_id,
            epoch=epoch,
            attempt=attempt,
            unit=unit,
            lease=lease,
            count=count,
            cost=cost,
            rows=rows,
            row_ids=row_ids,
        ):
            self._feed()

    def revoke(self, run_id: str, attempts: Iterable[int]) -> None:
        self._tell_revoked(self.queue.revoke(run_id, set(attempts)))

    def silence(self, run_id: str) -> None:
        """Nobody wants anything of this run any more."""
        self._tell_revoked(self.queue.silence(run_id))

    def drop_all_but_computing(self) -> None:
        self._tell_revoked(self.queue.drop_all_but_computing())

    def restart(self, reason: str, generation: int = 0) -> None:
        """Kills the worker, which is then started again at once. Also a refused or resting worker is tried again.

        `generation` names the one that is meant, 0 whichever is there.
        """
        if generation not in (0, self.generation):
            return
        self._asked = f"restart asked: {reason}"
        if self._worker is not None:
            self._worker.kill()
        self._wake.set()

    async def stop_worker(self, *, kill: bool = False) -> None:
        """Ends the worker and forgets the order. Units that were here are gone; the listener is not told."""
        task, self._task, self._order = self._task, None, None
        if task is not None:
            self._ending = True
            if self._worker is not None and not kill:
                self._write({"op": "stop"})
                await asyncio.wait({task}, timeout=STOP_SECONDS)  # _supervise returns when its worker has ended
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._ending = False
        self.queue.worker_gone()
        self._report = None
        self.state = WorkerState.WORKER_ABSENT
        self.phase = ""

    # --- one worker after the other ---------------------------------------------------------------------------------

    async def _supervise(self, order: WorkOrder) -> None:
        while True:
            self.generation += 1
            self._asked = ""
            self._wake.clear()
            # Measured once: _ready puts the first calibration into the reports of later generations.
            measure = "none" if self._calibration is not None else order.measure
            refused, reason = await self._one_worker(order, measure)
            if self._ending:
                return
            computing, lost = self.queue.worker_gone()
            asked = bool(self._asked)
            if refused and not asked:
                self.state = WorkerState.WORKER_REFUSED
                self._report = None
                await self._wake.wait()
                continue
            self._report = None
            back_off = 0.0 if asked else _back_off_seconds(self._crashes)
            self._crashes = 0 if asked else self._crashes + 1
            self.state = WorkerState.WORKER_BACKING_OFF
            self.phase = ""
            self._listener.worker_exited(
                generation=self.generation,
                reason=self._asked or reason,
                computing=computing,
                lost=lost,
                asked=asked,
                back_off_seconds=back_off,
                last_lines=self._output.last_lines(),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), back_off)

    async def _one_worker(self, order: WorkOrder, measure: str) -> tuple[bool, str]:
        """Runs one worker process to its end. Returns (whether it refused the job, why it ended)."""
        self.state = WorkerState.WORKER_STARTING
        self.phase = "load"
        self._last_progress = None
        self._port = 0
        try:
            worker = await WorkerProcess.start(order.launch, self._cores, self._output)
        except OSError as error:
            return False, f"could not be started: {error.strerror or error}"
        self._worker = worker
        self._output.begin_process(f"worker {self.generation}, pid {worker.pid}")
        worker.write(order.frame(measure, self._cores))
        try:
            end = await worker.follow(self._take, DRAIN_SECONDS)
            return self.state == WorkerState.WORKER_REFUSED and end.broke is None, end.reason
        finally:
            await worker.close()
            self._worker, self._port = None, 0

    # --- frames -----------------------------------------------------------------------------------------------------

    def _take(self, frame: dict[str, Any]) -> None:
        """Raises FrameError."""
        match frame.get("op"):
            case "progress":
                self._advance(("progress", frame["n"]))
            case "phase":
                self.phase = str(frame["phase"])
                self._advance((self.phase, frame.get("what"), frame.get("fraction")))
                if self.phase in ("canary", "measure"):
                    self._listener.measuring(str(frame.get("what") or self.phase), float(frame.get("fraction", 0)))
            case "begin":
                self.queue.began(int(frame["attempt"]))
                self.state, self.phase = WorkerState.WORKER_COMPUTING, "compute"
                self._advance(("begin", frame["attempt"]))
            case "result":
                self._crashes = 0
                self._answered(frame)
            case "failed":
                self._answered(frame)
            case "waiting":
                self._port = int(frame["port"])
                self._advance(("waiting",))
                self._listener.worker_waiting(self._port, self.pid, self.generation)
            case "ready":
                self._ready(bytes(frame["report"]))
            case "refused":
                self.state = WorkerState.WORKER_REFUSED
                self._listener.worker_refused(str(frame.get("code", "refused")), str(frame.get("message", "")))
            case other:
                raise FrameError(f"an unknown op {other!r}")

    def _answered(self, frame: dict[str, Any]) -> None:
        held = self.queue.finished(int(frame["attempt"]))
        self._advance((frame["op"], frame["attempt"]))
        self._feed()
        if not self.queue.busy:
            self.state, self.phase = WorkerState.WORKER_READY, ""
        if held is None:
            return
        if frame["op"] == "result":
            self._listener.result(held, frame)
        else:
            self._listener.unit_failed(held, frame)

    def _ready(self, report: bytes) -> None:
        calibration = _calibration(report)
        if calibration is not None:
            self._calibration = calibration
        elif self._calibration is not None:
            report = json.dumps({**json.loads(report), "calibration": self._calibration}).encode()
        self._report = report
        self.state, self.phase = WorkerState.WORKER_READY, ""
        self._advance(("ready",))
        self._listener.worker_ready(report, self.pid, self.generation)
        self._feed()

    def _advance(self, what: object) -> None:
        """Counts only news: a worker that repeats itself gets no further."""
        if what != self._last_progress:
            self._last_progress = what
            self.progress += 1

    def _feed(self) -> None:
        if self._report is None:
            return
        for held, rows in self.queue.hand_over():
            self._write(
                {
                    "op": "unit",
                    "attempt": held.ticket,
                    "unit": held.unit,
                    "lease": held.lease,
                    "rows": rows,
                    "count": held.count,
                    "cost": held.cost,
                    "row_ids": held.row_ids,
                }
            )

    def _tell_revoked(self, tickets: list[int]) -> None:
        if tickets:
            self._write({"op": "revoke", "attempts": tickets})
        self._feed()  # the worker may have nothing left, and then answers nothing that would make us feed it

    def _write(self, frame: Mapping[str, Any]) -> None:
        if self._worker is not None:
            self._worker.write(frame)


def _back_off_seconds(crashes: int) -> float:
    return min(BACK_OFF_FIRST_SECONDS * 2.0**crashes, BACK_OFF_LAST_SECONDS)


def _calibration(report: bytes) -> object:
    try:
        found = json.loads(report)
    except ValueError:
        return None
    return found.get("calibration") if isinstance(found, dict) else None
