"""One worker process: its pipes, its environment, its process group, its end. Knows frames, but not what they mean."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from realign_cluster.domain.job import ScoreJob
from realign_cluster.node.blas import find_openblas
from realign_cluster.node.logs import OutputLog
from realign_cluster.rpc.frames import encode_frame

log = structlog.get_logger()

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
    nice: int = 0  # -20 (highest priority) to 19; 0: as the daemon

    def same_worker(self, other: WorkOrder) -> bool:
        """Whether a worker for `other` serves this one as it is."""
        return (self.job, self.model_dir, dict(self.environment), self.nice) == (
            other.job,
            other.model_dir,
            dict(other.environment),
            other.nice,
        )


class WorkerProcess:
    """Use `start`, then `close`: until then nothing of it is left behind, whatever happens in between."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, pipe: asyncio.WriteTransport
    ) -> None:
        self.pid = process.pid
        self.reader = reader
        self._process = process
        self._pipe = pipe
        self._open_files = contextlib.ExitStack()

    @classmethod
    async def start(cls, order: WorkOrder, cores: int, output: OutputLog) -> WorkerProcess:
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
                command = [sys.executable, "-m", CHILD_MODULE, str(os.getpid()), WORKER_MODULE]
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *("--read-fd", str(to_worker_read), "--write-fd", str(from_worker_write)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output_write,
                    stderr=output_write,
                    pass_fds=(to_worker_read, from_worker_write),
                    start_new_session=True,  # a group of its own, to be killed with all it started
                    env=worker_environment(os.environ, order, cores),
                )
            finally:
                for descriptor in (to_worker_read, from_worker_write, output_write):
                    os.close(descriptor)
            if order.nice:
                _prioritise(process.pid, order.nice)
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

    def kill(self) -> None:
        """With all it started."""
        # PermissionError: on macOS, a group of which only an unreaped zombie is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Its exit status, negative for a signal. Also when others still hold its pipes."""
        return await self._process.wait()

    async def close(self) -> None:
        """Dead and reaped before its pipes close."""
        self.kill()
        await self._process.wait()
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


def _widen(descriptor: int) -> None:
    """Whole units fit into the pipe, so that neither side wakes the other for every 64 KiB."""
    if platform.system() == "Linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
