"""How much a node is given at once, and what an idle node duplicates."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.events import UnitRef
from realign_cluster.domain.fleet import Attempt, Node, Work
from realign_cluster.domain.ids import AttemptId, LeaseId, NodeName, UnitId
from realign_cluster.domain.leases import (
    choose_duplicate,
    expected_finishes,
    lease_seconds,
    others_finish_in,
    overdue_by,
    take_units,
)
from realign_cluster.domain.policy import Policy
from realign_cluster.domain.speed import RunningSpeed

POLICY = Policy()


def node(name: str, speed: float = 100.0, holds: tuple[float, ...] = (), since: float = 0.0, first: int = 0) -> Node:
    made = Node(NodeName(name), RunningSpeed(speed, measured=True))
    for index, cost in enumerate(holds):
        unit = first + index
        work = Work(UnitRef(unit=UnitId(unit), cost=cost, longest=1, rows=4))
        attempt = Attempt(AttemptId(unit + 1), work, made, LeaseId(1))
        work.attempts.append(attempt)
        made.hold(attempt, since)
    return made


def test_a_lease_is_a_quarter_of_what_remains_at_all_speeds() -> None:
    one, other = node("a", 100.0), node("b", 300.0)
    assert lease_seconds(one, [one, other], 4000.0, 1.0, 0.0, Policy(lease_max_units=10**6)) == pytest.approx(2.5)


def test_nodes_that_are_planned_and_not_there_yet_keep_their_share() -> None:
    early = node("a", 65.0)
    assert lease_seconds(early, [early], 1000.0, 1.0, 35.0, Policy(lease_max_units=10**6)) == pytest.approx(2.5)


@pytest.mark.parametrize(("remaining", "seconds"), [(1e9, 20.0), (100.0, 0.5), (0.0, 0.5)])
def test_a_lease_has_bounds(remaining: float, seconds: float) -> None:
    one = node("a")
    assert lease_seconds(one, [one], remaining, 100.0, 0.0, POLICY) == seconds


def test_the_bound_on_units_shortens_every_lease_alike() -> None:
    one, other = node("a", 650.0), node("b", 350.0)
    both = [lease_seconds(each, [one, other], 1e9, 1.0, 0.0, POLICY) for each in (one, other)]
    assert both[0] == both[1] == pytest.approx(POLICY.lease_max_units / 650.0)


@given(
    costs=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=50),
    target=st.floats(-10.0, 1000.0),
    most=st.floats(0.0, 1000.0),
)
def test_units_are_taken_from_the_front_to_the_nearest_whole(costs: list[float], target: float, most: float) -> None:
    fresh = deque(UnitRef(unit=UnitId(n), cost=cost, longest=1, rows=1) for n, cost in enumerate(costs))
    taken, cost = take_units(fresh, target, most, 40)
    assert 1 <= len(taken) <= 40
    assert [ref.unit for ref in (*taken, *fresh)] == list(range(len(costs)))
    assert cost == pytest.approx(sum(ref.cost for ref in taken))
    if len(taken) > 1:
        assert cost - taken[-1].cost / 2 <= target + 1e-6
        assert cost <= most + 1e-6


def test_nobody_else_never_finishes() -> None:
    one = node("a")
    assert others_finish_in(one, [one], 100.0, 10.0, 0.0, POLICY) == float("inf")


def test_the_others_finish_what_they_hold_and_what_waits() -> None:
    one, other = node("a", 10.0), node("b", 100.0, holds=(100.0, 100.0))
    assert others_finish_in(one, [one, other], 300.0, 50.0, now=0.5, policy=POLICY) == pytest.approx(4.5)


def test_one_unit_is_not_shared_between_others() -> None:
    nodes = [node(name) for name in "abc"]
    assert others_finish_in(nodes[0], nodes, 100.0, 100.0, 0.0, POLICY) == pytest.approx(1.0)


def test_an_overdue_node_is_not_counted_on() -> None:
    one, other = node("a", 10.0), node("b", 100.0, holds=(100.0,))
    assert others_finish_in(one, [one, other], 100.0, 100.0, now=1.6, policy=POLICY) == float("inf")


def test_overdue_is_the_estimate_with_factor_and_slack() -> None:
    holder = node("a", holds=(100.0,), since=10.0)
    assert overdue_by(holder, 11.49, POLICY) == 0.0
    assert overdue_by(holder, 12.0, POLICY) == pytest.approx(0.5)
    assert overdue_by(node("b"), 100.0, POLICY) == 0.0


def test_finishes_follow_the_order_in_the_leases() -> None:
    holder = node("a", holds=(100.0, 200.0, 50.0), since=5.0)
    assert [finish for _, finish in expected_finishes(holder, 5.5, POLICY)] == pytest.approx([6.0, 8.0, 8.5])
    # in time still, but past its estimate: any moment now
    assert [finish for _, finish in expected_finishes(holder, 6.3, POLICY)] == pytest.approx([6.3, 8.3, 8.8])
    # overdue: as if begun now
    assert [finish for _, finish in expected_finishes(holder, 9.0, POLICY)] == pytest.approx([10.0, 12.0, 12.5])


def test_what_is_back_last_is_duplicated_if_that_is_sooner() -> None:
    idle = node("idle", 100.0)
    slow = node("slow", 50.0, holds=(100.0, 100.0, 100.0))
    chosen = choose_duplicate(idle, [idle, slow], 0.0, POLICY)
    assert chosen is not None
    assert chosen.attempt.attempt == 3
    assert chosen.reason == "speculation: 5.0 s before slow would finish it"


def test_nothing_is_duplicated_for_a_small_gain() -> None:
    idle, busy = node("idle", 100.0), node("busy", 100.0, holds=(100.0,))
    assert choose_duplicate(idle, [idle, busy], 0.2, POLICY) is None


def test_an_overdue_unit_is_duplicated_even_by_a_slower_node() -> None:
    idle, busy = node("idle", 10.0), node("busy", 100.0, holds=(100.0,))
    chosen = choose_duplicate(idle, [idle, busy], 3.6, POLICY)
    assert chosen is not None
    assert chosen.reason == "speculation: busy overdue by 2.1 s"


def test_suspects_doubles_and_what_failed_here_are_not_duplicated() -> None:
    idle, busy = node("idle", 100.0), node("busy", 1.0, holds=(100.0,))
    attempt = next(iter(busy.queue.values()))
    ref = attempt.work.ref
    for changed in (
        UnitRef(unit=ref.unit, cost=ref.cost, longest=1, rows=4, suspected=True),
        UnitRef(unit=ref.unit, cost=ref.cost, longest=1, rows=4, failed_on=(NodeName("idle"),)),
    ):
        attempt.work.ref = changed
        assert choose_duplicate(idle, [idle, busy], 0.0, POLICY) is None
    attempt.work.ref = ref
    attempt.work.attempts.append(attempt)
    assert choose_duplicate(idle, [idle, busy], 0.0, POLICY) is None


def test_what_a_node_holds_adds_up() -> None:
    holder = node("a", holds=(100.0, 200.0, 50.0), since=5.0)
    assert holder.seconds_to_drain(5.5) == pytest.approx(3.0)
    first, second, third = tuple(holder.queue.values())
    holder.release(second, 6.0)
    assert holder.head_since == 5.0
    holder.release(first, 6.5)
    assert (holder.head_since, holder.outstanding_cost, dict(holder.leases)) == (6.5, 50.0, {1: 1})
    holder.release(third, 7.0)
    assert (holder.outstanding_cost, holder.leases, holder.seconds_to_drain(8.0)) == (0.0, {}, 0.0)
