"""Results that no coordinator has acknowledged yet. In memory at first, then in files that survive the process.

The fast path (acknowledged within a second) never touches the disk. A file is checked when it is read: a torn or
altered one is removed and its unit computed again elsewhere, so files are not synced. Bounded by a size and by the
free disk; what finds no room there stays in memory, which is bounded too.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from realign_cluster.rpc.pb.node_pb2 import Result

log = structlog.get_logger()

SPILL_AFTER_SECONDS = 1.0
MAX_BYTES = 4 * 1024**3
KEEP_FREE_BYTES = 64 * 1024**2
MAX_MEMORY_BYTES = 256 * 1024**2
FORGET_AFTER_SECONDS = 7 * 86_400.0
_MAGIC = b"RLSP0001"
_DIGEST_BYTES = 16
_RUN_LENGTH = struct.Struct("<H")


@dataclass(slots=True)
class _Entry:
    """`result` is None once it is on disk only."""

    result: Result | None
    size: int
    added_at: float
    path: Path | None = None


class Spool:
    """Not thread-safe: one event loop owns it. Times are the caller's monotonic seconds."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = MAX_BYTES,
        keep_free_bytes: int = KEEP_FREE_BYTES,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep_free_bytes = keep_free_bytes
        self._max_memory_bytes = max_memory_bytes
        self._no_room = False  # when it was tried last
        self._runs: dict[str, dict[int, _Entry]] = {}
        self._unspilled: dict[tuple[str, int], None] = {}  # oldest first
        self._disk_bytes = 0
        self._load()

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    def attempts(self, run_id: str) -> list[int]:
        return sorted(self._runs.get(run_id, ()))

    def holds(self, run_id: str, attempt: int) -> bool:
        return attempt in self._runs.get(run_id, ())

    def add(self, run_id: str, result: Result, now: float) -> None:
        entry = _Entry(result=result, size=len(result.payload), added_at=now)
        self._runs.setdefault(run_id, {})[result.attempt] = entry
        self._unspilled[(run_id, result.attempt)] = None

    def get(self, run_id: str, attempt: int) -> Result | None:
        """None when it was acknowledged meanwhile, or its file turned out to be damaged."""
        entry = self._runs.get(run_id, {}).get(attempt)
        if entry is None or entry.result is not None:
            return entry.result if entry else None
        assert entry.path is not None
        read = _read(entry.path)
        if read is None:
            self._remove(run_id, attempt)
            return None
        return read[1]

    def acknowledge(self, run_id: str, attempts: Iterable[int]) -> None:
        for attempt in attempts:
            self._remove(run_id, attempt)

    def forget(self, run_id: str) -> None:
        self.acknowledge(run_id, self.attempts(run_id))

    def spill(self, now: float, *, everything: bool = False) -> None:
        """Writes what has waited for longer than a moment (or everything), and drops it from memory."""
        while self._unspilled:
            run_id, attempt = next(iter(self._unspilled))
            entry = self._runs[run_id][attempt]
            if not everything and now - entry.added_at < SPILL_AFTER_SECONDS:
                return
            if not self._write(run_id, entry):
                self._keep_in_memory()
                return
            del self._unspilled[(run_id, attempt)]
            self._no_room = False

    def _keep_in_memory(self) -> None:
        """For want of room on the disk: as much as memory may hold, the youngest first, until they can be written."""
        waiting = sum(self._runs[run_id][attempt].size for run_id, attempt in self._unspilled)
        if not self._no_room:
            self._no_room = True
            log.error("no room on the disk: results are kept in memory", count=len(self._unspilled), bytes=waiting)
        while waiting > self._max_memory_bytes:
            run_id, attempt = next(iter(self._unspilled))
            size = self._runs[run_id][attempt].size
            log.error("no room for a result: it will be computed again", run=run_id, attempt=attempt, bytes=size)
            self._remove(run_id, attempt)
            waiting -= size

    def _write(self, run_id: str, entry: _Entry) -> bool:
        assert entry.result is not None
        body = entry.result.SerializeToString()
        run = run_id.encode()
        digest = hashlib.blake2b(run + body, digest_size=_DIGEST_BYTES).digest()
        data = b"".join((_MAGIC, digest, _RUN_LENGTH.pack(len(run)), run, body))
        if self._disk_bytes + len(data) > self._max_bytes:
            return False
        run_key = hashlib.blake2b(run, digest_size=8).hexdigest()
        path = self._folder / f"{run_key}-{entry.result.attempt}.result"
        temporary = path.with_suffix(".part")
        try:
            status = os.statvfs(self._folder)
            if status.f_bavail * status.f_frsize < len(data) + self._keep_free_bytes:
                return False
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            log.error("a result could not be written", path=str(path), why=error.strerror)
            return False
        entry.path, entry.result, entry.size = path, None, len(data)
        self._disk_bytes += len(data)
        return True

    def _remove(self, run_id: str, attempt: int) -> None:
        run = self._runs.get(run_id, {})
        entry = run.pop(attempt, None)
        if entry is None:
            return
        if not run:
            del self._runs[run_id]
        self._unspilled.pop((run_id, attempt), None)
        if entry.path is not None:
            self._disk_bytes -= entry.size
            entry.path.unlink(missing_ok=True)

    def _load(self) -> None:
        """What an earlier process of this daemon left. Only headers stay in memory."""
        for path in sorted(self._folder.iterdir()):
            if path.suffix != ".result" or time.time() - path.stat().st_mtime > FORGET_AFTER_SECONDS:
                path.unlink()
                continue
            read = _read(path)
            if read is None:
                path.unlink()
                continue
            run_id, result = read
            size = path.stat().st_size
            self._runs.setdefault(run_id, {})[result.attempt] = _Entry(result=None, size=size, added_at=0.0, path=path)
            self._disk_bytes += size


def _read(path: Path) -> tuple[str, Result] | None:
    """(run, result), None for a file that is not whole."""
    try:
        data = path.read_bytes()
    except OSError as error:
        log.error("a spooled result cannot be read", path=str(path), why=error.strerror)
        return None
    start = len(_MAGIC) + _DIGEST_BYTES
    head = start + _RUN_LENGTH.size
    if len(data) >= head and data.startswith(_MAGIC):
        run_end = head + _RUN_LENGTH.unpack_from(data, start)[0]
        run, body = data[head:run_end], data[run_end:]
        if hashlib.blake2b(run + body, digest_size=_DIGEST_BYTES).digest() == data[len(_MAGIC) : start]:
            try:
                return run.decode(), Result.FromString(body)
            except (DecodeError, UnicodeDecodeError):
                pass
    log.warning("a spooled result is damaged: it will be computed again", path=str(path))
    return None
