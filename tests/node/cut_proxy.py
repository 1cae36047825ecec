"""A TCP relay in front of a daemon that cuts connections, after so many bytes or all at once: a bad network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class CutProxy:
    """`allowances`: bytes that may come from the daemon on the next connections that carry more; then no limit."""

    port: int
    allowances: list[int]
    address: str = ""
    carried: list[int] = field(default_factory=list)  # bytes from the daemon, by connection
    whole: bool = True
    _relays: set[asyncio.Task[None]] = field(default_factory=set)
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Until `mend` nothing comes through."""
        self.whole = False
        for end in self._ends:
            end.transport.abort()

    async def ended(self) -> None:
        while self._relays:
            await asyncio.wait(self._relays)

    def mend(self) -> None:
        self.whole = True

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        number = len(self.carried)
        self.carried.append(0)
        from_daemon, to_daemon = await asyncio.open_connection("127.0.0.1", self.port)
        ends = {writer, to_daemon}
        self._ends |= ends
        up = asyncio.create_task(_copy(reader, to_daemon))
        try:
            while data := await from_daemon.read(64 * 1024):
                self.carried[number] += len(data)
                if self.allowances and self.carried[number] > self.allowances[0]:
                    self.allowances.pop(0)
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            up.cancel()
            self._ends -= ends
            for end in ends:
                end.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def cut_proxy(port: int, *allowances: int) -> AsyncIterator[CutProxy]:
    proxy = CutProxy(port, list(allowances))
    server = await asyncio.start_server(proxy.relay, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await proxy.ended()
