"""Traces whose efficiency is known by arithmetic, and what holds for any trace."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.efficiency import (
    DISPATCH,
    DRIFT,
    DUPLICATES,
    LOSSES,
    RECOVERY,
    TAIL,
    Computation,
    Efficiency,
    Outage,
    Presence,
    Sitting,
    measure,
)


def computed(node: str, *ends: float, seconds: float = 1.0, cost: float = 10.0, wasted: str | None = None):
    return tuple(
        Computation(node=node, received_at=end, compute_seconds=seconds, cost=cost, wasted_as=wasted) for end in ends
    )


def there(node: str, begin: float, end: float, asked_at: float | None = None, *, lost: bool = False) -> Presence:
    return Presence(node=node, begin=begin, end=end, asked_at=begin if asked_at is None else asked_at, lost=lost)


def run(
    *computations: tuple[Computation, ...], presences: list[Presence], finished_at: float, **more: object
) -> Efficiency:
    return measure(
        [
            Sitting(
                asked_at=min(presence.asked_at for presence in presences),
                finished_at=finished_at,
                computations=sum(computations, ()),
                presences=tuple(presences),
                **more,  # type: ignore[arg-type]
            )
        ]
    )


def seconds(first: int, last: int) -> range:
    return range(first, last + 1)


def test_two_nodes_busy_all_the_time():
    found = run(
        computed("a", *seconds(1, 10)),
        computed("b", *seconds(1, 10), cost=5.0),
        presences=[there("a", 0, 10), there("b", 0, 10)],
        finished_at=10,
    )
    assert found.warm == pytest.approx(1.0)
    assert found.cold == pytest.approx(1.0)
    assert sum(found.losses.values()) == pytest.approx(0.0)


def test_a_node_idle_at_the_end_is_tail():
    """a: 10 s at 10, b: 6 s at 10, then idle. Work 160 at 20 a second: 8 s."""
    found = run(
        computed("a", *seconds(1, 10)),
        computed("b", *seconds(1, 6)),
        presences=[there("a", 0, 10), there("b", 0, 10)],
        finished_at=10,
    )
    assert found.warm == pytest.approx(0.8)
    assert found.losses[TAIL] == pytest.approx(0.2)
    assert found.seconds_by_node["b"] == pytest.approx({"busy": 6, TAIL: 4})


def test_waiting_between_units_is_dispatch():
    """Half of the time nothing to do: 5 s of work in 10 s."""
    found = run(computed("a", 2, 4, 6, 8, 10), presences=[there("a", 0, 10)], finished_at=10)
    assert found.warm == pytest.approx(0.5)
    assert found.losses[DISPATCH] == pytest.approx(0.5)


def test_work_done_twice_is_duplicates():
    found = run(
        computed("a", *seconds(1, 10)),
        computed("b", *seconds(1, 8)),
        computed("b", 9, 10, wasted=DUPLICATES),
        presences=[there("a", 0, 10), there("b", 0, 10)],
        finished_at=10,
    )
    assert found.warm == pytest.approx(0.9)
    assert found.losses[DUPLICATES] == pytest.approx(0.1)


def test_a_worker_that_died_is_recovery_and_a_node_that_left_is_nobodys_fault():
    """a's worker dies at 5 and is back at 7; b is there from 0 to 4 and leaves with its work done."""
    found = run(
        computed("a", *seconds(1, 5), *seconds(8, 10)),
        computed("b", *seconds(1, 4)),
        presences=[there("a", 0, 10), there("b", 0, 4)],
        outages=(Outage(node="a", begin=5.0, end=7.0),),
        finished_at=10,
    )
    # work 120: 8 s of both at 20 would be too much: 4 s at 20, then 4 s at 10
    assert found.ideal_seconds == pytest.approx(8.0)
    assert found.losses[RECOVERY] == pytest.approx(0.2)
    assert found.losses[TAIL] == found.losses[DISPATCH] == 0


def test_what_a_lost_node_had_in_hand_is_recovery():
    found = run(
        computed("a", *seconds(1, 10)),
        computed("b", *seconds(1, 3)),
        presences=[there("a", 0, 10), there("b", 0, 5, lost=True)],
        finished_at=10,
    )
    assert found.losses[RECOVERY] == pytest.approx(1 - found.warm)
    assert found.ideal_seconds == pytest.approx(8.0)  # 5 s at 20, then 3 s at 10


def test_waiting_for_a_unit_that_was_slower_than_its_node_is_drift():
    """a: nine units of 1 s, then one of 6 s; b waits 5 s, of which what goes beyond a's own pace is drift."""
    found = run(
        computed("a", *seconds(1, 9)),
        computed("a", 15, seconds=6.0),
        computed("b", *seconds(1, 10)),
        presences=[there("a", 0, 15), there("b", 0, 15)],
        finished_at=15,
    )
    assert found.losses[DRIFT] > found.losses[TAIL]
    pace = 100 / 15
    assert found.seconds_by_node["b"][DRIFT] == pytest.approx(6 - 10 / pace)


def test_a_node_that_slows_down_is_measured_as_it_was():
    """Throttled to half after 10 s, always busy: nothing could have been faster."""
    found = run(
        computed("a", *seconds(1, 10)),
        computed("a", *range(12, 21, 2), seconds=2.0),
        presences=[there("a", 0, 20)],
        finished_at=20,
    )
    assert found.warm == pytest.approx(1.0)


def test_cold_counts_the_loading():
    found = run(computed("a", *seconds(11, 20)), presences=[there("a", 10, 20, asked_at=0)], finished_at=20)
    assert found.warm == pytest.approx(1.0)
    assert found.cold == pytest.approx(0.5)
    assert found.cold_seconds == pytest.approx(20)


def test_a_node_that_joins_late_is_capacity_from_then_on():
    found = run(
        computed("a", *seconds(1, 10)),
        computed("b", *seconds(6, 10)),
        presences=[there("a", 0, 10), there("b", 5, 10)],
        finished_at=10,
    )
    assert found.warm == pytest.approx(1.0)


def test_results_that_arrive_in_a_burst_are_placed_where_they_were_computed():
    """Cut off from 2 to 8, computing all the while: eight results at once at 8 are not eight seconds of speed 80."""
    found = run(
        computed("a", 1, 2, 8, 8, 8, 8, 8, 8, 9, 10),
        presences=[there("a", 0, 10)],
        finished_at=10,
    )
    assert found.warm == pytest.approx(1.0)


def test_a_spooled_result_of_an_earlier_sitting_is_not_work_of_this_one():
    found = run(computed("a", 0.0, 0.01, *seconds(1, 10)), presences=[there("a", 0.005, 10)], finished_at=10)
    assert found.warm == pytest.approx(1.0, abs=0.01)


def test_sittings_add_up():
    first = Sitting(
        asked_at=0, finished_at=6, computations=computed("a", *seconds(1, 6)), presences=(there("a", 0, 6),)
    )
    second = Sitting(
        asked_at=1000,
        finished_at=1006,
        computations=computed("a", 1002, 1004, 1006),
        presences=(there("a", 1000, 1006),),
    )
    found = measure([first, second])
    assert found.warm == pytest.approx(9 / 12)
    assert found.warm_seconds == pytest.approx(12)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (run(computed("a", 1, 2), presences=[there("a", 0, 2)], finished_at=2), "too short"),
        (
            run(
                computed("a", *seconds(1, 10)),
                computed("b", 9),
                presences=[there("a", 0, 10), there("b", 0, 10)],
                finished_at=10,
            ),
            "speed of b",
        ),
        (measure([]), "too short"),
    ],
)
def test_what_cannot_be_measured_is_none(found: Efficiency, why: str):
    assert found.warm is None
    assert found.cold is None
    assert why in found.why_not


@st.composite
def traces(draw: st.DrawFn) -> Sitting:
    """Nodes with any mixture of computing, waiting, waste and loading; results arrive up to a second late."""
    presences = []
    computations: list[Computation] = []
    positive = st.floats(0.01, 5.0)
    for name in draw(st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")])):
        begin = now = draw(st.floats(0, 3))
        for _ in range(draw(st.integers(2, 12))):
            now += draw(st.floats(0, 2))
            took = draw(positive)
            now += took
            computations += computed(
                name,
                now + draw(st.floats(0, 1)),
                seconds=took,
                cost=draw(st.floats(0.1, 100)),
                wasted=draw(st.sampled_from([None, None, None, DUPLICATES, RECOVERY])),
            )
        presences.append(there(name, begin, now + 1, asked_at=begin - draw(st.floats(0, 2)), lost=draw(st.booleans())))
    last = max((item.received_at for item in computations if item.wasted_as is None), default=0.0)
    return Sitting(
        asked_at=min(presence.asked_at for presence in presences),
        finished_at=last,
        computations=tuple(computations),
        presences=tuple(presences),
    )


@given(traces())
def test_never_above_one_and_the_losses_are_what_is_missing(sitting: Sitting):
    found = measure([sitting])
    if found.warm is None or found.cold is None:
        return
    assert 0 <= found.warm <= 1 + 1e-9
    assert found.cold <= 1 + 1e-9
    assert all(loss >= 0 for loss in found.losses.values())
    assert math.isclose(sum(found.losses.values()), 1 - found.warm, abs_tol=1e-6)
    assert set(found.losses) == set(LOSSES)
