"""Whose fault a failure is: units that are poison end alone and in quarantine, nodes that are bad are set aside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain import events as e
from realign_cluster.domain.ids import AttemptId, NodeName, UnitId
from realign_cluster.domain.poison import DIED_MESSAGE, halves, judge_unit, may_try
from realign_cluster.domain.scheduler import Policy
from tests.domain.run_by_hand import Run, units

POLICY = Policy()


def ref(*failed_on: str, rows: int = 4, suspected: bool = False) -> e.UnitRef:
    return e.UnitRef(
        unit=UnitId(0),
        cost=100.0,
        longest=1,
        rows=rows,
        suspected=suspected,
        failed_on=tuple(NodeName(name) for name in failed_on),
    )


@pytest.mark.parametrize(
    ("unit", "usable", "verdict"),
    [
        pytest.param(ref("a"), "ab", "retry", id="once"),
        pytest.param(ref("a", "a"), "ab", "retry", id="twice on one node while another could try"),
        pytest.param(ref("a", "b"), "ab", "split", id="on two nodes"),
        pytest.param(ref("a", "a"), "a", "split", id="twice on the only node"),
        pytest.param(ref("a", "b"), "a", "split", id="on two nodes, of which one is gone"),
        pytest.param(ref("a", "a", "a", "a"), "ab", "split", id="the other never gets round to it"),
        pytest.param(ref("a", suspected=True), "ab", "split", id="suspected: at once"),
        pytest.param(ref("a", rows=1), "ab", "retry", id="one row, once"),
        pytest.param(ref("a", "b", rows=1), "ab", "split", id="one row, in company so far"),
        pytest.param(ref("a", rows=1, suspected=True), "ab", "retry", id="alone, once"),
        pytest.param(ref("a", "b", rows=1, suspected=True), "ab", "quarantine", id="alone, on two nodes"),
        pytest.param(ref("a", "a", rows=1, suspected=True), "ab", "retry", id="alone, twice on one of two"),
        pytest.param(ref("a", "a", rows=1, suspected=True), "a", "quarantine", id="alone, twice on the only node"),
    ],
)
def test_verdicts(unit: e.UnitRef, usable: str, verdict: str) -> None:
    assert judge_unit(unit, {NodeName(name) for name in usable}, False, POLICY) == verdict


@given(rows=st.integers(1, 1000), next_unit=st.integers(1, 10**6))
def test_halves_cover_the_rows(rows: int, next_unit: int) -> None:
    children = halves(ref("a", "b", rows=rows), UnitId(next_unit))
    assert [child.unit for child in children] == [next_unit, next_unit + 1][: len(children)]
    assert sum(child.rows for child in children) == rows
    assert sum(child.cost for child in children) == pytest.approx(100.0)
    assert all(child.suspected and not child.failed_on and child.rows for child in children)
    assert abs(children[0].rows - children[-1].rows) <= 1


def test_a_failed_unit_prefers_who_has_not_tried() -> None:
    unit = ref("a")
    assert not may_try(unit, NodeName("a"), [NodeName("b")], False)
    assert may_try(unit, NodeName("b"), [NodeName("a")], True)
    assert may_try(unit, NodeName("a"), [], False)
    assert not may_try(unit, NodeName("a"), [], True)


def poisoned(run: Run, bad_rows: set[int], rows_of: dict[int, range], limit: int = 2000) -> None:
    """Computes everything; whatever holds a bad row fails."""
    for _ in range(limit):
        if run.all(e.Finish):
            return
        for attempt in list(run.live):
            if attempt not in run.live:
                continue
            unit = run.live[attempt][1]
            if bad_rows & set(rows_of[unit]):
                run.fails(attempt)
            else:
                run.result(attempt)
            for split in run.last(e.Split):
                parent = rows_of[split.unit]
                for child, first, count in split.children:
                    rows_of[child] = parent[first : first + count]
        run.tick(0.5)
    raise AssertionError("not over")


@pytest.mark.parametrize("nodes", [("a",), ("a", "b"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("bad", [{5}, {0}, {39}, {4, 5, 6, 7}, {1, 17, 30}])
def test_exactly_the_bad_rows_are_quarantined(nodes: tuple[str, ...], bad: set[int]) -> None:
    run = Run(units(10, rows=4))
    rows_of = {unit: range(4 * unit, 4 * unit + 4) for unit in range(10)}
    run.ready(*nodes)
    poisoned(run, bad, rows_of)
    assert run.all(e.Finish)[0].complete
    assert {row for command in run.all(e.Quarantine) for row in rows_of[command.unit]} == bad
    done = [row for command in run.all(e.Commit) for row in rows_of[command.unit]]
    assert sorted([*done, *bad]) == list(range(40))
    assert not run.all(e.SetAside)


def test_a_suspected_unit_is_alone_on_its_node() -> None:
    run = Run([e.UnitRef(unit=UnitId(0), cost=100.0, longest=1, rows=2, suspected=True), *units(50)[1:]])
    run.ready("a")
    assert run.units_of("a") == [0]
    assert run.all(e.Grant)[0].reason == "suspected, alone"
    run.tick(0.5)
    assert run.units_of("a") == [0]
    run.result(run.held_by("a")[0])
    assert run.view("a").leases == 2


def test_a_node_at_work_empties_before_it_takes_a_suspected_unit() -> None:
    run = Run(units(500))
    run.ready("a", "b")
    unit = run.live[run.held_by("a")[0]][1]
    run.fails(run.held_by("a")[0])
    while unit not in run.units_of("b"):
        run.result(run.held_by("b")[0])
    attempt = next(attempt for attempt in run.held_by("b") if run.live[attempt][1] == unit)
    run.fails(attempt)
    children = [child for split in run.all(e.Split) for child, _, _ in split.children]
    assert children == [500, 501]
    for _ in range(200):
        for node in ("a", "b"):
            held = run.units_of(node)
            assert not set(held) & set(children) or len(held) == 1
            run.result(run.held_by(node)[0])
    assert {500, 501} <= {command.unit for command in run.all(e.Commit)}


def test_a_row_that_failed_in_company_is_tried_alone_before_it_is_quarantined() -> None:
    run = Run(units(1, rows=1))
    run.ready("a", "b")
    for _ in range(2):
        run.fails(next(iter(run.live)))
        run.tick()
    assert [split.children for split in run.all(e.Split)] == [((1, 0, 1),)]
    assert not run.all(e.Quarantine)
    tried = []
    for _ in range(2):
        attempt = next(iter(run.live))
        tried.append(run.live[attempt][0])
        run.fails(attempt, code="too-odd", message="this row is too odd")
        run.tick()
    assert sorted(tried) == ["a", "b"]
    assert run.all(e.Quarantine) == [e.Quarantine(unit=UnitId(1), code="too-odd", message="this row is too odd")]
    assert run.all(e.Finish)[0].complete


def test_a_row_that_kills_is_quarantined_without_node_or_time_in_its_error() -> None:
    run = Run([e.UnitRef(unit=UnitId(0), cost=1.0, longest=1, rows=1, suspected=True)])
    run.ready("a")
    for _ in range(2):
        run.worker_dies("a", computing=run.held_by("a")[0])
        run.ready("a")
    assert run.all(e.Quarantine) == [e.Quarantine(unit=UnitId(0), code="worker-died", message=DIED_MESSAGE)]
    assert [blame.reason for blame in run.all(e.Blame)] == [
        "its worker died while computing this unit: killed by signal 9"
    ] * 2


def test_what_failed_in_an_earlier_sitting_counts() -> None:
    run = Run([ref("a"), *units(20)[1:]], epoch=2)
    run.ready("a", "b")
    assert 0 not in run.units_of("a")
    assert 0 in run.units_of("b")
    attempt = next(attempt for attempt in run.held_by("b") if run.live[attempt][1] == 0)
    run.fails(attempt)
    assert [split.unit for split in run.all(e.Split)] == [0]


def test_a_failed_unit_does_not_starve_where_only_one_node_is() -> None:
    run = Run(units(3))
    run.ready("a")
    run.fails(run.held_by("a")[0])
    assert 0 in run.units_of("a")
    assert run.all(e.Grant)[-1].reason == "failed on a"


def test_a_failed_unit_waits_a_while_for_a_node_whose_worker_restarts() -> None:
    run = Run(units(400))
    run.ready("a", "b")
    run.worker_dies("b", computing=None)
    run.fails(run.held_by("a")[0])
    run.tick(1.0)
    assert 0 not in run.units_of("a")
    run.tick(130.0)
    for attempt in run.held_by("a"):
        run.result(attempt)
    assert 0 in run.units_of("a")


@pytest.mark.parametrize(("wait", "convicted"), [(10.0, False), (200.0, True)])
def test_one_node_alone_convicts_nothing_while_others_are_on_their_way(wait: float, convicted: bool) -> None:
    """A broken node that is up first must not send innocent rows into quarantine before the others have loaded."""
    suspect = e.UnitRef(unit=UnitId(0), cost=100.0, longest=1, rows=1, suspected=True)
    run = Run([suspect], planned=("broken", "good"))
    run.ready("broken")
    run.worker_dies("broken", computing=run.held_by("broken")[0])
    run.ready("broken")
    run.tick(1.0)
    assert not run.held_by("broken")
    run.tick(wait)
    assert bool(run.held_by("broken")) == convicted
    if convicted:
        run.worker_dies("broken", computing=run.held_by("broken")[0])
        assert run.all(e.Quarantine)
    else:
        run.ready("good")
        assert run.held_by("good")


def test_a_failed_unit_waits_a_while_for_a_lost_node_and_not_for_one_that_left() -> None:
    for clean in (False, True):
        run = Run(units(1))
        run.ready("a", "b")
        attempt = next(iter(run.live))
        node = run.live[attempt][0]
        other = "b" if node == "a" else "a"
        run.lose(other, clean=clean)
        run.fails(attempt)
        run.tick(1.0)
        assert bool(run.held_by(node)) == clean
        run.tick(40.0)
        assert run.held_by(node)


def test_a_node_alone_that_fails_and_fails_waits_for_others_to_have_a_look() -> None:
    run = Run(units(3000), planned=("bad", "good"))
    run.ready("bad")
    for _ in range(200):
        for attempt in run.held_by("bad")[:1]:
            run.fails(attempt)
    assert not run.all(e.Finish)
    assert len(run.all(e.Blame)) < 60
    run.ready("good")
    run.compute_all()
    assert run.all(e.Finish)[0].complete
    assert not run.all(e.Quarantine)


def test_losing_a_node_blames_nothing_however_often() -> None:
    run = Run(units(1))
    for _ in range(20):
        run.ready("a")
        run.lose("a")
    run.ready("a")
    run.compute_all()
    assert not run.all(e.Blame)
    assert run.all(e.Finish)[0].complete


def test_a_speculated_unit_that_fails_once_is_left_to_the_other() -> None:
    run = Run(units(1))
    run.ready("a", "b")
    run.tick(5.0)
    first, second = run.live
    run.fails(first)
    assert not run.all(e.Split)
    assert [type(command) for command in run.result(second)] == [e.Commit, e.Finish]


def test_a_speculated_unit_that_fails_on_both_is_split() -> None:
    run = Run(units(1))
    run.ready("a", "b")
    run.tick(5.0)
    for attempt in list(run.live):
        run.fails(attempt)
    assert [split.unit for split in run.all(e.Split)] == [0]


# --- bad nodes


def fail_on(run: Run, node: str, rounds: int) -> None:
    """This node fails on whatever it gets, the others compute."""
    for _ in range(rounds):
        for attempt in list(run.live):
            if attempt not in run.live:
                continue
            if run.live[attempt][0] == node:
                run.worker_dies(node, computing=attempt)
            else:
                run.result(attempt)
        run.ready(node)


def test_a_node_that_fails_on_what_others_compute_is_set_aside() -> None:
    run = Run(units(3000))
    run.ready("good", "bad")
    fail_on(run, "bad", 8)
    assert [command.node for command in run.all(e.SetAside)] == ["bad"]
    assert "its worker died" in run.all(e.SetAside)[0].reason
    assert run.view("bad").status == "set aside"
    assert not run.held_by("bad")
    run.ready("bad")
    assert not run.held_by("bad")
    run.compute_all()
    assert run.all(e.Finish)[0].complete
    assert not run.all(e.Quarantine)


def test_a_node_with_a_result_now_and_then_is_kept() -> None:
    run = Run(units(3000))
    run.ready("good", "shaky")
    for _ in range(10):
        fail_on(run, "shaky", 2)
        run.result(run.held_by("shaky")[0])
    assert not run.all(e.SetAside)


def test_a_node_that_refuses_everything_at_once_does_not_go_through_the_whole_run() -> None:
    run = Run(units(3000))
    run.ready("good", "bad")
    for _ in range(200):
        for attempt in run.held_by("bad")[:1]:
            run.fails(attempt)
    assert [command.node for command in run.all(e.SetAside)] == ["bad"]
    assert len(run.all(e.Blame)) == POLICY.doubts_to_set_aside
    run.compute_all()
    assert run.all(e.Finish)[0].complete
    assert not run.all(e.Split)


def test_two_nodes_that_both_refuse_most_are_both_kept() -> None:
    run = Run(units(3000))
    run.ready("a", "b")
    for _ in range(15):
        for node in ("a", "b"):
            run.fails(run.held_by(node)[0])
    assert not run.all(e.SetAside)


def test_results_that_are_garbled_set_a_node_aside() -> None:
    run = Run(units(3000))
    run.ready("good", "bad")
    for _ in range(3):
        run.result(run.held_by("bad")[0], valid=False)
    assert [command.node for command in run.all(e.SetAside)] == ["bad"]
    assert run.last(e.RevokeAttempts)
    assert not run.all(e.Blame)


def test_the_only_node_gets_more_patience_and_then_the_run_ends() -> None:
    run = Run(units(3000))
    run.ready("a")
    for _ in range(9):
        run.result(run.held_by("a")[0], valid=False)
    assert not run.all(e.SetAside)
    run.result(run.held_by("a")[0], valid=False)
    assert [command.node for command in run.all(e.SetAside)] == ["a"]
    assert [finish.complete for finish in run.all(e.Finish)] == [False]
    assert run.all(e.Finish)[0].reason.startswith("no usable node is left (a: ")


def test_no_end_while_a_planned_node_may_come() -> None:
    run = Run(units(300), planned=("bad", "good"))
    run.ready("bad")
    for _ in range(10):
        run.result(run.held_by("bad")[0], valid=False)
    assert [command.node for command in run.all(e.SetAside)] == ["bad"]
    run.tick(60.0)
    assert not run.all(e.Finish)
    run.tick(61.0)
    assert [finish.complete for finish in run.all(e.Finish)] == [False]


def test_no_end_while_a_lost_node_may_return() -> None:
    run = Run(units(300))
    run.ready("good", "bad")
    for _ in range(3):
        run.result(run.held_by("bad")[0], valid=False)
    run.lose("good")
    run.tick(600.0)
    assert not run.all(e.Finish)
    run.ready("good")
    run.compute_all()
    assert run.all(e.Finish)[0].complete


def test_poison_does_not_set_nodes_aside() -> None:
    """Every unit holds a bad row: nodes fail far more often than they compute."""
    run = Run(units(12, rows=4))
    rows_of = {unit: range(4 * unit, 4 * unit + 4) for unit in range(12)}
    run.ready("a", "b", "c")
    poisoned(run, set(range(0, 48, 4)), rows_of)
    assert run.all(e.Finish)[0].complete
    assert len(run.all(e.Quarantine)) == 12
    assert not run.all(e.SetAside)


def test_when_nothing_works_anywhere_the_run_ends_and_says_so() -> None:
    run = Run(units(1000, rows=64))
    rows_of = {unit: range(64 * unit, 64 * unit + 64) for unit in range(1000)}
    run.ready("a", "b")
    poisoned(run, set(range(64_000)), rows_of)
    assert [finish.complete for finish in run.all(e.Finish)] == [False]
    assert "100 failures in a row without one result" in run.all(e.Finish)[0].reason
    assert not run.all(e.Quarantine)


def test_a_node_that_has_just_failed_first_shows_that_it_works() -> None:
    """Otherwise a broken node would convict one innocent row after the other."""
    suspect = e.UnitRef(unit=UnitId(40), cost=100.0, longest=1, rows=1, suspected=True)
    run = Run([*units(40), suspect])
    run.ready("a", "b")
    assert run.units_of("a") == [40]
    run.worker_dies("a", computing=run.held_by("a")[0])
    run.worker_dies("b", computing=run.held_by("b")[0])
    run.ready("b")
    assert 40 not in run.units_of("b")
    while run.units_of("b") != [40]:
        run.result(run.held_by("b")[0])
    assert run.all(e.Grant)[-1].reason == "suspected, alone"


def test_a_worker_that_dies_in_a_unit_we_took_back_blames_nobody() -> None:
    run = Run(units(3))
    run.ready("a", "b", "c")
    run.result(run.held_by("b")[0])
    run.tick(5.0)
    taken = run.held_by("a")[0]
    assert run.units_of("b") == run.units_of("a")
    run.result(run.held_by("b")[0])
    assert run.last(e.RevokeAttempts)[0].attempts == (taken,)
    run.worker_dies("a", computing=taken)
    assert not run.all(e.Blame)
    assert run.view("a").failures == 0


def test_a_worker_that_dies_of_a_unit_we_took_back_from_its_predecessor_shows_that_it_kills() -> None:
    run = Run(units(200))
    run.ready("a", "b")
    held = run.held_by("a")
    run.worker_dies("a", computing=held[0])
    taken, unit = held[1], 1
    run.ready("a")
    run.worker_dies("a", computing=taken)
    assert [(blame.unit, blame.attempt) for blame in run.all(e.Blame)] == [(0, held[0]), (unit, taken)]
    run.worker_dies("a", computing=taken)
    assert len(run.all(e.Blame)) == 2
    run.ready("a")
    assert unit not in run.units_of("a")
    run.compute_all()
    assert sorted(command.unit for command in run.all(e.Commit)) == list(range(200))


def test_a_worker_that_hangs_again_after_a_restart_counts_against_its_node() -> None:
    run = Run(units(300))
    run.ready("good", "bad")
    for _ in range(4):
        run.handle(e.WorkerStalled(at=run.now, node=NodeName("bad"), attempt=AttemptId(10**6), seconds=30.0))
    assert len(run.all(e.RestartWorkerOn)) >= 3
    assert [command.node for command in run.all(e.SetAside)] == ["bad"]


def test_a_node_whose_worker_dies_whenever_it_loads_is_set_aside_though_it_was_never_ready() -> None:
    run = Run(units(300), planned=["good", "bad"])
    run.ready("good")
    for _ in range(3):
        run.worker_dies("bad", computing=None)
    assert [command.node for command in run.all(e.SetAside)] == ["bad"]
    run.ready("bad")
    assert not run.held_by("bad")
    run.compute_all()
    assert run.all(e.Finish)[0].complete


def test_a_worker_that_hangs_while_it_loads_for_the_first_time_is_restarted() -> None:
    run = Run(units(3))
    run.handle(e.WorkerStalled(at=run.now, node=NodeName("slow"), attempt=None, seconds=601.0))
    assert [command.node for command in run.last(e.RestartWorkerOn)] == ["slow"]
    run.worker_dies("slow", computing=None, asked=True)
    run.ready("slow")
    assert run.view("slow").cost_per_second == 100.0
    run.compute_all()
    assert run.all(e.Finish)[0].complete


def test_a_node_that_came_back_from_being_lost_and_cannot_load_is_set_aside() -> None:
    run = Run(units(3))
    run.ready("only")
    run.lose("only")
    for _ in range(POLICY.failures_to_set_aside_last):
        run.worker_dies("only", computing=None)
    assert [command.node for command in run.all(e.SetAside)] == ["only"]
    assert not run.all(e.Finish)[0].complete


def test_the_only_node_so_far_may_be_set_aside_while_others_still_load_for_the_first_time() -> None:
    run = Run(units(3), planned=["first", "second"])
    for _ in range(POLICY.failures_to_set_aside_last):
        run.worker_dies("first", computing=None)
    assert run.all(e.SetAside)
    assert not run.all(e.Finish)
    run.ready("second")
    run.compute_all()
    assert run.all(e.Finish)[0].complete
