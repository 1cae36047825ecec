"""A TCP relay in front of a daemon that cuts connections after so many bytes: what a bad network does to a transfer."""

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

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.carried)
        self.carried.append(0)
        from_daemon, to_daemon = await asyncio.open_connection("127.0.0.1", self.port)
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
            writer.transport.abort()
            to_daemon.transport.abort()


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
