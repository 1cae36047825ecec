"""States kept beside the training: a thread writes the arrays of a step to a part file while the next steps go on.

MLX's arrays never change, so holding on to those of a step costs memory but no copy. One state is written at a time. A
snapshot that would have to wait is for the caller to leave out; a checkpoint waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.rank_report import Kept, NotKept, RankReport
from realign_cluster.store.state_part import PartHeader, write_part

DTYPES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.uint64: "U64",
    mx.int64: "I64",
    mx.uint8: "U8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A state as it is handed over: evaluated arrays by name, and what the file says of them."""

    header: PartHeader
    tensors: Mapping[str, mx.array]


class Keeper:
    """`say`, and `progress` with each tensor that is written, are called from the writing thread."""

    def __init__(
        self, folder: Path, say: Callable[[RankReport], None], progress: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = folder
        self._say = say
        self._progress = progress
        self._thread: threading.Thread | None = None
        self._cpu_seconds = 0.0  # that the last state took to write

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def last_seconds(self) -> float:
        """CPU time that writing the last state took: what it may have taken from the training beside it. The time it
        lasted says nothing of that: the thread mostly waits, for its turn and for the disk.
        """
        return self._cpu_seconds

    def keep(self, state: State, *, durable: bool) -> float:
        """Begins to write; waits for the one before. Returns the seconds that the caller was held up."""
        started = time.perf_counter()
        self.flush()
        views = [(name, *_view(value)) for name, value in state.tensors.items()]
        blocked = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._write, args=(state.header, views, durable, blocked), name="keeper", daemon=True
        )
        self._thread.start()
        return blocked

    def flush(self) -> None:
        """Returns once nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def _write(
        self, header: PartHeader, views: list[tuple[str, str, tuple[int, ...], Any]], durable: bool, blocked: float
    ) -> None:
        started, used = time.perf_counter(), time.thread_time()
        try:
            part = write_part(self._folder, header, views, durable=durable, progress=self._progress)
        except (RealignError, OSError, ValueError) as error:
            self._say(NotKept(kind=header.kind, step=header.step, reason=str(error)))
            return
        self._cpu_seconds = time.thread_time() - used
        seconds = time.perf_counter() - started
        self._say(Kept(part=part, seconds=seconds, blocked_seconds=blocked, cpu_seconds=self._cpu_seconds))


def _view(value: mx.array) -> tuple[str, tuple[int, ...], Any]:
    """(safetensors dtype, shape, the array's own memory). NumPy knows no bfloat16: its bits are looked at as uint16."""
    shape = tuple(value.shape)
    bits = value.view(mx.uint16) if value.dtype == mx.bfloat16 else value
    return DTYPES[value.dtype], shape, np.array(bits, copy=False)
