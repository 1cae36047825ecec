"""The units that a run left with this node: waiting here, handed to the worker, or being computed. Pure bookkeeping.

The worker knows a unit by a ticket, a number of this daemon's own: attempt numbers of two runs, or of one run's two
sittings, may meet in one warm worker. Only a few units are handed over ahead: taking the rest back costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

WINDOW_UNITS = 16
WINDOW_BYTES = 8 * 1024 * 1024
MAX_UNITS = 65_536
MAX_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One attempt at one unit. `size` is the bytes of its rows; the rows themselves are not kept once handed over."""

    ticket: int
    run_id: str
    epoch: int
    attempt: int
    unit: int
    lease: int
    count: int
    cost: float
    size: int
    row_ids: bytes = b""


class QueueFull(Exception):
    """More than any coordinator may leave with a node."""


class WorkQueue:
    def __init__(self) -> None:
        self._next_ticket = 1  # never falls: a lower ticket was handed over earlier
        self._waiting: deque[tuple[Held, bytes]] = deque()
        self._waiting_keys: set[tuple[str, int]] = set()
        self._waiting_bytes = 0
        self._handed: dict[int, Held] = {}  # by ticket, in the order of handing over
        self._dropped: set[int] = set()  # handed over, then taken back: the worker may or may not still answer
        self._silenced: set[int] = set()  # revoked by the coordinator: an answer is thrown away
        self._handed_bytes = 0  # of those that were not taken back
        self._computing: int | None = None

    def __len__(self) -> int:
        return len(self._waiting) + self._live

    @property
    def _live(self) -> int:
        return len(self._handed) - len(self._dropped)

    @property
    def computing(self) -> Held | None:
        return self._handed.get(self._computing) if self._computing is not None else None

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._live)

    def add(
        self,
        *,
        run_id: str,
        epoch: int,
        attempt: int,
        unit: int,
        lease: int,
        count: int,
        cost: float,
        rows: bytes,
        row_ids: bytes = b"",
    ) -> bool:
        """False when this attempt is here already (sent again after a reconnect).

        Raises QueueFull.
        """
        for ticket, held in self._handed.items():
            if (
                held.attempt == attempt
                and held.run_id == run_id
                and ticket not in self._silenced
                and (ticket not in self._dropped or ticket == self._computing)
            ):
                if ticket in self._dropped:
                    self._dropped.discard(ticket)
                    self._handed_bytes += held.size
                return False
        if (run_id, attempt) in self._waiting_keys:
            return False
        if len(self._waiting) >= MAX_UNITS or self._waiting_bytes + len(rows) > MAX_BYTES:
            raise QueueFull(f"{len(self._waiting)} units, {self._waiting_bytes} bytes are waiting on this node already")
        held = Held(
            ticket=self._next_ticket,
            run_id=run_id,
            epoch=epoch,
            attempt=attempt,
            unit=unit,
            lease=lease,
            count=count,
            cost=cost,
            size=len(rows),
            row_ids=row_ids,
        )
        self._next_ticket += 1
        self._waiting.append((held, rows))
        self._waiting_keys.add((run_id, attempt))
        self._waiting_bytes += len(rows)
        return True

    def hand_over(self) -> list[tuple[Held, bytes]]:
        """What the worker should get now: at least one, and no more than the window.

        What was taken back counts for nothing: the worker skips it, and may never say so.
        """
        going: list[tuple[Held, bytes]] = []
        while self._waiting and (
            self._live == 0
            or (self._live < WINDOW_UNITS and self._handed_bytes + self._waiting[0][0].size <= WINDOW_BYTES)
        ):
            held, rows = self._waiting.popleft()
            self._waiting_keys.discard((held.run_id, held.attempt))
            self._waiting_bytes -= held.size
            self._handed[held.ticket] = held
            self._handed_bytes += held.size
            going.append((held, rows))
        return going

    def began(self, ticket: int) -> None:
        """Units are computed in the order of handing over: what was taken back before this one is skipped by now."""
        self._computing = ticket if ticket in self._handed else None
        for passed in [each for each in self._handed if each < ticket and each in self._dropped]:
            self._forget(passed)

    def finished(self, ticket: int) -> Held | None:
        """Whose answer this is; None when nobody waits for it."""
        held = self._handed.get(ticket)
        silenced = ticket in self._silenced
        if held is not None:
            self._forget(ticket)
        return None if silenced else held

    def revoke(self, run_id: str, attempts: Collection[int]) -> list[int]:
        """Takes these back for good. Returns the tickets the worker has to be told of."""
        gone = set(attempts)
        self._drop_waiting(lambda held: held.run_id == run_id and held.attempt in gone)
        tickets = [held.ticket for held in self._handed.values() if held.run_id == run_id and held.attempt in gone]
        self._silenced.update(tickets)
        return self._drop(tickets)

    def drop_all_but_computing(self) -> list[int]:
        """The coordinator is gone: only what is in hand gets finished. Returns the tickets to tell the worker of."""
        self._drop_waiting(lambda _: True)
        return self._drop([ticket for ticket in self._handed if ticket != self._computing])

    def silence(self, run_id: str) -> list[int]:
        """The run is over: also what is in hand will not be asked for. Returns the tickets to tell the worker of."""
        return self.revoke(run_id, {held.attempt for held in self._handed.values()} | self._attempts_waiting(run_id))

    def _attempts_waiting(self, run_id: str) -> set[int]:
        return {attempt for run, attempt in self._waiting_keys if run == run_id}

    def _drop(self, tickets: list[int]) -> list[int]:
        fresh = [ticket for ticket in tickets if ticket not in self._dropped]
        self._dropped.update(fresh)
        self._handed_bytes -= sum(self._handed[ticket].size for ticket in fresh)
        return fresh

    def worker_gone(self) -> tuple[Held | None, list[Held]]:
        """(what it was computing, all others that were here). Afterwards the queue is empty."""
        computing = self.computing if self._computing not in self._silenced else None
        others = [held for held in self._handed.values() if held is not computing and held.ticket not in self._dropped]
        others += [held for held, _ in self._waiting]
        self._drop_waiting(lambda _: True)
        self._handed.clear()
        self._handed_bytes = 0
        self._dropped.clear()
        self._silenced.clear()
        self._computing = None
        return computing, others

    def _drop_waiting(self, unwanted: Callable[[Held], bool]) -> None:
        kept = [(held, rows) for held, rows in self._waiting if not unwanted(held)]
        self._waiting = deque(kept)
        self._waiting_keys = {(held.run_id, held.attempt) for held, _ in kept}
        self._waiting_bytes = sum(held.size for held, _ in kept)

    def _forget(self, ticket: int) -> None:
        held = self._handed.pop(ticket)
        if ticket not in self._dropped:
            self._handed_bytes -= held.size
        self._dropped.discard(ticket)
        self._silenced.discard(ticket)
        if self._computing == ticket:
            self._computing = None
