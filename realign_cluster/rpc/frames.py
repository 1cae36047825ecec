"""Frames on the pipe between a daemon and its worker: four bytes of length, little-endian, then one msgpack map.

Knows nothing of what the maps mean (the "op" key names the kind), and imports neither gRPC nor MLX: both ends use it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgpack

MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class FrameError(Exception):
    """The other end does not speak this protocol, or died within a frame."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


class Writable(Protocol):
    def write(self, data: bytes, /) -> int | None: ...
    def flush(self) -> None: ...


def encode_frame(frame: Mapping[str, Any]) -> bytes:
    """Raises FrameError if the frame is larger than MAX_FRAME_BYTES: the other end would refuse it."""
    body = pack_frame(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is larger than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def pack_frame(frame: Mapping[str, Any]) -> bytes:
    """A frame without its length: what a coordinator sends for a daemon to hand on."""
    body: bytes = msgpack.packb(frame)
    return body


def unpack_frame(body: bytes) -> dict[str, Any]:
    """Raises FrameError."""
    try:
        frame = msgpack.unpackb(body)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise FrameError(f"a frame is not msgpack: {error}") from error
    if not isinstance(frame, dict):
        raise FrameError(f"a frame holds {type(frame).__name__}, not a map")
    return frame


def write_frame(file: Writable, frame: Mapping[str, Any]) -> None:
    """Writes all of it and flushes; not from two threads at once. Raises OSError when the reader is gone."""
    data = memoryview(encode_frame(frame))
    while data:
        written = file.write(data)  # type: ignore[arg-type]  # raw files take any buffer, and may take part of it
        if written is None:
            raise BlockingIOError("a frame was written to a pipe that does not block")
        data = data[written:]
    file.flush()


def _checked_length(header: bytes) -> int:
    length: int = _LENGTH.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame announces {length} bytes, more than {MAX_FRAME_BYTES}")
    return length


class FrameReader:
    """Blocking reader over a binary file (buffered or raw)."""

    def __init__(self, file: Readable) -> None:
        self._file = file

    def _exactly(self, size: int) -> bytes:
        """Fewer bytes only at the end of the file."""
        parts: list[bytes] = []
        missing = size
        while missing:
            part = self._file.read(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read(self) -> dict[str, Any] | None:
        """The next frame, None when the other end closed between two. Raises FrameError when it closed within one."""
        header = self._exactly(_LENGTH.size)
        if not header:
            return None
        if len(header) < _LENGTH.size:
            raise FrameError("the pipe closed within a frame's length")
        length = _checked_length(header)
        body = self._exactly(length)
        if len(body) < length:
            raise FrameError(f"the pipe closed {length - len(body)} bytes before the end of a frame")
        return unpack_frame(body)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (frame := self.read()) is not None:
            yield frame


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The asyncio form of FrameReader.read."""
    try:
        header = await reader.readexactly(_LENGTH.size)
        return unpack_frame(await reader.readexactly(_checked_length(header)))
    except asyncio.IncompleteReadError as error:
        if error.expected == _LENGTH.size and not error.partial:
            return None
        raise FrameError("the pipe closed within a frame") from error
