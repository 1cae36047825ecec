"""The one thread that touches a run's ledger and its input: the event loop asks, it never waits for a disk.

Decides nothing. While the disk is full it keeps what it was given and tries again: nothing is acknowledged meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from binascii import unhexlify
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from realign_cluster.domain.events import RunOpened, UnitRef
from realign_cluster.domain.ids import UnitId
from realign_cluster.store.ledger import Entry, Ledger
from realign_cluster.store.positions import row_ids
from realign_cluster.store.readers import Sources
from realign_cluster.store.space import StorageFull

T = TypeVar("T")
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRows:
    """What travels to a node: raw JSON rows joined by newlines, and 16 bytes of id of each where they are asked for."""

    unit: UnitId
    rows: bytes
    count: int
    row_ids: bytes = b""


class LedgerDesk:
    def __init__(self, ledger: Ledger, sources: Sources, *, with_row_ids: bool = False) -> None:
        """`with_row_ids`: rows travel with their ids."""
        self.ledger = ledger
        self._with_row_ids = with_row_ids
        self._sources = sources
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    async def do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def open_epoch(self, at: float) -> RunOpened:
        return await self.do(lambda: self.ledger.open_epoch(at, time.time()))

    async def load_pending(self, count: int) -> tuple[tuple[UnitRef, ...], bool]:
        return await self.do(lambda: self.ledger.load_pending(count))

    async def fetch(self, units: Sequence[UnitId]) -> list[UnitRows]:
        """The rows of these units, in unit order, read from the input again."""

        def read() -> list[UnitRows]:
            found = []
            positions = self.ledger.unit_positions(tuple(units))
            for unit in units:
                rows = self._sources.read(positions[unit])
                ids = unhexlify(b"".join(row_ids(positions[unit], rows))) if self._with_row_ids else b""
                found.append(UnitRows(unit=unit, rows=b"\n".join(rows), count=len(rows), row_ids=ids))
            return found

        return await self.do(read)

    async def record(self, entries: Sequence[Entry], when_full: Callable[[StorageFull], bool]) -> None:
        """Durable when it returns. A full disk delays it for as long as `when_full` says to wait, else it is raised."""
        while True:
            try:
                await self.do(lambda: self.ledger.record(entries, time.time()))
                return
            except StorageFull as full:
                if not when_full(full):
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Returns once nobody uses the ledger here any more; who opened it closes it."""
        self._thread.shutdown()
