"""The worker child of this daemon: started for a job, fed with units, killed as a group, restarted with back-off.

Knows nothing of streams, coordinators or spools: it tells its listener. Never waits for the worker on the way of a
message, so a hung worker hangs nothing else. MLX lives in the worker only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import platform
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from realign_cluster.domain.job import ScoreJob
from realign_cluster.node.blas import find_openblas
from realign_cluster.node.logs import OutputLog
from realign_cluster.node.work_queue import Held, WorkQueue
from realign_cluster.rpc.frames import FrameError, encode_frame, read_frame
from realign_cluster.rpc.pb.common_pb2 import WorkerState

log = structlog.get_logger()

BACK_OFF_FIRST_SECONDS = 0.2
BACK_OFF_LAST_SECONDS = 30.0
DRAIN_SECONDS = 1.0  # for what a dead worker wrote before it died
STOP_SECONDS = 3.0
CHILD_MODULE = "realign_cluster.node.child"
WORKER_MODULE = "realign_cluster.scoring.worker"
_PIPE_BYTES = 1024 * 1024
_READ_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """What a worker is started for. `job_json` is the job as the coordinator wrote it."""

    job: ScoreJob
    job_json: bytes
    model_dir: str
    measure: str = "none"
    samples: tuple[bytes, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def same_worker(self, other: WorkOrder) -> bool:
        """Whether a worker for `other` serves this one as it is."""
        return (self.job, self.model_dir, dict(self.environment)) == (
            other.job,
            other.model_dir,
            dict(other.environment),
        )


class WorkerListener(Protocol):
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
        self.pid = 0
        self.progress = 0
        self.phase = ""
        self._order: WorkOrder | None = None
        self._report: bytes | None = None
        self._task: asyncio.Task[None] | None = None
        self._pipe: asyncio.WriteTransport | None = None
        self._asked = ""  # why we are killing it, if we are
        self._crashes = 0
        self._wake = asyncio.Event()
        self._last_progress: object = None
        self._calibration: object = None  # of this order, from the first report that had one
        self._ending = False

    # --- what the run asks ------------------------------------------------------------------------------------------

    async def prepare(self, order: WorkOrder) -> None:
        """Makes a worker for this order be there. A running one that fits is kept, and reported ready again at once."""
        current = self._order
        alive = self._task is not None and not self._task.done()
        if current is not None and alive and order.same_worker(current):
            if self._report is None:
                return  # starting, or backing off: it will be reported when it is ready
            if order.measure == "none" or (order.measure == "quick" and _calibration(self._report) is not None):
                self._listener.worker_ready(self._report, self.pid, self.generation)
                return
        await self.stop_worker(kill=True)
        self._order = order
        self._crashes = 0
        self._calibration = None
        self._task = asyncio.create_task(self._supervise(order))

    def submit(
        self, *, run_id: str, epoch: int, attempt: int, unit: int, lease: int, count: int, cost: float, rows: bytes
    ) -> None:
        """Raises QueueFull."""
        if self.queue.add(
            run_id=run_id, epoch=epoch, attempt=attempt, unit=unit, lease=lease, count=count, cost=cost, rows=rows
        ):
            self._feed()

    def revoke(self, run_id: str, attempts: Iterable[int]) -> None:
        self._tell_revoked(self.queue.revoke(run_id, set(attempts)))

    def silence(self, run_id: str) -> None:
        """Nobody wants anything of this run any more."""
        self._tell_revoked(self.queue.silence(run_id))

    def drop_all_but_computing(self) -> None:
        self._tell_revoked(self.queue.drop_all_but_computing())

    def restart(self, reason: str) -> None:
        """Kills the worker, which is then started again at once. Also a refused or resting worker is tried again."""
        self._asked = f"restart asked: {reason}"
        if self.pid:
            _kill_group(self.pid)
        self._wake.set()

    async def stop_worker(self, *, kill: bool = False) -> None:
        """Ends the worker and forgets the order. Units that were here are gone; the listener is not told."""
        task, self._task, self._order = self._task, None, None
        if task is not None:
            self._ending = True
            if self._pipe is not None and not kill:
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
        async with contextlib.AsyncExitStack() as stack:
            try:
                process, reader, pipe = await self._start(order, stack)
            except OSError as error:
                return False, f"could not be started: {error.strerror or error}"
            self.pid, self._pipe = process.pid, pipe
            stack.callback(self._forget_process)
            # Innermost: whatever happens, also a cancellation, the group is dead and reaped before the pipes close.
            stack.push_async_callback(_reap, process)
            self._output.begin_process(f"worker {self.generation}, pid {process.pid}")
            self._write(
                {
                    "op": "prepare",
                    "job": order.job_json,
                    "model_dir": order.model_dir,
                    "measure": measure,
                    "samples": list(order.samples),
                    "cores": self._cores,
                }
            )
            frames = asyncio.create_task(self._read_frames(reader))
            exited = asyncio.create_task(process.wait())
            try:
                await asyncio.wait({frames, exited}, return_when=asyncio.FIRST_COMPLETED)
                self._pipe = None
                # It died: read what it wrote before. It closed its pipe: it is about to exit, or has to be made to.
                await asyncio.wait({frames, exited}, timeout=DRAIN_SECONDS)
                _kill_group(process.pid)
                code = await exited
                refused = frames.done() and not frames.cancelled() and frames.exception() is None and frames.result()
                return bool(refused), _why(code, frames)
            finally:
                frames.cancel()
                exited.cancel()

    async def _start(
        self, order: WorkOrder, stack: contextlib.AsyncExitStack
    ) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.WriteTransport]:
        loop = asyncio.get_running_loop()
        to_worker_read, to_worker_write = os.pipe()
        from_worker_read, from_worker_write = os.pipe()
        output_read, output_write = os.pipe()
        ours = [
            os.fdopen(to_worker_write, "wb", 0),
            os.fdopen(from_worker_read, "rb", 0),
            os.fdopen(output_read, "rb", 0),
        ]
        for file in ours:
            stack.callback(file.close)
        theirs = (to_worker_read, from_worker_write, output_write)
        try:
            _widen(to_worker_write)
            _widen(from_worker_write)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                CHILD_MODULE,
                str(os.getpid()),
                WORKER_MODULE,
                "--read-fd",
                str(to_worker_read),
                "--write-fd",
                str(from_worker_write),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output_write,
                stderr=output_write,
                pass_fds=(to_worker_read, from_worker_write),
                start_new_session=True,  # a group of its own, to be killed with all it started
                env=worker_environment(os.environ, order, self._cores),
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        reader = asyncio.StreamReader(limit=_READ_LIMIT)
        frames, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), ours[1])
        stack.callback(frames.close)
        prints, _ = await loop.connect_read_pipe(lambda: _OutputProtocol(self._output), ours[2])
        stack.callback(prints.close)
        pipe, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, ours[0])
        stack.callback(_abandon, pipe)
        return process, reader, pipe

    def _forget_process(self) -> None:
        self.pid = 0
        self._pipe = None

    # --- frames -----------------------------------------------------------------------------------------------------

    async def _read_frames(self, reader: asyncio.StreamReader) -> bool:
        """Until the worker closes its end. Returns whether it refused the job. Raises FrameError."""
        refused = False
        while (frame := await read_frame(reader)) is not None:
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
                case "ready":
                    self._ready(bytes(frame["report"]))
                case "refused":
                    refused = True
                    self._listener.worker_refused(str(frame.get("code", "refused")), str(frame.get("message", "")))
                case other:
                    raise FrameError(f"an unknown op {other!r}")
        return refused

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
        if self._report is None or self._pipe is None:
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
                }
            )

    def _tell_revoked(self, tickets: list[int]) -> None:
        if tickets:
            self._write({"op": "revoke", "attempts": tickets})
        self._feed()  # the worker may have nothing left, and then answers nothing that would make us feed it

    def _write(self, frame: Mapping[str, Any]) -> None:
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.write(encode_frame(frame))


class _OutputProtocol(asyncio.Protocol):
    def __init__(self, output: OutputLog) -> None:
        self._output = output

    def data_received(self, data: bytes) -> None:
        self._output.write(data)


def worker_environment(base: Mapping[str, str], order: WorkOrder, cores: int) -> dict[str, str]:
    """The daemon's own environment, what the hostfile and the job ask, and what computing needs."""
    environment = dict(base)
    environment["OPENBLAS_NUM_THREADS"] = str(order.job.blas_threads or cores)
    environment.update(order.environment)
    if order.job.blas_threads:
        environment["OPENBLAS_NUM_THREADS"] = str(order.job.blas_threads)
    if order.job.blas_core_type:
        environment["OPENBLAS_CORETYPE"] = order.job.blas_core_type
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["HF_HUB_OFFLINE"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    if library := find_openblas():
        environment["LD_PRELOAD"] = str(library)
    return environment


def _abandon(pipe: asyncio.WriteTransport) -> None:
    if not pipe.is_closing():  # it closes itself when the worker dies, and cannot be closed twice
        pipe.abort()


async def _reap(process: asyncio.subprocess.Process) -> None:
    _kill_group(process.pid)
    await process.wait()


def _kill_group(pid: int) -> None:
    # PermissionError: on macOS, a group of which only an unreaped zombie is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _widen(descriptor: int) -> None:
    """Whole units fit into the pipe, so that neither side wakes the other for every 64 KiB."""
    if platform.system() == "Linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _why(code: int, frames: asyncio.Task[bool]) -> str:
    if frames.done() and not frames.cancelled() and (error := frames.exception()) is not None:
        return f"broke the worker protocol: {error}"
    if code < 0:
        return f"killed by signal {-code}"
    return f"exit status {code}"


def _back_off_seconds(crashes: int) -> float:
    return min(BACK_OFF_FIRST_SECONDS * 2.0**crashes, BACK_OFF_LAST_SECONDS)


def _calibration(report: bytes) -> object:
    try:
        found = json.loads(report)
    except ValueError:
        return None
    return found.get("calibration") if isinstance(found, dict) else None
