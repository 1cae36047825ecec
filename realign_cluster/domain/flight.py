"""Where every unit is: waiting, or in flight with its live attempts. Gives out ids of attempts and leases.

Moves units and attempts about as it is told, and decides nothing.
"""

from __future__ import annotations

from realign_cluster.domain.backlog import Backlog
from realign_cluster.domain.events import Grant, RevokeAttempts, UnitRef
from realign_cluster.domain.fleet import Attempt, Node, Work
from realign_cluster.domain.ids import AttemptId, LeaseId, UnitId


class Flight:
    """Invariants: a unit is in `backlog` or in `works`, not in both; an attempt in `attempts` is live, is one of its
    work's and in its node's queue; every work has an attempt, except between `drop` and what the caller then does
    with the unit.
    """

    __slots__ = ("attempts", "backlog", "next_attempt", "next_lease", "works")

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.works: dict[UnitId, Work] = {}
        self.attempts: dict[AttemptId, Attempt] = {}
        self.next_attempt = 0
        self.next_lease = 0

    def grant(self, node: Node, refs: tuple[UnitRef, ...], reason: str, now: float) -> Grant:
        """A lease of these units, which are no longer in the backlog or already in flight elsewhere."""
        lease = LeaseId(self.next_lease)
        self.next_lease += 1
        granted: list[tuple[AttemptId, UnitId]] = []
        cost = 0.0
        for ref in refs:
            work = self.works.get(ref.unit)
            if work is None:
                work = self.works[ref.unit] = Work(ref)
            attempt = Attempt(AttemptId(self.next_attempt), work, node, lease)
            self.next_attempt += 1
            work.attempts.append(attempt)
            self.attempts[attempt.attempt] = attempt
            node.hold(attempt, now)
            granted.append((attempt.attempt, ref.unit))
            cost += ref.cost
        seconds = cost / node.speed.cost_per_second
        return Grant(node=node.name, lease=lease, attempts=tuple(granted), expected_seconds=seconds, reason=reason)

    def drop(self, attempt: Attempt, now: float) -> None:
        """The attempt is live no more. Its unit is the caller's to place."""
        del self.attempts[attempt.attempt]
        attempt.work.attempts.remove(attempt)
        attempt.node.release(attempt, now)

    def land(self, work: Work) -> None:
        """The unit is done with: committed, split or quarantined. No attempt of it may be live."""
        assert not work.attempts
        del self.works[work.ref.unit]

    def revoke_all(self, work: Work, reason: str, now: float) -> list[RevokeAttempts]:
        """No attempt of this unit is wanted any more."""
        commands: list[RevokeAttempts] = []
        for attempt in tuple(work.attempts):
            self.drop(attempt, now)
            commands.append(RevokeAttempts(node=attempt.node.name, attempts=(attempt.attempt,), reason=reason))
        return commands

    def find(self, attempt_id: AttemptId, node: Node) -> Work | None:
        """The unit that the node means by this attempt, if it is not done: live there, or taken back from there.

        One that waits comes out of the backlog: the caller gives it back or lands it.
        """
        attempt = node.queue.get(attempt_id)
        if attempt is not None:
            return attempt.work
        unit = node.taken_back.get(attempt_id)
        if unit is None:
            return None
        work = self.works.get(unit)
        if work is None and (ref := self.backlog.take(unit)) is not None:
            work = self.works[unit] = Work(ref)
        return work

    def give_back(self, work: Work) -> None:
        """To the front of the backlog, unless another attempt of it is live."""
        if not work.attempts:
            del self.works[work.ref.unit]
            self.backlog.give_back((work.ref,))

    def give_back_all(self, node: Node, now: float) -> None:
        """Everything the node holds, in its order, to the front of the backlog."""
        refs: list[UnitRef] = []
        node.note_taken_back()
        for attempt in tuple(node.queue.values()):
            self.drop(attempt, now)
            if not attempt.work.attempts:
                del self.works[attempt.work.ref.unit]
                refs.append(attempt.work.ref)
        self.backlog.give_back(refs)
