"""One daemon per state folder: an flock that the kernel drops with the process, and the pid written into it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from realign_cluster.domain.errors import RealignError


class AlreadyRunning(RealignError):
    """Another daemon serves from this state folder."""


class DaemonLock:
    """Held from entering to leaving, or to the end of the process. Raises AlreadyRunning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> DaemonLock:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read_pid(descriptor)
            os.close(descriptor)
            raise AlreadyRunning(
                f"a daemon with pid {pid or 'unknown'} runs already with the state folder {self._path.parent}",
                f"use it (realignd status --state {self._path.parent}), stop it (realignd stop --state "
                f"{self._path.parent}), or give this one another --state",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_holder(path: Path) -> int | None:
    """The pid of the process that holds the lock now, None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor)
    finally:
        os.close(descriptor)
    return None


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else None
