"""What happens to a run (events) and what is to be done about it (commands).

Events are facts with the coordinator's monotonic time `at`, in seconds. Commands carry their reason. Both are written
to the ledger in order, so that a run can be replayed through `domain.scheduler` and gives the same commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from realign_cluster.domain.ids import AttemptId, Epoch, LeaseId, NodeName, UnitId


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRef:
    """A compute unit as the scheduler sees it. `cost` is in estimated token equivalents (domain.batching.row_cost)."""

    unit: UnitId
    cost: float
    longest: int  # text bytes of its longest row
    rows: int
    suspected: bool = False  # part of a unit that failed on two nodes: leased alone, split at its first failure
    failed_on: tuple[NodeName, ...] = ()  # who was computing it when it failed


# --- events ---


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOpened:
    at: float
    epoch: Epoch
    units: int  # still to do
    cost: float  # still to do
    next_unit: UnitId
    next_attempt: AttemptId
    next_lease: LeaseId
    planned_cost_per_second: float = 0.0  # of all nodes in the plan: some may be ready later than others
    planned_nodes: tuple[NodeName, ...] = ()  # their names; empty: not known, nobody is waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsLoaded:
    """Answer to LoadUnits: longest first. `exhausted` when the ledger holds no further pending ones."""

    at: float
    units: tuple[UnitRef, ...]
    exhausted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReady:
    """Its worker is loaded, its canaries agree. Also after a worker restart or a reconnect."""

    at: float
    node: NodeName
    cost_per_second: float
    measured: bool  # False: a prior, to be replaced by the first results


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """Its lease ran out, its connection is gone for good, or it left (`clean`)."""

    at: float
    node: NodeName
    reason: str
    clean: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultReceived:
    at: float
    node: NodeName
    attempt: AttemptId
    unit: UnitId
    epoch: Epoch
    valid: bool  # checksum and row count hold
    compute_seconds: float
    failed_rows: int = 0  # rows of it that carry an error of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFailed:
    """The worker is alive and says that this unit cannot be computed."""

    at: float
    node: NodeName
    attempt: AttemptId
    unit: UnitId
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExited:
    """The node has no worker until its next NodeReady. Only `computing` is to blame, unless we asked for it."""

    at: float
    node: NodeName
    reason: str
    computing: AttemptId | None
    asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStalled:
    """No progress for `seconds` while computing `attempt` (or while loading: None)."""

    at: float
    node: NodeName
    attempt: AttemptId | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passes: speculation and overdue attempts. Recorded only when it leads to a command."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageChanged:
    """Whether the coordinator's disk can take results. While it cannot, no lease is given out."""

    at: float
    writable: bool
    needed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainAsked:
    """The user interrupted: give out no more, revoke nothing, finish when all is back or `until` has passed."""

    at: float
    until: float


Event = (
    RunOpened
    | UnitsLoaded
    | NodeReady
    | NodeLost
    | ResultReceived
    | UnitFailed
    | WorkerExited
    | WorkerStalled
    | Tick
    | StorageChanged
    | DrainAsked
)


# --- commands ---


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadUnits:
    """Read up to `count` pending units, longest first, that were not handed to the scheduler in this epoch yet."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    node: NodeName
    lease: LeaseId
    attempts: tuple[tuple[AttemptId, UnitId], ...]
    expected_seconds: float
    reason: str  # "longest first", "speculation: m3ultra overdue by 2.1 s", "suspected, alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeAttempts:
    node: NodeName
    attempts: tuple[AttemptId, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    node: NodeName
    attempt: AttemptId
    unit: UnitId


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """The result is not wanted (revoked, older epoch, invalid): acknowledge it so that the node forgets it."""

    node: NodeName
    attempt: AttemptId
    unit: UnitId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Replace a unit by children over consecutive row positions: (child, first row, row count)."""

    unit: UnitId
    children: tuple[tuple[UnitId, int, int], ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """A unit of one row that failed alone on two nodes (or twice, where there is only one): its row goes to failed/."""

    unit: UnitId
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """Record that `node` was computing `unit` when it failed: survives a restart of the coordinator."""

    unit: UnitId
    node: NodeName
    attempt: AttemptId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartWorkerOn:
    node: NodeName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """This node keeps failing: no more leases for the rest of this sitting."""

    node: NodeName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Nothing is left to do, or nothing more can be done: see `complete`."""

    complete: bool
    reason: str


Command = (
    LoadUnits
    | Grant
    | RevokeAttempts
    | Commit
    | Discard
    | Split
    | Quarantine
    | Blame
    | RestartWorkerOn
    | SetAside
    | Finish
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one event led to; `seconds_to_next_look` bounds how long the caller may wait before the next Tick."""

    commands: tuple[Command, ...] = ()
    seconds_to_next_look: float = field(default=0.5)
