"""A worker as a daemon starts it: a child process, frames over two pipes, OpenBLAS preloaded where there is one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from realign_cluster.domain.group import Place
from realign_cluster.domain.job import ScoreJob
from realign_cluster.rpc.frames import FrameReader, write_frame

OPENBLAS = Path("/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3")


class WorkerProcess:
    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        to_worker, self._into = os.pipe()
        self._out_of, from_worker = os.pipe()
        preload = {"LD_PRELOAD": str(OPENBLAS)} if OPENBLAS.exists() else {}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "realign_cluster.scoring.worker"),
                *("--read-fd", str(to_worker), "--write-fd", str(from_worker)),
            ],
            pass_fds=(to_worker, from_worker),
            env={**os.environ, **preload, "OPENBLAS_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        os.close(to_worker)
        os.close(from_worker)
        self._to = open(self._into, "wb")  # noqa: SIM115, PTH123
        self._from = open(self._out_of, "rb")  # noqa: SIM115, PTH123
        self._reader = FrameReader(self._from)
        self.stderr = b""
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)
        self._drain.join(10)
        for file in (self._to, self._from):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line

    def prepare(
        self,
        job: ScoreJob,
        folder: Path,
        *,
        measure: str = "none",
        samples: Sequence[bytes] = (),
        cores: int = 1,
        place: Place | None = None,
    ) -> None:
        self.send(
            op="prepare",
            job=job.model_dump_json().encode(),
            model_dir=str(folder),
            measure=measure,
            samples=list(samples),
            cores=cores,
            group=place.model_dump_json().encode() if place is not None else b"",
        )

    def unit(self, attempt: int, rows: Sequence[bytes], **values: Any) -> None:
        frame = {"attempt": attempt, "unit": attempt + 100, "lease": 1, "rows": b"\n".join(rows), "count": len(rows)}
        self.send(op="unit", **{**frame, "cost": 1.0, **values})

    def send(self, **frame: Any) -> None:
        write_frame(self._to, frame)

    def close_pipe(self) -> None:
        self._to.close()

    def frames(self) -> Iterator[dict[str, Any]]:
        """Everything the worker says, until it closes its end."""
        while (frame := self._reader.read()) is not None:
            yield frame

    def wait_for(self, op: str) -> dict[str, Any]:
        """The next frame of that kind; others are passed over. Fails with what the worker logged."""
        for frame in self.frames():
            if frame["op"] == op:
                return frame
            assert frame["op"] != "refused", frame
        code = self.process.wait(10)
        raise AssertionError(f"no {op}: the worker ended with {code}\n{self.stderr.decode()}")
