"""The one thread that writes a training run's ledger: the event loop asks, it never waits for a disk.

While the disk is full it keeps what it was given and tries again: nothing is acknowledged or carried out meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from realign_cluster.coordinator.train_track import Tracking
from realign_cluster.store.space import StorageFull
from realign_cluster.store.train_ledger import Measurement, StepRecord, TrainLedger

T = TypeVar("T")
RETRY_SECONDS = 1.0


class TrainDesk:
    """`tracking` hears of what has come into the ledger."""

    def __init__(self, ledger: TrainLedger, tracking: Tracking | None = None) -> None:
        self.ledger = ledger
        self._tracking = tracking
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._reference = ledger.reference()

    async def do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def record(
        self,
        *,
        events: Sequence[tuple[float, Mapping[str, Any]]] = (),
        steps: Sequence[StepRecord] = (),
        measurements: Sequence[Measurement] = (),
        reference: Sequence[tuple[int, float, float]] = (),
        memory: Mapping[str, Any] | None = None,
        when_full: Callable[[str], None],
    ) -> None:
        """Durable when it returns. A full disk delays it."""
        if not (events or steps or measurements or reference or memory):
            return
        while True:
            try:
                await self.do(
                    lambda: self.ledger.record(
                        time.time(),
                        events=events,
                        steps=steps,
                        measurements=measurements,
                        reference=reference,
                        memory=memory,
                    )
                )
                self._reference |= {row: (chosen, rejected) for row, chosen, rejected in reference}
                if self._tracking is not None:
                    self._thread.submit(self._tracking.take, steps, measurements)
                return
            except StorageFull as full:
                when_full(str(full))
                await asyncio.sleep(RETRY_SECONDS)

    def reference(self) -> list[tuple[int, float, float]]:
        """(row, chosen, rejected) as far as they are known, by row."""
        return [(row, *values) for row, values in sorted(self._reference.items())]

    async def add_reference(self, rows: Iterable[tuple[int, float, float]], when_full: Callable[[str], None]) -> None:
        """What others have computed becomes the run's own, where it has nothing: later sittings go on with the same
        values, whatever has become of theirs.
        """
        await self.record(reference=[row for row in rows if row[0] not in self._reference], when_full=when_full)

    def close(self) -> None:
        """Returns once nobody uses the ledger here any more; who opened it closes it."""
        self._thread.shutdown()
        if self._tracking is not None:
            self._tracking.close()
