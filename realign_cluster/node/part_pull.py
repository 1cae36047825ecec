"""Fetches state parts from peers, in the background, a few at a time, and says of each how that went."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import StatePart
from realign_cluster.node.states import StateStore
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.part_stream import PartUnfit, remote_part
from realign_cluster.store.state_part import Corrupt

log = structlog.get_logger()

AT_ONCE = 2


class PartPuller:
    """`told` gets a part, what was wrong ("": it is here, every byte checked), and whether the part itself was: missing
    or damaged where it was to come from. One event loop owns it.
    """

    def __init__(
        self, states: StateStore, bundle: CertificateBundle, told: Callable[[StatePart, str, bool], None]
    ) -> None:
        self._states = states
        self._bundle = bundle
        self._told = told
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    def fetch(self, run_id: str, part: StatePart, address: str, node_id: str) -> None:
        """From the daemon at `address`, unless it is here; without an address it is only looked for here."""
        key = (run_id, part.name)
        if key not in self._tasks:  # asked again after a reconnect: the answer is under way
            task = self._tasks[key] = asyncio.create_task(self._fetch(run_id, part, address, node_id))
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def cancel(self) -> None:
        """What was asked for is not wanted any more, and nobody is told of it."""
        for task in self._tasks.values():
            task.cancel()

    async def _fetch(self, run_id: str, part: StatePart, address: str, node_id: str) -> None:
        error, corrupt = "", False
        try:
            async with self._turn:
                if await self._states.intact(run_id, part):
                    pass
                elif not address:
                    error, corrupt = f"{part.name} is not here as it was written", True
                else:
                    source = remote_part(address, self._bundle, node_id, run_id, part)
                    async with contextlib.aclosing(source) as chunks:
                        await self._states.receive(run_id, part, chunks)
        except (RealignError, OSError) as problem:
            error, corrupt = str(problem), isinstance(problem, (Corrupt, PartUnfit))
            log.warning("a part could not be fetched", part=part.name, address=address, why=error)
        self._told(part, error, corrupt)
