"""What the scheduler does in each situation that a run can be in."""

from __future__ import annotations

import time

import pytest

from realign_cluster.domain import events as e
from realign_cluster.domain.ids import AttemptId, Epoch, LeaseId, NodeName, UnitId
from realign_cluster.domain.scheduler import Policy, Scheduler
from tests.domain.run_by_hand import Run, units


def test_nothing_to_do_is_over_at_once() -> None:
    run = Run([])
    assert run.said == [e.Finish(complete=True, reason="every unit is committed or quarantined")]


def test_asks_for_units_by_the_page_and_only_when_it_runs_low() -> None:
    run = Run(units(100), Policy(page=40))
    assert [command.count for command in run.all(e.LoadUnits)] == [40]
    run.ready("a", speed=1000.0)
    run.compute_all()
    assert len(run.all(e.Commit)) == 100
    assert len(run.all(e.LoadUnits)) >= 3


def test_units_that_are_not_there_yet_are_asked_for_again_without_a_loop() -> None:
    scheduler = Scheduler()
    opened = e.RunOpened(
        at=0.0,
        epoch=Epoch(1),
        units=1,
        cost=1.0,
        next_unit=UnitId(1),
        next_attempt=AttemptId(1),
        next_lease=LeaseId(1),
    )
    assert scheduler.handle(opened).commands == (e.LoadUnits(count=4096),)
    assert scheduler.handle(e.UnitsLoaded(at=0.0, units=(), exhausted=False)).commands == ()
    assert scheduler.handle(e.Tick(at=0.5)).commands == (e.LoadUnits(count=4096),)


def test_first_leases_have_the_calibrated_shares() -> None:
    run = Run(units(4000))
    run.handle(e.NodeReady(at=0.0, node=NodeName("m4max"), cost_per_second=65.0, measured=True))
    run.handle(e.NodeReady(at=0.02, node=NodeName("m3ultra"), cost_per_second=35.0, measured=True))
    run.tick(0.1)
    fast, slow = len(run.units_of("m4max")), len(run.units_of("m3ultra"))
    assert fast / (fast + slow) == pytest.approx(0.65, rel=0.1)
    assert slow / (fast + slow) == pytest.approx(0.35, rel=0.1)
    assert sorted(grant.node for grant in run.all(e.Grant)) == ["m3ultra", "m3ultra", "m4max", "m4max"]


def test_first_leases_of_a_short_run_are_shared_although_the_slow_node_is_late() -> None:
    run = Run(units(1000), planned_cost_per_second=1000.0)
    run.ready("m4max", speed=650.0)
    run.tick(3.0)
    run.ready("m3ultra", speed=350.0)
    fast, slow = len(run.units_of("m4max")), len(run.units_of("m3ultra"))
    assert fast / (fast + slow) == pytest.approx(0.65, rel=0.1)


def test_shares_hold_with_units_as_long_as_a_lease() -> None:
    """Rounding to whole units is carried from lease to lease."""
    run = Run(units(400, cost=700.0))
    speeds = {"a": 65.0, "b": 35.0}
    for node, speed in speeds.items():
        run.handle(e.NodeReady(at=0.0, node=NodeName(node), cost_per_second=speed, measured=True))
    run.tick()
    due = {node: 700.0 / speed for node, speed in speeds.items()}
    while run.now < 2000.0:
        node = min(due, key=lambda name: due[name])
        run.now = due[node]
        run.result(run.held_by(node)[0], seconds=700.0 / speeds[node])
        due[node] += 700.0 / speeds[node]
    granted = {node: run.view(node).units_committed + len(run.held_by(node)) for node in speeds}
    assert granted["a"] / sum(granted.values()) == pytest.approx(0.65, abs=0.02)


def test_a_node_that_joins_later_is_given_work_at_once() -> None:
    run = Run(units(4000))
    run.ready("a")
    grants = run.handle(e.NodeReady(at=run.now, node=NodeName("b"), cost_per_second=50.0, measured=False))
    assert {command.node for command in grants if isinstance(command, e.Grant)} == {"b"}


def test_no_more_than_two_leases_are_out_and_a_finished_one_is_replaced() -> None:
    run = Run(units(4000))
    run.ready("a")
    assert len(run.all(e.Grant)) == 2
    run.tick(5.0)
    assert len(run.all(e.Grant)) == 2
    first = run.all(e.Grant)[0]
    for attempt, _ in first.attempts:
        run.result(attempt)
    assert len(run.all(e.Grant)) == 3
    assert run.view("a").leases == 2


def test_longest_first() -> None:
    refs = [e.UnitRef(unit=UnitId(unit), cost=1000.0 - unit, longest=1, rows=1) for unit in range(200)]
    run = Run(refs)
    run.ready("a", "b")
    granted = [unit for grant in run.all(e.Grant) for _, unit in grant.attempts]
    assert granted == sorted(granted)
    assert {grant.reason for grant in run.all(e.Grant)} == {"longest first"}


def test_an_unmeasured_node_gets_short_leases_until_its_first_result() -> None:
    run = Run(units(10_000))
    run.ready("a", speed=1000.0, measured=False)
    assert run.all(e.Grant)[0].expected_seconds == pytest.approx(2.0, abs=0.1)
    for attempt, _ in run.all(e.Grant)[0].attempts:
        run.result(attempt, seconds=1.0)
    assert run.view("a").cost_per_second == pytest.approx(100.0)
    assert run.all(e.Grant)[-1].expected_seconds == pytest.approx(20.0, abs=1.0)


@pytest.mark.parametrize("nonsense", [0.0, -1.0, float("inf"), float("nan")])
def test_a_calibration_that_is_nonsense_is_replaced_by_the_first_result(nonsense: float) -> None:
    run = Run(units(1000))
    run.ready("a", speed=nonsense)
    run.result(run.held_by("a")[0], seconds=1.0)
    assert run.view("a").cost_per_second == pytest.approx(100.0)


def test_a_commit_is_of_a_live_attempt_and_once() -> None:
    run = Run(units(10))
    run.ready("a")
    attempt = run.held_by("a")[0]
    unit = run.live[attempt][1]
    assert run.result(attempt)[0] == e.Commit(node=NodeName("a"), attempt=AttemptId(attempt), unit=UnitId(unit))
    again = run.result(attempt, node="a", unit=unit)
    assert again == [
        e.Discard(node=NodeName("a"), attempt=AttemptId(attempt), unit=UnitId(unit), reason="the attempt was revoked")
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epoch": 1}, "it is of epoch 1, this is 2"),
        ({"epoch": 3}, "it is of epoch 3, this is 2"),
        ({"node": "b"}, "the attempt is of a and unit 0"),
        ({"unit": 7}, "the attempt is of a and unit 0"),
    ],
)
def test_fences(changes: dict[str, object], reason: str) -> None:
    run = Run(units(10), epoch=2)
    run.ready("a", "b")
    attempt = run.held_by("a")[0]
    commands = run.result(attempt, **changes)
    assert [command.reason for command in commands if isinstance(command, e.Discard)] == [reason]
    assert not run.all(e.Commit)


def test_an_invalid_result_is_discarded_and_its_unit_goes_out_again_unblamed() -> None:
    run = Run(units(1))
    run.ready("a", "b")
    attempt = next(iter(run.live))
    run.result(attempt, valid=False)
    run.tick()
    assert not run.all(e.Blame)
    assert [command.attempt for command in run.all(e.Discard)] == [attempt]
    assert [unit for grant in run.all(e.Grant) for _, unit in grant.attempts] == [0, 0]


def test_a_lost_node_gives_its_units_back_to_the_front_unblamed() -> None:
    run = Run(units(200))
    run.ready("a", "b")
    held = run.units_of("a")
    run.lose("a")
    assert not run.all(e.Blame)
    assert not run.all(e.RevokeAttempts)
    run.handle(e.NodeReady(at=run.now, node=NodeName("c"), cost_per_second=100.0, measured=True))
    assert run.units_of("c")[: len(held)] == held[: len(run.units_of("c"))]
    run.compute_all()
    assert sorted(command.unit for command in run.all(e.Commit)) == list(range(200))


def test_a_lost_node_that_returns_is_told_what_is_no_longer_its_own() -> None:
    run = Run(units(200))
    run.ready("a", "b")
    held = run.held_by("a")
    run.lose("a")
    run.ready("a")
    assert [command.attempts for command in run.all(e.RevokeAttempts)] == [tuple(held)]
    assert run.result(held[0], node="a", unit=0)[0].reason == "the attempt was revoked"  # type: ignore[union-attr]


def test_a_reconnect_keeps_the_leases() -> None:
    run = Run(units(200))
    run.ready("a")
    held = run.held_by("a")
    commands = run.ready("a")
    assert not [command for command in commands if isinstance(command, (e.Grant, e.RevokeAttempts))]
    assert run.result(held[0])[0] == e.Commit(node=NodeName("a"), attempt=AttemptId(held[0]), unit=UnitId(0))


def test_only_the_unit_in_the_hand_of_a_dead_worker_is_blamed() -> None:
    run = Run(units(200))
    run.ready("a", "b")
    held = run.held_by("a")
    run.worker_dies("a", computing=held[0])
    assert [(command.unit, command.node) for command in run.all(e.Blame)] == [(0, "a")]
    assert [command.attempts for command in run.all(e.RevokeAttempts)] == [tuple(held[1:])]
    assert run.view("a").status == "restarting"
    run.tick(1.0)
    assert not run.held_by("a")
    run.ready("a")
    assert 0 not in run.units_of("a")  # b has not failed on it


def test_a_worker_that_exits_when_asked_is_not_blamed() -> None:
    run = Run(units(200))
    run.ready("a")
    run.worker_dies("a", computing=run.held_by("a")[0], asked=True)
    assert not run.all(e.Blame)
    assert run.view("a").failures == 0


def test_a_stalled_worker_is_restarted_and_its_unit_blamed_once() -> None:
    run = Run(units(200))
    run.ready("a", "b")
    held = run.held_by("a")
    commands = run.handle(e.WorkerStalled(at=run.now, node=NodeName("a"), attempt=AttemptId(held[0]), seconds=31.0))
    assert [type(command) for command in commands] == [e.Blame, e.RevokeAttempts, e.RestartWorkerOn]
    assert commands[1].attempts == tuple(held)  # type: ignore[union-attr]
    assert commands[2].reason == f"no progress for 31 s while computing attempt {held[0]}"  # type: ignore[union-attr]
    run.worker_dies("a", computing=held[0], asked=True)
    assert len(run.all(e.Blame)) == 1
    run.ready("a")
    assert run.held_by("a")


def test_an_idle_node_duplicates_what_is_overdue_and_the_first_result_wins() -> None:
    run = Run(units(2))
    run.ready("a", "b")
    slow, quick = run.held_by("a")[0], run.held_by("b")[0]
    run.tick(0.9)
    run.result(quick)
    assert not run.held_by("b")  # b would not be sooner than a, which is on time
    run.tick(0.8)
    second = run.held_by("b")[0]
    assert run.all(e.Grant)[-1].reason.startswith("speculation: a overdue by ")
    commands = run.result(second)
    assert [type(command) for command in commands] == [e.Commit, e.RevokeAttempts, e.Finish]
    assert commands[1].attempts == (slow,)  # type: ignore[union-attr]
    assert run.view("a").duplicates_lost == 1
    assert run.result(slow, node="a", unit=0)[0].reason == "the run is over"  # type: ignore[union-attr]


def test_an_idle_node_takes_what_waits_behind_others_on_a_node_that_turned_slow() -> None:
    run = Run(units(200))
    run.ready("a", speed=10_000.0)  # claims a hundredfold, so it gets nearly everything
    held = run.held_by("a")
    run.handle(e.NodeReady(at=run.now, node=NodeName("b"), cost_per_second=100.0, measured=True))
    run.now += 1.0
    run.result(held[0], seconds=1.0)
    run.now += 1.0
    run.result(held[1], seconds=1.0)
    for _ in range(300):
        run.now += 0.5
        for attempt in run.held_by("b")[:1]:
            run.result(attempt)
        if not run.held_by("b"):
            run.tick(0.1)
    reasons = [grant.reason for grant in run.all(e.Grant) if grant.node == "b"]
    assert any(reason.endswith("before a would finish it") for reason in reasons)
    assert run.view("b").units_committed > 100


def test_a_unit_has_at_most_two_live_attempts() -> None:
    run = Run(units(1))
    run.ready("a", "b", "c", "d")
    for _ in range(20):
        run.tick(10.0)
    assert len(run.live) == 2


def test_a_slow_node_is_not_given_what_the_others_would_have_done_before() -> None:
    run = Run(units(12, cost=100.0))
    run.handle(e.NodeReady(at=0.0, node=NodeName("fast"), cost_per_second=1000.0, measured=True))
    run.handle(e.NodeReady(at=0.0, node=NodeName("slow"), cost_per_second=10.0, measured=True))
    run.tick()
    assert not run.held_by("slow")
    run.lose("fast")
    run.tick()
    assert run.held_by("slow")


def test_a_full_disk_stops_leases_and_nothing_else() -> None:
    run = Run(units(200))
    run.ready("a")
    run.handle(e.StorageChanged(at=run.now, writable=False, needed_bytes=1))
    before = len(run.all(e.Grant))
    for attempt in run.held_by("a"):
        run.result(attempt)
    assert len(run.all(e.Grant)) == before
    run.handle(e.StorageChanged(at=run.now, writable=True))
    assert len(run.all(e.Grant)) == before + 2


def test_a_drain_gives_out_no_more_and_ends_when_everything_is_back() -> None:
    run = Run(units(200))
    run.ready("a")
    held = run.held_by("a")
    run.handle(e.DrainAsked(at=run.now, until=run.now + 60.0))
    for attempt in held[:-1]:
        run.result(attempt)
    assert not run.all(e.Finish)
    run.result(held[-1])
    assert [(finish.complete, finish.reason) for finish in run.all(e.Finish)] == [
        (False, "interrupted: nothing is in flight any more")
    ]
    assert len(run.all(e.Grant)) == 2


def test_a_drain_ends_when_its_time_is_up() -> None:
    run = Run(units(200))
    run.ready("a")
    decision = run.scheduler.handle(e.DrainAsked(at=run.now, until=run.now + 0.2))
    assert decision.seconds_to_next_look == pytest.approx(0.2)
    run.tick(0.3)
    assert [finish.complete for finish in run.all(e.Finish)] == [False]
    assert "gave up waiting" in run.all(e.Finish)[0].reason


def test_finish_is_said_once() -> None:
    run = Run(units(3))
    run.ready("a")
    run.compute_all()
    run.tick()
    run.lose("a")
    run.ready("a")
    assert len(run.all(e.Finish)) == 1


def test_ticks_that_lead_to_nothing_change_nothing() -> None:
    """They are not recorded: a replay does without them."""
    one, other = Run(units(50)), Run(units(50))
    for run in (one, other):
        run.ready("a", "b")
    for _ in range(20):
        one.tick(0.01)
        if one.new:
            other.handle(e.Tick(at=one.now))
        other.now = one.now
        for attempt in list(one.live)[:1]:
            one.result(attempt)
            other.result(attempt)
    assert one.said == other.said


def test_a_result_costs_the_same_however_long_the_run() -> None:
    """About 10 us; the bound leaves room for a loaded machine, none for a scan of the units."""

    def seconds_per_result(count: int) -> float:
        run = Run(units(count))
        run.ready("a", "b", speed=1000.0)
        spent = []
        while len(spent) < 1500:
            for attempt in list(run.live):
                node, unit = run.live[attempt]
                run.now += 0.05
                event = e.ResultReceived(
                    at=run.now,
                    node=NodeName(node),
                    attempt=AttemptId(attempt),
                    unit=UnitId(unit),
                    epoch=Epoch(1),
                    valid=True,
                    compute_seconds=0.1,
                )
                began = time.perf_counter()
                run.handle(event)
                spent.append(time.perf_counter() - began)
        return sorted(spent)[len(spent) // 2]

    assert min(seconds_per_result(100_000) for _ in range(3)) < 60e-6


def test_the_view_of_a_node() -> None:
    run = Run(units(200))
    run.ready("a", "b")
    run.now += 1.0
    run.result(run.held_by("a")[0])
    view = run.view("a")
    assert (view.status, view.leases, view.units_committed, view.rows_committed) == ("ready", 2, 1, 4)
    assert view.cost_share == 1.0
    assert view.units_outstanding == len(run.held_by("a"))
    assert view.slowest_unit_seconds == pytest.approx(1.0)
    assert view.computing == run.units_of("a")[0]
