"""Frames survive any cut of the pipe, and anything else is an error with a name."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.rpc.frames import MAX_FRAME_BYTES, FrameError, FrameReader, encode_frame, read_frame, write_frame

FRAMES = st.lists(
    st.dictionaries(
        st.text(max_size=8), st.one_of(st.integers(-(2**63), 2**64 - 1), st.binary(max_size=99), st.text(max_size=9))
    ),
    max_size=5,
)


@given(FRAMES)
def test_what_is_written_is_read(frames: list[dict[str, object]]) -> None:
    file = io.BytesIO()
    for frame in frames:
        write_frame(file, frame)
    file.seek(0)
    assert list(FrameReader(file)) == frames


@given(FRAMES, st.integers(1, 7))
def test_asyncio_reads_the_same_in_any_pieces(frames: list[dict[str, object]], piece: int) -> None:
    data = b"".join(map(encode_frame, frames))

    async def read_all() -> list[dict[str, object]]:
        reader = asyncio.StreamReader()
        for start in range(0, len(data), piece):
            reader.feed_data(data[start : start + piece])
        reader.feed_eof()
        read = []
        while (frame := await read_frame(reader)) is not None:
            read.append(frame)
        return read

    assert asyncio.run(read_all()) == frames


def test_a_frame_larger_than_the_pipe_goes_through_raw_files() -> None:
    read_end, write_end = os.pipe()
    frame = {"op": "result", "payload": os.urandom(3 * 1024 * 1024)}
    with os.fdopen(read_end, "rb", buffering=0) as source, os.fdopen(write_end, "wb", buffering=0) as sink:
        writer = threading.Thread(target=write_frame, args=(sink, frame))
        writer.start()
        assert FrameReader(source).read() == frame
        writer.join()


@pytest.mark.parametrize("cut", [2, 6])
async def test_a_pipe_that_closes_within_a_frame_is_an_error(cut: int) -> None:
    data = encode_frame({"op": "stop"})[:cut]
    with pytest.raises(FrameError, match="closed"):
        FrameReader(io.BytesIO(data)).read()
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    with pytest.raises(FrameError, match="closed"):
        await read_frame(reader)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", MAX_FRAME_BYTES + 1),
        struct.pack("<I", 1) + b"\xc1",  # never used in msgpack
        struct.pack("<I", 1) + b"\x05",  # a number
    ],
)
def test_garbage_is_an_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader(io.BytesIO(data)).read()
