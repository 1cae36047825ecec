"""Part files as chunks: read from a folder, and drawn by a writing thread out of what arrives in an event loop.

Knows neither where chunks come from nor where they go.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from realign_cluster.domain.world import StatePart
from realign_cluster.store.state_part import Corrupt, data_path, manifest_path, read_header

CHUNK_BYTES = 1 << 20
Result = TypeVar("Result")


def part_chunks(folder: Path, part: StatePart, offset: int = 0) -> Iterator[bytes]:
    """The bytes of the part's manifest, then its data from `offset` on.

    A part that is replaced or removed meanwhile is read on as it was. Raises Corrupt where it is not there.
    """
    path = data_path(folder, part)
    try:
        with path.open("rb") as file:
            if (held := read_header(path).state) != part:
                raise Corrupt(path, f"it has digest {held.digest}, not {part.digest}")
            yield manifest_path(folder, part).read_bytes()
            file.seek(offset)
            while data := file.read(CHUNK_BYTES):
                yield data
    except OSError as error:
        raise Corrupt(path, error.strerror or str(error)) from error


async def draw(write: Callable[[Iterable[bytes]], Result], chunks: AsyncIterator[bytes]) -> Result:
    """What `write` answers, which runs in a thread and draws the chunks as it gets through with them.

    Raises what `write` or `chunks` raise. Cancelled, it returns after the thread, whose next chunk is an error then.
    """
    loop = asyncio.get_running_loop()
    drawing: list[concurrent.futures.Future[bytes | None]] = []

    def drawn() -> Iterator[bytes]:
        while True:
            drawing[:] = [asyncio.run_coroutine_threadsafe(_next(chunks), loop)]
            if stopped.is_set():
                drawing[0].cancel()
            if (chunk := drawing[0].result()) is None:
                return
            yield chunk

    stopped = asyncio.Event()
    writing = asyncio.ensure_future(asyncio.to_thread(write, drawn()))
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        stopped.set()
        for chunk in drawing:
            chunk.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        raise


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
