"""One forward, one backward: nobody waits in a circle whatever the sizes, and the time is the known one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.pipeline_schedule import FORWARD_SHARE, Action, actions_of, expected_step, in_flight

PARTNER = {
    "receive_activation": (-1, "send_activation"),
    "send_activation": (1, "receive_activation"),
    "receive_cotangent": (1, "send_cotangent"),
    "send_cotangent": (-1, "receive_cotangent"),
}


def run_by_rendezvous(plans: list[list[Action]]) -> None:
    """Every transfer holds both ends until both are there: the strictest wire. Fails when all are stuck."""
    done = [0] * len(plans)
    while any(at < len(plan) for at, plan in zip(done, plans, strict=True)):
        moved = False
        for stage, plan in enumerate(plans):
            if done[stage] == len(plan):
                continue
            action = plan[done[stage]]
            if action.kind in PARTNER:
                offset, kind = PARTNER[action.kind]
                other = stage + offset
                if done[other] == len(plans[other]):
                    continue
                theirs = plans[other][done[other]]
                if (theirs.kind, theirs.micro_batch) != (kind, action.micro_batch):
                    continue
                done[other] += 1
            done[stage] += 1
            moved = True
        assert moved, f"stuck at {[plan[at : at + 1] for at, plan in zip(done, plans, strict=True)]}"


@pytest.mark.parametrize("stages", range(1, 7))
def test_no_stage_waits_for_itself(stages: int) -> None:
    for micro_batches in range(10):
        for backward_from in range(stages + 1):
            run_by_rendezvous(
                [
                    actions_of(stage, stages=stages, micro_batches=micro_batches, backward_from=backward_from)
                    for stage in range(stages)
                ]
            )


@given(st.integers(1, 8), st.integers(0, 20), st.data())
def test_a_stage_does_everything_once_in_order(stages: int, micro_batches: int, data: st.DataObject) -> None:
    stage = data.draw(st.integers(0, stages - 1))
    backward_from = data.draw(st.integers(0, stages))
    actions = actions_of(stage, stages=stages, micro_batches=micro_batches, backward_from=backward_from)
    expected = {"forward": True, "receive_activation": stage > 0, "send_activation": stage < stages - 1}
    trains = stage >= backward_from
    expected |= {"backward": trains, "receive_cotangent": trains and stage < stages - 1}
    expected |= {"send_cotangent": trains and stage > backward_from}
    for kind, wanted in expected.items():
        order = [action.micro_batch for action in actions if action.kind == kind]
        assert order == (list(range(micro_batches)) if wanted else []), kind
    place = {(action.kind, action.micro_batch): at for at, action in enumerate(actions)}
    held = most = 0
    for action in actions:
        held += {"forward": trains, "backward": -1}.get(action.kind, 0)
        most = max(most, held)
    assert most == (in_flight(stage, stages=stages, micro_batches=micro_batches) if trains else 0)
    chain = ["receive_activation", "forward", "send_activation", "receive_cotangent", "backward", "send_cotangent"]
    for number in range(micro_batches):
        at = [place[kind, number] for kind in chain if (kind, number) in place]
        assert at == sorted(at)


@given(st.integers(1, 8), st.integers(1, 24))
def test_equal_stages_take_the_known_time(stages: int, micro_batches: int) -> None:
    found = expected_step([1.5] * stages, micro_batches)
    assert found.seconds == pytest.approx(1.5 * (micro_batches + stages - 1))
    assert found.bubble == pytest.approx((stages - 1) / (micro_batches + stages - 1))


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6), st.integers(1, 24))
def test_unequal_stages_are_bound_by_the_slowest(stage_seconds: list[float], micro_batches: int) -> None:
    found = expected_step(stage_seconds, micro_batches).seconds
    least = max(micro_batches * max(stage_seconds), sum(stage_seconds))
    most = sum(stage_seconds) + (micro_batches - 1) * max(stage_seconds)
    assert least * (1 - 1e-9) <= found <= most * (1 + 1e-9)


def test_transfers_and_stages_that_only_go_forward() -> None:
    # One micro-batch on two stages: forward, over, forward and backward, back, backward.
    assert expected_step([3.0, 3.0], 1, transfer_seconds=0.5).seconds == pytest.approx(7.0)
    # A frozen first stage gives only its forward time and waits for no cotangent.
    frozen = expected_step([3.0 * FORWARD_SHARE, 3.0], 4, backward_from=1)
    assert frozen.seconds == pytest.approx(1.0 + 4 * 3.0)
    assert frozen.bubble == pytest.approx(1 - 16 / 26)
