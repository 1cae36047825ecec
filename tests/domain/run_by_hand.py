"""A run moved by hand, one event at a time, for tests of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from realign_cluster.domain import events as e
from realign_cluster.domain.fleet import NodeView
from realign_cluster.domain.ids import AttemptId, Epoch, LeaseId, NodeName, UnitId
from realign_cluster.domain.scheduler import Policy, Scheduler

C = TypeVar("C")


class Run:
    """Holds the pending units as the ledger would; `said` has every command so far, `new` those of the last event."""

    def __init__(
        self,
        units: Sequence[e.UnitRef],
        policy: Policy | None = None,
        epoch: int = 1,
        planned_cost_per_second: float = 0.0,
        planned: Sequence[str] = (),
    ) -> None:
        self.scheduler = Scheduler(policy)
        self.now = 0.0
        self.epoch = epoch
        self.said: list[e.Command] = []
        self.new: list[e.Command] = []
        self.live: dict[int, tuple[str, int]] = {}
        self.cost = {unit.unit: unit.cost for unit in units}
        self._units = list(units)
        next_unit = max((unit.unit for unit in units), default=-1) + 1
        self.handle(
            e.RunOpened(
                at=0.0,
                epoch=Epoch(epoch),
                units=len(units),
                cost=sum(unit.cost for unit in units),
                next_unit=UnitId(next_unit),
                next_attempt=AttemptId(1),
                next_lease=LeaseId(1),
                planned_cost_per_second=planned_cost_per_second,
                planned_nodes=tuple(NodeName(name) for name in planned),
            )
        )

    def handle(self, event: e.Event) -> list[e.Command]:
        commands = list(self.scheduler.handle(event).commands)
        self.said += commands
        for command in commands:
            match command:
                case e.Grant():
                    for attempt, unit in command.attempts:
                        self.live[attempt] = (command.node, unit)
                case e.RevokeAttempts():
                    for attempt in command.attempts:
                        self.live.pop(attempt, None)
                case e.Commit():
                    self.live.pop(command.attempt)
                case _:
                    pass
        for command in list(commands):
            if isinstance(command, e.LoadUnits):
                page, self._units = self._units[: command.count], self._units[command.count :]
                commands += self.handle(e.UnitsLoaded(at=self.now, units=tuple(page), exhausted=not self._units))
        self.new = commands
        return commands

    def tick(self, seconds: float = 0.1) -> list[e.Command]:
        self.now += seconds
        return self.handle(e.Tick(at=self.now))

    def ready(self, *nodes: str, speed: float = 100.0, measured: bool = True) -> list[e.Command]:
        commands: list[e.Command] = []
        for node in nodes:
            commands += self.handle(
                e.NodeReady(at=self.now, node=NodeName(node), cost_per_second=speed, measured=measured)
            )
        return commands + self.tick()

    def result(self, attempt: int, seconds: float | None = None, **changes: Any) -> list[e.Command]:
        """The result of a live attempt, after `seconds` of compute (by default at 100 cost per second)."""
        node, unit = self.live.get(attempt, ("?", -1))
        values: dict[str, Any] = {
            "node": node,
            "attempt": attempt,
            "unit": unit,
            "epoch": self.epoch,
            "valid": True,
            "compute_seconds": self.cost.get(UnitId(unit), 1.0) / 100.0 if seconds is None else seconds,
        }
        if not changes.get("valid", True):
            self.live.pop(attempt)
        return self.handle(e.ResultReceived(at=self.now, **(values | changes)))

    def fails(self, attempt: int, code: str = "bad", message: str = "cannot be computed") -> list[e.Command]:
        node, unit = self.live.pop(attempt)
        return self.handle(
            e.UnitFailed(
                at=self.now,
                node=NodeName(node),
                attempt=AttemptId(attempt),
                unit=UnitId(unit),
                code=code,
                message=message,
            )
        )

    def worker_dies(self, node: str, computing: int | None, asked: bool = False) -> list[e.Command]:
        self.live = {attempt: held for attempt, held in self.live.items() if held[0] != node}
        attempt = None if computing is None else AttemptId(computing)
        return self.handle(
            e.WorkerExited(
                at=self.now, node=NodeName(node), reason="killed by signal 9", computing=attempt, asked=asked
            )
        )

    def lose(self, node: str, clean: bool = False) -> list[e.Command]:
        self.live = {attempt: held for attempt, held in self.live.items() if held[0] != node}
        return self.handle(e.NodeLost(at=self.now, node=NodeName(node), reason="not heard for 3.1 s", clean=clean))

    def held_by(self, node: str) -> list[int]:
        """Attempts, in the order they were given."""
        return [attempt for attempt, held in self.live.items() if held[0] == node]

    def units_of(self, node: str) -> list[int]:
        return [held[1] for held in self.live.values() if held[0] == node]

    def all(self, kind: type[C]) -> list[C]:
        return [command for command in self.said if isinstance(command, kind)]

    def last(self, kind: type[C]) -> list[C]:
        """Of the last event (and of the loading that it led to)."""
        return [command for command in self.new if isinstance(command, kind)]

    def view(self, node: str) -> NodeView:
        return self.scheduler.node_states()[NodeName(node)]

    def compute_all(self, limit: int = 10_000) -> None:
        """Every node returns whatever it holds, until the run is over."""
        for _ in range(limit):
            if self.all(e.Finish):
                return
            for attempt in list(self.live):
                if attempt in self.live:
                    self.result(attempt)
            self.tick(0.5)
        raise AssertionError(f"not over; live: {self.live}")


def units(count: int, cost: float = 100.0, rows: int = 4) -> list[e.UnitRef]:
    return [e.UnitRef(unit=UnitId(unit), cost=cost, longest=int(cost), rows=rows) for unit in range(count)]
