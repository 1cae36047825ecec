"""What the scheduler knows of each node: its speed, the attempts it holds in the order it will compute them, its
failures.

State only: decisions are in `leases`, `poison` and `scheduler`. Mutable, because a decision must cost microseconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from realign_cluster.domain.events import UnitRef
from realign_cluster.domain.ids import AttemptId, LeaseId, NodeName, UnitId
from realign_cluster.domain.speed import RunningSpeed

TAKEN_BACK_LIMIT = 1024  # attempts remembered per node

Status = Literal["ready", "restarting", "lost", "set aside"]


class Work:
    """A unit in flight: at least one live attempt."""

    __slots__ = ("attempts", "ref")

    def __init__(self, ref: UnitRef) -> None:
        self.ref = ref
        self.attempts: list[Attempt] = []


class Attempt:
    """A live attempt: in `node.queue`, in `work.attempts` and in the scheduler's index, or in none of them."""

    __slots__ = ("attempt", "lease", "node", "work")

    def __init__(self, attempt: AttemptId, work: Work, node: Node, lease: LeaseId) -> None:
        self.attempt = attempt
        self.work = work
        self.node = node
        self.lease = lease


class Node:
    """Invariants: leases maps to the number of live attempts of each, never 0; outstanding_cost is the sum over
    queue.
    """

    __slots__ = (
        "absent_since",
        "alone",
        "cost_committed",
        "doubts",
        "duplicates_lost",
        "failures",
        "head_since",
        "last_failure",
        "leases",
        "left",
        "name",
        "outstanding_cost",
        "proven",
        "queue",
        "rounding",
        "rows_committed",
        "speed",
        "stale",
        "status",
        "strikes",
        "taken_back",
        "units_committed",
    )

    def __init__(self, name: NodeName, speed: RunningSpeed) -> None:
        self.name = name
        self.speed = speed
        self.status: Status = "ready"
        self.queue: OrderedDict[AttemptId, Attempt] = OrderedDict()
        self.leases: dict[LeaseId, int] = {}
        self.outstanding_cost = 0.0
        self.head_since = 0.0  # when the first of queue began, as far as we can tell: the one before it came back
        self.alone = False  # holds a suspected unit: nothing else until it is back
        self.rounding = 0.0  # cost that earlier leases were short of (above 0) or over (below 0) their target
        self.stale: tuple[AttemptId, ...] = ()  # held when it was lost: revoked when it returns
        self.taken_back: OrderedDict[AttemptId, UnitId] = OrderedDict()  # see note_taken_back
        self.absent_since = 0.0  # when it was lost or its worker went; meaningless while ready
        self.left = False  # it said goodbye: nobody waits for it
        # since its last commit
        self.strikes = 0  # failures that were the node's own
        self.doubts: dict[UnitId, None] = {}  # units that failed here and nowhere else, not yet computed elsewhere
        self.proven = True  # its last outcome was a result
        # for whoever looks on
        self.units_committed = 0
        self.rows_committed = 0
        self.cost_committed = 0.0
        self.failures = 0
        self.duplicates_lost = 0  # attempts revoked because another node was first
        self.last_failure = ""

    def hold(self, attempt: Attempt, now: float) -> None:
        if not self.queue:
            self.head_since = now
        self.queue[attempt.attempt] = attempt
        self.outstanding_cost += attempt.work.ref.cost
        self.leases[attempt.lease] = self.leases.get(attempt.lease, 0) + 1

    def release(self, attempt: Attempt, now: float) -> None:
        if next(iter(self.queue)) == attempt.attempt:
            self.head_since = now
        del self.queue[attempt.attempt]
        left = self.leases[attempt.lease] - 1
        if left:
            self.leases[attempt.lease] = left
        else:
            del self.leases[attempt.lease]
        if self.queue:
            self.outstanding_cost -= attempt.work.ref.cost
        else:
            self.outstanding_cost = 0.0
            self.alone = False

    def note_taken_back(self) -> None:
        """Before all it holds is given back: a lease on its way may reach its next worker before word of that does."""
        self.taken_back.update((attempt.attempt, attempt.work.ref.unit) for attempt in self.queue.values())
        while len(self.taken_back) > TAKEN_BACK_LIMIT:
            self.taken_back.popitem(last=False)

    def head(self) -> Attempt | None:
        return next(iter(self.queue.values()), None)

    def seconds_to_drain(self, now: float) -> float:
        """Until everything it holds is computed, at its present speed; at least 0."""
        head = self.head()
        if head is None:
            return 0.0
        speed = self.speed.cost_per_second
        done = min((now - self.head_since) * speed, head.work.ref.cost)
        return max(0.0, (self.outstanding_cost - done) / speed)


def usable_besides(node: Node, nodes: Iterable[Node], now: float, patience_seconds: float) -> list[Node]:
    """Nodes other than this that could take a unit now, or soon: their worker restarts, and not for longer than
    that.
    """
    return [
        other
        for other in nodes
        if other is not node
        and (other.status == "ready" or (other.status == "restarting" and now - other.absent_since <= patience_seconds))
    ]


def may_return(nodes: Iterable[Node], now: float, patience_seconds: float) -> bool:
    """Whether a lost node is worth waiting for: it did not say goodbye, and not long ago it was there."""
    return any(
        node.status == "lost" and not node.left and now - node.absent_since <= patience_seconds for node in nodes
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as others may see it. `cost_share` is of everything committed in this sitting."""

    name: NodeName
    status: Status
    cost_per_second: float
    claimed_cost_per_second: float  # what its calibration or prior said
    measured: bool
    leases: int
    units_outstanding: int
    seconds_outstanding: float
    slowest_unit_seconds: float  # of those outstanding: what a progress watchdog may expect
    computing: UnitId | None
    units_committed: int
    rows_committed: int
    cost_committed: float
    cost_share: float
    failures: int
    duplicates_lost: int
    last_failure: str


def view_of(node: Node, now: float, cost_committed: float) -> NodeView:
    head = node.head()
    slowest = max((attempt.work.ref.cost for attempt in node.queue.values()), default=0.0)
    return NodeView(
        name=node.name,
        status=node.status,
        cost_per_second=node.speed.cost_per_second,
        claimed_cost_per_second=node.speed.claimed,
        measured=node.speed.measured,
        leases=len(node.leases),
        units_outstanding=len(node.queue),
        seconds_outstanding=node.seconds_to_drain(now),
        slowest_unit_seconds=slowest / node.speed.cost_per_second,
        computing=head.work.ref.unit if head else None,
        units_committed=node.units_committed,
        rows_committed=node.rows_committed,
        cost_committed=node.cost_committed,
        cost_share=node.cost_committed / cost_committed if cost_committed else 0.0,
        failures=node.failures,
        duplicates_lost=node.duplicates_lost,
        last_failure=node.last_failure,
    )
