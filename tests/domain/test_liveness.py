"""Who is lost and who is stalled, by beats alone."""

from __future__ import annotations

from realign_cluster.domain.events import NodeLost, WorkerStalled
from realign_cluster.domain.ids import AttemptId, NodeName
from realign_cluster.domain.liveness import Liveness, LivenessPolicy

A, B = NodeName("a"), NodeName("b")
SEVEN = AttemptId(7)


def beats(live: Liveness, start: float, end: float, *nodes: NodeName, **beat: object) -> list[NodeLost | WorkerStalled]:
    """Every node beats each half second, the coordinator looks at once."""
    facts: list[NodeLost | WorkerStalled] = []
    for step in range(int((end - start) / 0.5) + 1):
        now = start + step * 0.5
        for node in nodes:
            live.heard(node, now, **beat)  # type: ignore[arg-type]
        facts += live.check(now)
    return facts


def test_a_node_is_lost_after_its_lease_and_once() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    live.watch(B, 0.0)
    assert not beats(live, 0.0, 5.0, A, B)
    facts = beats(live, 5.5, 20.0, B)
    assert facts == [NodeLost(at=8.5, node=A, reason="not heard for 3.5 s")]
    assert live.silent_for(A, 20.0) is None


def test_any_message_is_a_sign_of_life() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    for step in range(40):
        live.heard_anything(A, step * 0.5)
        assert not live.check(step * 0.5)


def test_a_released_node_may_be_silent() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    live.forget(A)
    assert not beats(live, 0.5, 10.0)
    live.heard(A, 11.0)
    assert live.silent_for(A, 11.0) is None


def test_a_coordinator_that_was_away_extends_every_lease() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    assert not beats(live, 0.0, 2.0, A)
    assert not live.check(60.0)  # it slept for 58 s
    assert live.silent_for(A, 60.0) == 0.0
    assert not beats(live, 60.5, 62.5)
    assert [fact.node for fact in beats(live, 63.0, 64.0)] == [A]


def test_silence_from_before_the_gap_still_counts() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    assert not beats(live, 0.5, 2.5)
    assert not live.check(10.0)
    assert live.silent_for(A, 10.0) == 2.5


def test_gaps_below_a_second_are_nobody_s_fault() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    facts: list[NodeLost | WorkerStalled] = []
    for now in (1.0, 2.0, 3.0, 4.0):
        facts += live.check(now)
    assert [fact.at for fact in facts] == [4.0]


def test_a_worker_without_progress_is_stalled() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    facts = beats(live, 0.0, 12.0, A, phase="compute", computing=SEVEN, progress=3)
    assert facts == [WorkerStalled(at=10.5, node=A, attempt=SEVEN, seconds=10.5)]


def test_progress_a_new_unit_and_a_new_phase_all_count() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    assert not beats(live, 0.0, 9.0, A, phase="compute", computing=SEVEN, progress=3)
    assert not beats(live, 9.5, 18.0, A, phase="compute", computing=SEVEN, progress=4)
    assert not beats(live, 18.5, 27.0, A, phase="compute", computing=AttemptId(8), progress=4)
    assert not beats(live, 27.5, 300.0, A, phase="load")


def test_slow_units_get_a_multiple_of_what_they_should_take() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    live.expect(A, slowest_unit_seconds=20.0)
    assert not beats(live, 0.0, 80.0, A, phase="compute", computing=SEVEN)
    assert beats(live, 80.5, 81.0, A, phase="compute", computing=SEVEN)


def test_a_limit_that_was_set_is_kept() -> None:
    live = Liveness(LivenessPolicy(stall_seconds=2.0))
    live.watch(A, 0.0)
    live.expect(A, slowest_unit_seconds=20.0)
    assert beats(live, 0.0, 3.0, A, phase="compute", computing=SEVEN)


def test_loading_has_its_own_limit() -> None:
    live = Liveness(LivenessPolicy(load_stall_seconds=30.0))
    live.watch(A, 0.0)
    facts = beats(live, 0.0, 31.0, A, phase="load")
    assert facts == [WorkerStalled(at=30.5, node=A, attempt=None, seconds=30.5)]


def test_an_idle_worker_is_not_stalled_unless_its_node_holds_work() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    assert not beats(live, 0.0, 100.0, A, phase="")
    live.expect(A, slowest_unit_seconds=1.0, holds=3)
    assert not beats(live, 100.5, 110.0, A, phase="")
    assert beats(live, 110.5, 111.0, A, phase="") == [WorkerStalled(at=110.5, node=A, attempt=None, seconds=10.5)]


def test_a_stall_is_said_again_should_the_restart_not_help() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    facts = beats(live, 0.0, 22.0, A, phase="compute", computing=SEVEN)
    assert [fact.at for fact in facts] == [10.5, 21.0]


def test_a_reconnect_is_no_progress() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    facts: list[NodeLost | WorkerStalled] = []
    for start in range(0, 12, 2):
        live.watch(A, float(start))
        facts += beats(live, float(start), start + 1.5, A, phase="compute", computing=SEVEN)
    assert [type(fact) for fact in facts] == [WorkerStalled]


def test_the_coordinator_s_gap_is_no_stall() -> None:
    live = Liveness()
    live.watch(A, 0.0)
    assert not beats(live, 0.0, 6.0, A, phase="compute", computing=SEVEN)
    assert not beats(live, 30.0, 33.5, A, phase="compute", computing=SEVEN)
    assert beats(live, 34.0, 35.0, A, phase="compute", computing=SEVEN)


def test_results_that_still_arrive_are_progress_of_an_idle_worker() -> None:
    """A slow link: the worker is done with all it was given, its node still sends."""
    live = Liveness()
    live.watch(A, 0.0)
    live.expect(A, slowest_unit_seconds=1.0, holds=9)
    for start in range(0, 40, 8):
        assert not beats(live, float(start), start + 7.5, A, phase="")
        live.heard_anything(A, start + 7.5, work=True)
