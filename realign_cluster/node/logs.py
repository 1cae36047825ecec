"""Logs that rotate themselves: nobody else does it for a daemon under launchd, and a worker may print without end."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import sys
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

MAX_BYTES = 10 * 1024 * 1024
KEPT = 3
_FOLLOW_SECONDS = 0.3
_READ_BYTES = 64 * 1024


def configure_logging(path: Path, *, to_stderr: bool) -> None:
    """JSON lines into `path`, readable ones to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    rotating = logging.handlers.RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT)
    rotating.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    handlers: list[logging.Handler] = [rotating]
    if to_stderr:
        stream = logging.StreamHandler(sys.stderr)
        stream.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=shared,
                processors=[
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
                ],
            )
        )
        handlers.append(stream)
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.INFO)
    logging.getLogger("zeroconf").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


class OutputLog:
    """What a worker prints, as it is, in a file of bounded size; the last lines also in memory."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT, last_lines: int = 20) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept = kept
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._last: deque[bytes] = deque(maxlen=last_lines)
        self._partial = b""

    def write(self, data: bytes) -> None:
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()[-4096:]
        self._last.extend(line[-500:] for line in lines)
        try:
            self._file.write(data)
        except OSError:  # disk full: a lost log line is no reason to stop working
            return
        self._size += len(data)
        if self._size > self._max_bytes:
            self._rotate()

    def begin_process(self, what: str) -> None:
        self._last.clear()
        self._partial = b""
        self.write(f"--- {what}\n".encode())
        self._last.clear()

    def last_lines(self) -> str:
        lines = [*self._last, self._partial] if self._partial else list(self._last)
        return b"\n".join(lines).decode(errors="replace")

    def close(self) -> None:
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._kept - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        self._file = self._path.open("ab", buffering=0)
        self._size = 0


def tail(path: Path, size: int) -> bytes:
    """The last `size` bytes, from the beginning of a line; empty where there is no such file."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            start = max(0, length - size)
            file.seek(start)
            data = file.read(size)
    except FileNotFoundError:
        return b""
    return data.partition(b"\n")[2] if start and b"\n" in data else data


async def follow(path: Path, last_bytes: int, *, on: bool) -> AsyncIterator[bytes]:
    """The end of a log, then (if `on`) what is added, across rotations."""
    try:
        inode, position = path.stat().st_ino, path.stat().st_size
    except FileNotFoundError:
        inode, position = 0, 0
    if data := tail(path, last_bytes):
        yield data
    while on:
        await asyncio.sleep(_FOLLOW_SECONDS)
        try:
            with path.open("rb") as file:
                status = path.stat()
                if status.st_ino != inode:
                    inode, position = status.st_ino, 0
                file.seek(position)
                while data := file.read(_READ_BYTES):
                    position += len(data)
                    yield data
        except FileNotFoundError:
            continue
