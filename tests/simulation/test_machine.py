"""Hypothesis in the place of the world: any event at any time, against the ledger that refuses what must not happen."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from realign_cluster.domain import events as e
from realign_cluster.domain.scheduler import Policy, Scheduler

from .ledger import Ledger, must

NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(rows=st.lists(st.integers(1, 5), max_size=12), page=st.sampled_from((2, 4096)))
    def open_run(self, rows: list[int], page: int) -> None:
        self.policy = Policy(page=page)
        units: dict[int, tuple[int, ...]] = {}
        row = 0
        for unit, count in enumerate(rows):
            units[unit] = tuple(range(row, row + count))
            row += count
        self.ledger = Ledger(units, {one: 10.0 + one % 3 for one in range(row)})
        self.rows = set(range(row))
        self.now = 0.0
        self.old: list[e.ResultReceived] = []
        self.open_sitting()

    def open_sitting(self) -> None:
        self.scheduler = Scheduler(self.policy)
        self.handle(self.ledger.open(self.now))

    def handle(self, event: e.Event) -> None:
        waiting: list[e.Event] = [event]
        while waiting:
            event = waiting.pop(0)
            decision = self.scheduler.handle(event)
            assert decision.seconds_to_next_look > 0
            self.ledger.apply(event, decision.commands)
            for command in decision.commands:
                if isinstance(command, e.LoadUnits):
                    waiting.append(self.ledger.load(command.count, self.now))

    def result(self, attempt: int, valid: bool = True) -> e.ResultReceived:
        given = self.ledger.live[attempt]
        return e.ResultReceived(
            at=self.now,
            node=given.node,
            attempt=attempt,
            unit=given.unit,
            epoch=self.ledger.epoch,
            valid=valid,
            compute_seconds=0.5,
        )

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.ledger.live)))

    def any_live(self) -> bool:
        return bool(self.ledger.live)

    @rule(seconds=st.floats(0.01, 40.0))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.handle(e.Tick(at=self.now))

    @rule(node=names, speed=st.floats(1.0, 500.0), measured=st.booleans())
    def node_ready(self, node: str, speed: float, measured: bool) -> None:
        self.handle(e.NodeReady(at=self.now, node=node, cost_per_second=speed, measured=measured))

    @rule(node=names, clean=st.booleans())
    def node_lost(self, node: str, clean: bool) -> None:
        self.handle(e.NodeLost(at=self.now, node=node, reason="silent", clean=clean))

    @precondition(any_live)
    @rule(data=st.data(), valid=st.sampled_from((True, True, True, False)))
    def result_comes(self, data: st.DataObject, valid: bool) -> None:
        result = self.result(self.pick(data), valid)
        self.old.append(result)
        self.handle(result)

    @precondition(lambda self: bool(self.old))
    @rule(data=st.data())
    def result_comes_again(self, data: st.DataObject) -> None:
        """A repeated message, perhaps of an older epoch or of a revoked attempt."""
        self.handle(data.draw(st.sampled_from(self.old)))

    @precondition(any_live)
    @rule(data=st.data(), node=names)
    def result_comes_from_another(self, data: st.DataObject, node: str) -> None:
        attempt = self.pick(data)
        good = self.result(attempt)
        if good.node != node:
            wrong = e.ResultReceived(
                at=self.now,
                node=node,
                attempt=good.attempt,
                unit=good.unit,
                epoch=good.epoch,
                valid=True,
                compute_seconds=1.0,
            )
            commands = self.scheduler.handle(wrong).commands
            must(isinstance(commands[0], e.Discard), "a result of a node that does not hold the attempt was taken")

    @precondition(any_live)
    @rule(data=st.data())
    def unit_fails(self, data: st.DataObject) -> None:
        attempt = self.pick(data)
        given = self.ledger.live[attempt]
        failed = e.UnitFailed(
            at=self.now, node=given.node, attempt=attempt, unit=given.unit, code="bad", message="no good"
        )
        self.handle(failed)

    @precondition(any_live)
    @rule(data=st.data(), asked=st.booleans())
    def worker_exits(self, data: st.DataObject, asked: bool) -> None:
        attempt = self.pick(data)
        node = self.ledger.live[attempt].node
        self.handle(e.WorkerExited(at=self.now, node=node, reason="signal 9", computing=attempt, asked=asked))

    @precondition(any_live)
    @rule(data=st.data())
    def worker_stalls(self, data: st.DataObject) -> None:
        attempt = self.pick(data)
        node = self.ledger.live[attempt].node
        self.handle(e.WorkerStalled(at=self.now, node=node, attempt=attempt, seconds=30.0))

    @rule(node=names)
    def idle_worker_exits(self, node: str) -> None:
        self.handle(e.WorkerExited(at=self.now, node=node, reason="signal 9", computing=None))

    @rule(writable=st.booleans())
    def storage_changes(self, writable: bool) -> None:
        self.handle(e.StorageChanged(at=self.now, writable=writable))

    @rule(seconds=st.floats(0.0, 5.0))
    def drain(self, seconds: float) -> None:
        self.handle(e.DrainAsked(at=self.now, until=self.now + seconds))

    @rule()
    def coordinator_dies(self) -> None:
        self.open_sitting()

    @invariant()
    def nothing_is_lost(self) -> None:
        pending = {row for unit in self.ledger.units.values() if unit.state == "pending" for row in unit.rows}
        assert pending | self.ledger.committed.keys() | self.ledger.quarantined.keys() == self.rows

    @invariant()
    def views_agree_with_the_ledger(self) -> None:
        if self.ledger.finished is not None:
            return
        for view in self.scheduler.node_states().values():
            held = [given for given in self.ledger.live.values() if given.node == view.name]
            assert view.units_outstanding == len(held)
            assert view.leases == len({given.lease for given in held}) <= self.policy.depth
            assert view.seconds_outstanding >= 0

    def teardown(self) -> None:
        """From wherever this led: healthy nodes end it."""
        if not hasattr(self, "ledger"):
            return
        self.open_sitting()
        for name in NAMES:
            self.handle(e.NodeReady(at=self.now, node=name, cost_per_second=50.0, measured=True))
        for _ in range(10_000):
            if self.ledger.finished is not None:
                break
            self.now += 0.1
            self.handle(e.Tick(at=self.now))
            for attempt in sorted(self.ledger.live):
                if attempt in self.ledger.live:
                    self.handle(self.result(attempt))
        assert self.ledger.finished is not None
        assert self.ledger.finished.complete


SchedulerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestScheduler = SchedulerMachine.TestCase
