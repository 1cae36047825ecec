"""Between the jobs of a workflow: whoever was there before the last job is waited for before the next.

A daemon that is being started again is no reason to end a workflow of hours, nor to train without it what would then be
another model. `domain.attendance` says who; here is the looking and the waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from realign_cluster.coordinator.cluster import connect
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.hostfile_reader import read_hostfile
from realign_cluster.coordinator.progress import Level
from realign_cluster.domain.attendance import Attendance
from realign_cluster.domain.errors import NodesMissing
from realign_cluster.domain.ids import NodeName

WAIT_SECONDS = 120.0
AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Where it is kept over sittings who was there."""

    read: Callable[[], frozenset[NodeName]]
    write: Callable[[frozenset[NodeName]], None]


def register_of_a_sitting() -> Register:
    """That nothing outlives."""
    there: list[frozenset[NodeName]] = [frozenset()]
    return Register(read=lambda: there[-1], write=there.append)


class RollCall:
    """Of one sitting. `look` is called while it waits, and may raise: to be interrupted."""

    def __init__(
        self,
        hostfile: Path | None,
        *,
        discover: bool,
        allow_skew: frozenset[str],
        home: ClusterHome,
        wait_seconds: float | None,
        register: Register,
        note: Callable[[str, Level], None],
        look: Callable[[], None],
    ) -> None:
        self._hostfile = hostfile
        self._discover = discover
        self._allow_skew = allow_skew
        self._home = home
        self._wait_seconds = WAIT_SECONDS if wait_seconds is None else wait_seconds
        self._note = note
        self._look = look
        self._register = register

    async def wait(self) -> None:
        """Returns when all are there who were there last time, or were waited for for long enough: who is away then is
        not waited for again until it has been there. Whether the rest is enough is for the job to say.
        """
        begun = time.monotonic()
        said: set[NodeName] = set()
        attendance = Attendance(there=await asyncio.to_thread(self._register.read))
        named = await asyncio.to_thread(self._named)
        while True:
            there = await self._there()
            away = attendance.away(there, named)
            if not away or time.monotonic() - begun >= self._wait_seconds:
                break
            for node in away:
                if node not in said:
                    self._note(f"{node} is away: waiting up to {self._wait_seconds:.0f} s for it", "warning")
            said.update(away)
            await asyncio.sleep(AGAIN_SECONDS)
            self._look()
        if (now := attendance.begins(there)) != attendance:
            await asyncio.to_thread(self._register.write, now.there)

    def _named(self) -> frozenset[NodeName]:
        if self._hostfile is not None:
            return frozenset(NodeName(host.name) for host in read_hostfile(self._hostfile).hosts)
        return frozenset(NodeName(node.name) for node in self._home.nodes() if node.revoked is None)

    async def _there(self) -> frozenset[NodeName]:
        try:
            async with connect(
                self._hostfile, discover=self._discover, home=self._home, min_nodes=1, allow_skew=self._allow_skew
            ) as cluster:
                return frozenset(link.name for link in cluster.nodes)
        except NodesMissing:
            return frozenset()
