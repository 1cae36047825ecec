"""The ledger of a simulated run: applies commands as the real one does, and refuses what must never happen.

Survives crashes of the coordinator. Everything it asserts is a property of the scheduler under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from realign_cluster.domain import events as e


class Violation(AssertionError):
    """The scheduler did what it must not do."""


@dataclass(slots=True)
class Unit:
    unit: int
    rows: tuple[int, ...]
    cost: float
    suspected: bool = False
    failed_on: list[str] = field(default_factory=list)
    state: str = "pending"  # committed, split, quarantined


@dataclass(slots=True)
class Given:
    unit: int
    node: str
    lease: int
    epoch: int


def must(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


class Ledger:
    def __init__(self, units: dict[int, tuple[int, ...]], cost_of_row: dict[int, float], depth: int = 2) -> None:
        self.cost_of_row = cost_of_row
        self.depth = depth
        self.units = {unit: Unit(unit, rows, sum(cost_of_row[row] for row in rows)) for unit, rows in units.items()}
        self.next_unit = len(units)
        self.next_attempt = 1
        self.next_lease = 1
        self.epoch = 0
        self.finished: e.Finish | None = None
        self.committed: dict[int, int] = {}  # row -> unit
        self.quarantined: dict[int, tuple[str, str]] = {}
        self.blames = 0
        self.splits = 0
        self.set_aside: list[str] = []
        self.duplicates = 0
        self._begin_sitting()

    def _begin_sitting(self) -> None:
        self.handed: set[int] = set()
        self.live: dict[int, Given] = {}  # attempt -> to whom
        self.leases: dict[str, dict[int, int]] = {}  # node -> lease -> live attempts
        self.drained = False
        self.writable = True
        self.sidelined: set[str] = set()
        self.finished = None

    def open(self, at: float, planned: dict[str, float] | None = None) -> e.RunOpened:
        self.epoch += 1
        self._begin_sitting()
        pending = [unit for unit in self.units.values() if unit.state == "pending"]
        return e.RunOpened(
            at=at,
            epoch=self.epoch,
            units=len(pending),
            cost=sum(unit.cost for unit in pending),
            next_unit=self.next_unit,
            next_attempt=self.next_attempt,
            next_lease=self.next_lease,
            planned_cost_per_second=sum((planned or {}).values()),
            planned_nodes=tuple(planned or {}),
        )

    def load(self, count: int, at: float) -> e.UnitsLoaded:
        """Offers this sitting's children too, as a plain query for pending units would."""
        pending = sorted(
            (unit for unit in self.units.values() if unit.state == "pending" and unit.unit not in self.handed),
            key=lambda unit: (-unit.cost, unit.unit),
        )
        page = pending[:count]
        self.handed.update(unit.unit for unit in page)
        refs = tuple(
            e.UnitRef(
                unit=unit.unit,
                cost=unit.cost,
                longest=int(unit.cost),
                rows=len(unit.rows),
                suspected=unit.suspected,
                failed_on=tuple(unit.failed_on),
            )
            for unit in page
        )
        return e.UnitsLoaded(at=at, units=refs, exhausted=len(pending) <= count)

    def saw(self, event: e.Event) -> None:
        """Facts that end attempts without a command."""
        match event:
            case e.NodeLost():
                self._end_all(event.node)
            case e.WorkerExited():
                self._end_all(event.node)
            case e.StorageChanged():
                self.writable = event.writable
            case e.DrainAsked():
                self.drained = True
            case _:
                pass

    def _end_all(self, node: str) -> None:
        for attempt in [attempt for attempt, given in self.live.items() if given.node == node]:
            self._end(attempt)

    def _end(self, attempt: int) -> Given:
        given = self.live.pop(attempt)
        leases = self.leases[given.node]
        leases[given.lease] -= 1
        if not leases[given.lease]:
            del leases[given.lease]
        return given

    def apply(self, event: e.Event, commands: tuple[e.Command, ...]) -> None:
        # A failure ends its attempt before any command that follows; a lost node's all at once.
        if isinstance(event, e.UnitFailed) and event.attempt in self.live:
            self._end(event.attempt)
        self.saw(event)
        for command in commands:
            must(self.finished is None or isinstance(command, e.Discard), f"{command} after {self.finished}")
            self._apply(event, command)

    def _apply(self, event: e.Event, command: e.Command) -> None:
        match command:
            case e.Grant():
                self._grant(command)
            case e.Commit():
                self._commit(event, command)
            case e.Discard():
                if command.attempt in self.live and isinstance(event, e.ResultReceived):
                    must(not event.valid or self.finished is not None, f"a good result was discarded: {command}")
                    must(event.epoch == self.epoch, "an older epoch ended a live attempt")
                    self._end(command.attempt)
            case e.RevokeAttempts():
                for attempt in command.attempts:
                    if attempt in self.live:
                        self._end(attempt)
            case e.Blame():
                self.units[command.unit].failed_on.append(command.node)
                self.blames += 1
                if command.attempt in self.live:
                    self._end(command.attempt)
            case e.Split():
                self._split(command)
            case e.Quarantine():
                self._quarantine(command)
            case e.SetAside():
                self.set_aside.append(command.node)
                self.sidelined.add(command.node)
            case e.Finish():
                must(self.finished is None, "finished twice")
                self.finished = command
                if command.complete:
                    left = [unit.unit for unit in self.units.values() if unit.state == "pending"]
                    must(not left, f"said complete, but units {left} are pending")
            case e.LoadUnits() | e.RestartWorkerOn():
                pass

    def _grant(self, command: e.Grant) -> None:
        must(self.writable, "a lease while the disk is full")
        must(not self.drained, "a lease after the drain")
        must(command.node not in self.sidelined, f"a lease to {command.node}, which is set aside")
        must(bool(command.attempts) and bool(command.reason), f"an empty lease or reason: {command}")
        must(command.lease >= self.next_lease, "a lease id was used again")
        self.next_lease = command.lease + 1
        leases = self.leases.setdefault(command.node, {})
        suspects = [unit for _, unit in command.attempts if self.units[unit].suspected]
        held = [self.units[given.unit] for given in self.live.values() if given.node == command.node]
        if suspects:
            must(len(command.attempts) == 1 and not held, f"suspected unit {suspects[0]} is not alone: {command}")
        must(not any(unit.suspected for unit in held), f"{command.node} holds a suspected unit and got {command}")
        leases[command.lease] = len(command.attempts)
        must(len(leases) <= self.depth, f"{command.node} holds {len(leases)} leases")
        for attempt, unit in command.attempts:
            must(attempt >= self.next_attempt, "an attempt id was used again")
            self.next_attempt = attempt + 1
            must(self.units[unit].state == "pending", f"unit {unit} is {self.units[unit].state} and was leased")
            others = [given for given in self.live.values() if given.unit == unit]
            must(len(others) < 2, f"unit {unit} has three live attempts")
            must(all(other.node != command.node for other in others), f"unit {unit} is twice on {command.node}")
            self.duplicates += len(others)
            self.live[attempt] = Given(unit, command.node, command.lease, self.epoch)

    def _commit(self, event: e.Event, command: e.Commit) -> None:
        must(isinstance(event, e.ResultReceived) and event.valid, f"{command} without a valid result")
        assert isinstance(event, e.ResultReceived)
        must(event.epoch == self.epoch, f"a result of epoch {event.epoch} was committed in {self.epoch}")
        given = self.live.get(command.attempt)
        must(given is not None, f"attempt {command.attempt} is not live and was committed")
        assert given is not None
        must((given.unit, given.node) == (command.unit, command.node), f"{command} is of {given}")
        self._end(command.attempt)
        unit = self.units[command.unit]
        must(unit.state == "pending", f"unit {unit.unit} is {unit.state} and was committed")
        unit.state = "committed"
        for row in unit.rows:
            must(row not in self.committed and row not in self.quarantined, f"row {row} was recorded twice")
            self.committed[row] = unit.unit

    def _split(self, command: e.Split) -> None:
        unit = self.units[command.unit]
        must(unit.state == "pending", f"unit {unit.unit} is {unit.state} and was split")
        must(bool(unit.failed_on), f"unit {unit.unit} never failed and was split")
        unit.state = "split"
        position = 0
        for child, first, count in command.children:
            must(first == position and count > 0, f"rows are missing or twice in {command}")
            must(child == self.next_unit, "a unit id was skipped or used again")
            self.next_unit = child + 1
            rows = unit.rows[first : first + count]
            self.units[child] = Unit(child, rows, sum(self.cost_of_row[row] for row in rows), suspected=True)
            position += count
        must(position == len(unit.rows), f"rows are missing in {command}")
        self.splits += 1

    def _quarantine(self, command: e.Quarantine) -> None:
        unit = self.units[command.unit]
        must(unit.state == "pending" and unit.suspected and len(unit.rows) == 1, f"{unit} was quarantined")
        must(len(unit.failed_on) >= 2, f"{unit} was quarantined after one failure")
        unit.state = "quarantined"
        self.quarantined[unit.rows[0]] = (command.code, command.message)
