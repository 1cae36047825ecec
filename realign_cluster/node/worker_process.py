"""One worker process: its pipes, its environment, its process group, its end. Knows frames, but not what they mean.

Scoring workers and training ranks are both started from here: what they are for is in `orders`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from realign_cluster.node.blas import find_openblas
from realign_cluster.node.logs import OutputLog
from realign_cluster.rpc.frames import encode_frame, read_frame

log = structlog.get_logger()

CHILD_MODULE = "realign_cluster.node.child"
END_SECONDS = 2.0  # for a process that has closed its pipe to end by itself
WEDGED_SECONDS = 10.0  # after SIGKILL a process is gone by then, unless the kernel cannot let go of it
_PIPE_BYTES = 1024 * 1024
_READ_LIMIT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Which worker a process becomes, and what surrounds it. `environment` is as the hostfile and the job ask."""

    module: str
    environment: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0  # -20 (highest priority) to 19; 0: as the daemon
    blas_threads: int | None = None  # None: one for each core of the worker's share
    blas_core_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended: `status` is negative for a signal, None for one that SIGKILL did not end (wedged)."""

    status: int | None
    broke: BaseException | None = None  # what was wrong with its frames

    @property
    def reason(self) -> str:
        if self.status is None:
            return f"still there {WEDGED_SECONDS:g} s after SIGKILL: this machine needs a reboot"
        if self.broke is not None:
            return f"broke the worker protocol: {self.broke}"
        return f"killed by signal {-self.status}" if self.status < 0 else f"exit status {self.status}"


class WorkerProcess:
    """Use `start`, then `close`: until then nothing of it is left behind, whatever happens in between."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, pipe: asyncio.WriteTransport
    ) -> None:
        self.pid = process.pid
        self._reader = reader
        self._process = process
        self._pipe = pipe
        self._killed = asyncio.Event()
        self._wedged = False
        self._open_files = contextlib.ExitStack()

    @classmethod
    async def start(cls, launch: Launch, cores: int, output: OutputLog) -> WorkerProcess:
        """Raises OSError when the process cannot be made."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as files:
            to_worker_read, to_worker_write = os.pipe()
            from_worker_read, from_worker_write = os.pipe()
            output_read, output_write = os.pipe()
            pipe_file = files.enter_context(os.fdopen(to_worker_write, "wb", 0))
            frames_file = files.enter_context(os.fdopen(from_worker_read, "rb", 0))
            output_file = files.enter_context(os.fdopen(output_read, "rb", 0))
            try:
                _widen(to_worker_write)
                _widen(from_worker_write)
                command = [sys.executable, "-m", CHILD_MODULE, str(os.getpid()), launch.module]
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *("--read-fd", str(to_worker_read), "--write-fd", str(from_worker_write)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output_write,
                    stderr=output_write,
                    pass_fds=(to_worker_read, from_worker_write),
                    start_new_session=True,  # a group of its own, to be killed with all it started
                    env=worker_environment(os.environ, launch, cores),
                )
            finally:
                for descriptor in (to_worker_read, from_worker_write, output_write):
                    os.close(descriptor)
            if launch.nice:
                _prioritise(process.pid, launch.nice)
            reader = asyncio.StreamReader(limit=_READ_LIMIT)
            frames, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), frames_file)
            prints, _ = await loop.connect_read_pipe(lambda: _OutputProtocol(output), output_file)
            pipe, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe_file)
            worker = cls(process, reader, pipe)
            worker._open_files = files.pop_all()
            worker._open_files.callback(frames.close)
            worker._open_files.callback(prints.close)
            return worker

    def write(self, frame: Mapping[str, Any]) -> None:
        """Never blocks: what the worker does not read yet waits in memory. How much that is, its caller bounds."""
        if not self._pipe.is_closing():
            self._pipe.write(encode_frame(frame))

    async def follow(self, handle: Callable[[dict[str, Any]], None], drain_seconds: float) -> Exit:
        """Hands on its frames until it has ended, or has closed its pipe, or was killed; then it is made to end.

        `drain_seconds`: to read what it wrote before it died. Others may hold its pipe open.
        """
        frames = asyncio.create_task(self._hand_on(handle))
        exited = asyncio.create_task(self._process.wait())  # also when others still hold its pipes
        killed = asyncio.create_task(self._killed.wait())
        try:
            await asyncio.wait({frames, exited, killed}, return_when=asyncio.FIRST_COMPLETED)
            closed_first = frames.done() and not exited.done()
            await asyncio.wait({frames, exited}, timeout=END_SECONDS if closed_first else drain_seconds)
            self.kill()
            await asyncio.wait({exited}, timeout=WEDGED_SECONDS)
            self._wedged = not exited.done()
            broke = frames.exception() if frames.done() and not frames.cancelled() else None
            return Exit(status=None if self._wedged else exited.result(), broke=broke)
        finally:
            for task in (frames, exited, killed):
                task.cancel()

    async def _hand_on(self, handle: Callable[[dict[str, Any]], None]) -> None:
        """Until the worker closes its end. Raises FrameError, also what `handle` raises."""
        while (frame := await read_frame(self._reader)) is not None:
            handle(frame)

    def terminate(self) -> None:
        """Asks it to end, with all it started."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """With all it started."""
        self._signal(signal.SIGKILL)
        self._killed.set()

    def _signal(self, number: int) -> None:
        # PermissionError: on macOS, a group of which only an unreaped zombie is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def close(self) -> None:
        """Dead and reaped before its pipes close, unless it cannot be killed."""
        self.kill()
        if not self._wedged:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), WEDGED_SECONDS)
        if not self._pipe.is_closing():  # it closes itself when the worker dies, and cannot be closed twice
            self._pipe.abort()
        self._open_files.close()


class _OutputProtocol(asyncio.Protocol):
    def __init__(self, output: OutputLog) -> None:
        self._output = output

    def data_received(self, data: bytes) -> None:
        self._output.write(data)


def _prioritise(pid: int, nice: int) -> None:
    """Sets the CPU priority of the worker; what this user may not do is said, and the worker runs as it is."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    except PermissionError:
        log.warning(
            "the worker's priority stays as it is: only root may raise it",
            asked=nice,
            fix=f"sudo realignd install --nice {nice}",
        )


def worker_environment(base: Mapping[str, str], launch: Launch, cores: int) -> dict[str, str]:
    """The daemon's own environment, what the hostfile and the job ask, and what computing needs."""
    environment = dict(base)
    environment["OPENBLAS_NUM_THREADS"] = str(cores)
    environment.update(launch.environment)
    if launch.blas_threads:
        environment["OPENBLAS_NUM_THREADS"] = str(launch.blas_threads)
    if launch.blas_core_type:
        environment["OPENBLAS_CORETYPE"] = launch.blas_core_type
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["HF_HUB_OFFLINE"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    if library := find_openblas():
        environment["LD_PRELOAD"] = str(library)
    return environment


def _widen(descriptor: int) -> None:
    """Whole units fit into the pipe, so that neither side wakes the other for every 64 KiB."""
    if platform.system() == "Linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
