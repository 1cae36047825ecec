"""What happened in a run, read from its ledger in one pass: commits, presences, incidents, and the efficiency of it.

Reads only, so it works on a run that is going on. Knows nothing of how it is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from realign_cluster.domain import efficiency
from realign_cluster.domain.efficiency import DUPLICATES, RECOVERY, Computation, Efficiency, Outage, Presence
from realign_cluster.domain.events import (
    Command,
    Commit,
    Discard,
    DrainAsked,
    Event,
    Finish,
    Grant,
    NodeLost,
    NodeReady,
    Quarantine,
    RestartWorkerOn,
    ResultReceived,
    RevokeAttempts,
    SetAside,
    Split,
    StorageChanged,
    UnitFailed,
    UnitsLoaded,
    WorkerExited,
    WorkerStalled,
)
from realign_cluster.domain.ids import AttemptId, Epoch, UnitId
from realign_cluster.store.ledger_reader import LedgerReader, RecordedEvent

IncidentKind = Literal[
    "ready", "lost", "left", "worker", "speculation", "failed unit", "split", "quarantine", "set aside", "storage",
    "interrupt", "opened", "finished",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPoint:
    """One committed unit. `at` is in seconds from the beginning of the run, with the time between sittings left out."""

    at: float
    node: str
    rows: int
    cost: float
    compute_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    at: float  # as in CommitPoint
    wall: float  # seconds since 1970
    kind: IncidentKind
    node: str  # "" where it is of the whole run
    text: str
    trouble: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SittingHistory:
    """`begin` and `end` are on the axis of CommitPoint.at; `measured` keeps the coordinator's monotonic times."""

    epoch: Epoch
    begin: float
    end: float
    wall: float  # when it was opened, seconds since 1970
    monotonic: float  # the same, as in `measured`
    measured: efficiency.Sitting


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCounts:
    """What one node had besides commits."""

    attempts: int = 0
    discarded: int = 0  # results that were not wanted
    revoked: int = 0
    failed_units: int = 0
    worker_exits: int = 0
    losses: int = 0
    speculative: int = 0  # attempts that duplicated another node's unit
    first_speed: float | None = None  # calibrated cost per second at its first join
    first_speed_measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    sittings: tuple[SittingHistory, ...]
    commits: tuple[CommitPoint, ...]
    incidents: tuple[Incident, ...]
    counts: dict[str, NodeCounts]
    efficiency: Efficiency
    duplicate_cost: float  # computed and not wanted, in cost
    committed_cost: float

    @property
    def seconds(self) -> float:
        """All sittings together."""
        return sum(sitting.end - sitting.begin for sitting in self.sittings)

    @property
    def duplicate_fraction(self) -> float:
        """Cost computed a second time, as a fraction of the cost committed."""
        return self.duplicate_cost / self.committed_cost if self.committed_cost else 0.0

    def calibrated_shares(self) -> dict[str, float]:
        """Shares by the speed each node had when it joined, as if all had been there all the time."""
        return _fractions({name: counts.first_speed or 0.0 for name, counts in self.counts.items()})

    def expected_shares(self) -> dict[str, float]:
        """Shares by that speed and by how long each node was there."""
        present: dict[str, float] = defaultdict(float)
        for sitting in self.sittings:
            for presence in sitting.measured.presences:
                present[presence.node] += min(presence.end, sitting.measured.finished_at) - presence.begin
        return _fractions({name: (self.counts[name].first_speed or 0.0) * seconds for name, seconds in present.items()})


def _fractions(amounts: dict[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: amount / total for name, amount in amounts.items() if amount > 0}


def read_history(ledger: LedgerReader) -> History:
    """One pass over the events of all sittings."""
    return history_of(ledger.events())


def history_of(events: Iterable[RecordedEvent]) -> History:
    pass_ = _Pass()
    for recorded in events:
        pass_.take(recorded)
    pass_.close()
    return History(
        sittings=tuple(pass_.sittings),
        commits=tuple(pass_.commits),
        incidents=tuple(pass_.incidents),
        counts=dict(sorted(pass_.counts.items())),
        efficiency=efficiency.measure([sitting.measured for sitting in pass_.sittings if sitting.measured.presences]),
        duplicate_cost=pass_.duplicate_cost,
        committed_cost=sum(commit.cost for commit in pass_.commits),
    )


@dataclass(slots=True)
class _OpenSitting:
    epoch: Epoch
    opened_at: float
    begin: float
    wall: float
    last_at: float
    last_commit: float
    computations: list[Computation] = field(default_factory=list)
    presences: list[Presence] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    here: dict[str, float] = field(default_factory=dict)  # node -> ready at
    down: dict[str, float] = field(default_factory=dict)  # node -> worker gone at
    seen: set[str] = field(default_factory=set)


class _Pass:
    """State of the one pass; units and speeds outlive a sitting, presences do not."""

    def __init__(self) -> None:
        self.sittings: list[SittingHistory] = []
        self.commits: list[CommitPoint] = []
        self.incidents: list[Incident] = []
        self.counts: dict[str, NodeCounts] = defaultdict(NodeCounts)
        self.duplicate_cost = 0.0
        self._units: dict[UnitId, tuple[float, int]] = {}  # cost, rows
        self._losers: set[AttemptId] = set()  # revoked because another was first
        self._now: _OpenSitting | None = None

    def take(self, recorded: RecordedEvent) -> None:
        event = recorded.event
        if self._now is None or recorded.epoch != self._now.epoch:  # a node may be ready before RunOpened
            self.close()
            begin = self.sittings[-1].end if self.sittings else 0.0
            self._now = _OpenSitting(recorded.epoch, event.at, begin, recorded.wall, event.at, event.at)
            if self.sittings:
                self._incident(recorded, "opened", "", f"taken up again (sitting {len(self.sittings) + 1})")
        self._now.last_at = event.at
        self._event(self._now, recorded, event)
        for command in recorded.commands:
            self._command(self._now, recorded, event, command)

    def close(self) -> None:
        """Ends the sitting in hand: whatever was there stayed to the last event."""
        now = self._now
        if now is None:
            return
        for node in tuple(now.here):
            self._gone(now, node, now.last_at, lost=False)
        self.sittings.append(
            SittingHistory(
                epoch=now.epoch,
                begin=now.begin,
                end=now.begin + now.last_at - now.opened_at,
                wall=now.wall,
                monotonic=now.opened_at,
                measured=efficiency.Sitting(
                    asked_at=now.opened_at,
                    finished_at=now.last_commit,
                    computations=tuple(now.computations),
                    presences=tuple(presence for presence in now.presences if presence.begin < now.last_commit),
                    outages=tuple(now.outages),
                ),
            )
        )
        self._now = None

    # --- events -----------------------------------------------------------------------------------------------------

    def _event(self, now: _OpenSitting, recorded: RecordedEvent, event: Event) -> None:
        match event:
            case UnitsLoaded(units=units):
                self._units.update((unit.unit, (unit.cost, unit.rows)) for unit in units)
            case NodeReady():
                self._ready(now, recorded, event)
            case NodeLost(node=node, reason=reason, clean=clean):
                if node in now.here or not clean:
                    self._count(node, losses=0 if clean else 1)
                    self._incident(recorded, "left" if clean else "lost", node, reason, trouble=not clean)
                self._gone(now, node, event.at, lost=not clean)
            case WorkerExited(node=node, reason=reason, asked=asked):
                now.down.setdefault(node, event.at)
                if not asked:
                    self._count(node, worker_exits=1)
                    self._incident(recorded, "worker", node, f"worker gone: {reason}", trouble=True)
            case WorkerStalled(node=node, seconds=seconds):
                now.down.setdefault(node, event.at)
                self._count(node, worker_exits=1)
                self._incident(recorded, "worker", node, f"worker made no progress for {seconds:.0f} s", trouble=True)
            case UnitFailed(node=node, unit=unit, code=code, message=message):
                self._count(node, failed_units=1)
                self._incident(recorded, "failed unit", node, f"unit {unit}: {code}: {message}", trouble=True)
            case StorageChanged(writable=writable, needed_bytes=needed):
                text = "there is room again" if writable else f"disk full: {needed / 1e6:,.0f} MB more are needed"
                self._incident(recorded, "storage", "", text, trouble=not writable)
            case DrainAsked():
                self._incident(recorded, "interrupt", "", "interrupted by the user", trouble=True)
            case _:
                pass

    def _ready(self, now: _OpenSitting, recorded: RecordedEvent, event: NodeReady) -> None:
        node = event.node
        if (since := now.down.pop(node, None)) is not None:
            now.outages.append(Outage(node=node, begin=since, end=event.at))
        if node in now.here:
            self._incident(recorded, "ready", node, "worker back")
            return
        again = node in now.seen
        now.here[node] = event.at
        now.seen.add(node)
        counts = self.counts[node]
        if counts.first_speed is None:
            self.counts[node] = replace(counts, first_speed=event.cost_per_second, first_speed_measured=event.measured)
        source = "measured" if event.measured else "prior"
        text = f"{'back' if again else 'ready'}: {event.cost_per_second:,.0f} cost/s ({source})"
        self._incident(recorded, "ready", node, text)

    def _gone(self, now: _OpenSitting, node: str, at: float, *, lost: bool) -> None:
        since = now.here.pop(node, None)
        if (down := now.down.pop(node, None)) is not None:
            now.outages.append(Outage(node=node, begin=down, end=at))
        if since is not None and at > since:
            first = not any(presence.node == node for presence in now.presences)
            asked_at = now.opened_at if first else since
            now.presences.append(Presence(node=node, begin=since, end=at, asked_at=asked_at, lost=lost))

    # --- commands ---------------------------------------------------------------------------------------------------

    def _command(self, now: _OpenSitting, recorded: RecordedEvent, event: Event, command: Command) -> None:
        match command:
            case Grant(node=node, attempts=attempts, reason=reason):
                speculative = reason.startswith("speculation")
                self._count(node, attempts=len(attempts), speculative=len(attempts) if speculative else 0)
                if speculative:
                    units = ", ".join(str(unit) for _, unit in attempts[:4])
                    self._incident(recorded, "speculation", node, f"also computes unit {units} ({reason})")
            case Commit(node=node, unit=unit) if isinstance(event, ResultReceived):
                cost, rows = self._units.get(unit, (0.0, 0))
                at = now.begin + event.at - now.opened_at
                self.commits.append(
                    CommitPoint(at=at, node=node, rows=rows, cost=cost, compute_seconds=event.compute_seconds)
                )
                now.computations.append(_computation(event, cost, None))
                now.last_commit = event.at
            case Discard(node=node, attempt=attempt, unit=unit) if isinstance(event, ResultReceived):
                self._count(node, discarded=1)
                if event.epoch == now.epoch:
                    cost = self._units.get(unit, (0.0, 0))[0]
                    wasted = DUPLICATES if attempt in self._losers else RECOVERY
                    self.duplicate_cost += cost
                    now.computations.append(_computation(event, cost, wasted))
            case RevokeAttempts(node=node, attempts=attempts, reason=reason):
                self._count(node, revoked=len(attempts))
                if reason.endswith("was first"):
                    self._losers.update(attempts)
            case Split(unit=unit, children=children, reason=reason):
                cost, rows = self._units.get(unit, (0.0, 0))
                for child, _, count in children:
                    self._units[child] = (cost * count / rows if rows else 0.0, count)
                self._incident(recorded, "split", "", f"unit {unit} halved: {reason}", trouble=True)
            case Quarantine(unit=unit, code=code, message=message):
                self._incident(recorded, "quarantine", "", f"unit {unit}: {code}: {message}", trouble=True)
            case SetAside(node=node, reason=reason):
                self._incident(recorded, "set aside", node, reason, trouble=True)
                self._gone(now, node, event.at, lost=True)
            case RestartWorkerOn(node=node):
                now.down.setdefault(node, event.at)
            case Finish(complete=complete, reason=reason):
                self._incident(recorded, "finished", "", reason, trouble=not complete)
            case _:
                pass

    def _count(self, node: str, **more: int) -> None:
        counts = self.counts[node]
        self.counts[node] = replace(counts, **{name: getattr(counts, name) + by for name, by in more.items()})

    def _incident(
        self, recorded: RecordedEvent, kind: IncidentKind, node: str, text: str, *, trouble: bool = False
    ) -> None:
        assert self._now is not None
        at = self._now.begin + recorded.event.at - self._now.opened_at
        self.incidents.append(Incident(at=at, wall=recorded.wall, kind=kind, node=node, text=text, trouble=trouble))


def _computation(event: ResultReceived, cost: float, wasted_as: str | None) -> Computation:
    return Computation(
        node=event.node, received_at=event.at, compute_seconds=event.compute_seconds, cost=cost, wasted_as=wasted_as
    )
