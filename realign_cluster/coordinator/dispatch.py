"""What was granted, on its way to the nodes: reads a lease's rows from the input and hands them to its session.

Knows which attempts are still wanted, and how many rows each was sent with. Decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from realign_cluster.coordinator.ledger_desk import LedgerDesk
from realign_cluster.coordinator.session import ScoringNode
from realign_cluster.domain.events import Event, Grant, NodeLost, UnitFailed, WorkerExited
from realign_cluster.domain.ids import AttemptId, NodeName
from realign_cluster.rpc.pb import node_pb2 as pb

UNITS_PER_READ = 16  # so that a large lease does not hold up the commits that share its thread


class Dispatch:
    def __init__(self, desk: LedgerDesk, sessions: Mapping[NodeName, ScoringNode]) -> None:
        self._desk = desk
        self._sessions = sessions
        self._grants: dict[NodeName, asyncio.Queue[Grant]] = {name: asyncio.Queue() for name in sessions}
        self._live: dict[AttemptId, NodeName] = {}
        self._rows_sent: dict[AttemptId, int] = {}

    def grant(self, grant: Grant) -> None:
        for attempt, _ in grant.attempts:
            self._live[attempt] = grant.node
        self._grants[grant.node].put_nowait(grant)

    def rows_sent(self, attempt: AttemptId) -> int | None:
        """How many rows the attempt was sent with; None if it was not, or is over."""
        return self._rows_sent.get(attempt)

    def forget(self, attempts: Iterable[AttemptId]) -> None:
        """These are over: what of them was not sent yet stays here."""
        for attempt in attempts:
            self._live.pop(attempt, None)
            self._rows_sent.pop(attempt, None)

    def forget_what_ended(self, event: Event) -> None:
        """Attempts that an event ended without a command that names them."""
        match event:
            case NodeLost(node=node) | WorkerExited(node=node):
                self.forget([attempt for attempt, holder in self._live.items() if holder == node])
            case UnitFailed(attempt=attempt):
                self.forget([attempt])
            case _:
                pass

    async def run(self, node: NodeName) -> None:
        """Sends what is granted to `node`, grant by grant, until cancelled."""
        session = self._sessions[node]
        while True:
            grant = await self._grants[node].get()
            wanted = [(attempt, unit) for attempt, unit in grant.attempts if self._live.get(attempt) == node]
            for start in range(0, len(wanted), UNITS_PER_READ):
                part = wanted[start : start + UNITS_PER_READ]
                fetched = await self._desk.fetch([unit for _, unit in part])
                assigns = []
                for (attempt, unit), rows in zip(part, fetched, strict=True):
                    if self._live.get(attempt) != node:
                        continue
                    self._rows_sent[attempt] = rows.count
                    assigns.append(
                        pb.Assign(
                            lease=grant.lease,
                            attempt=attempt,
                            unit=unit,
                            rows=rows.rows,
                            count=rows.count,
                            row_ids=rows.row_ids,
                        )
                    )
                session.assign(assigns)
