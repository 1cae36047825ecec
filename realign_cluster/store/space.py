"""Room on a disk, and the error when there is none: the run pauses on it and goes on once there is room again."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from realign_cluster.domain.errors import RealignError

RESERVE_BYTES = 64 * 1024 * 1024  # left free for the system, logs and the ledger's own write-ahead log


class StorageFull(RealignError):
    """Nothing was written: `needed_bytes` must become free at `path` before the same call can succeed."""

    def __init__(
        self, path: Path, needed_bytes: int, fix: str = "free some room there; the run goes on by itself"
    ) -> None:
        super().__init__(f"the disk that holds {path} is full: {needed_bytes:,} bytes are needed", fix)
        self.path = path
        self.needed_bytes = needed_bytes


def free_bytes(path: Path) -> int:
    """Free bytes for this user on the file system that holds `path`, or its nearest folder that exists."""
    at = path
    while not at.exists() and at != at.parent:
        at = at.parent
    return shutil.disk_usage(at).free


def room(path: Path, needed_bytes: int) -> None:
    """Raises StorageFull unless `needed_bytes` and a reserve are free where `path` is."""
    if free_bytes(path) < needed_bytes + RESERVE_BYTES:
        raise StorageFull(path, needed_bytes + RESERVE_BYTES)


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
