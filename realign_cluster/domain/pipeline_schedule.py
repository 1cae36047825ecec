"""One forward, one backward: which micro-batch a stage of a pipeline works on when, and what it says to its neighbours.

Pure. Every rank derives its own actions, and both ends of a transfer derive it from the same rule, so that even
transfers that hold both ends until they are through (a full socket, a rendezvous) cannot wait for each other in a
circle. Must not know models, arrays or backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["receive_activation", "forward", "send_activation", "receive_cotangent", "backward", "send_cotangent"]
FORWARD_SHARE = 1 / 3  # of a stage's compute: the backward pass takes about twice the forward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """`receive_activation` and `send_cotangent` are with the stage before, their counterparts with the one after."""

    kind: Kind
    micro_batch: int


def actions_of(stage: int, *, stages: int, micro_batches: int, backward_from: int = 0) -> list[Action]:
    """In order. Stages below `backward_from` have nothing to train and nobody before them that has: they only go
    forward; `backward_from` = `stages` is a pass without gradients.

    A stage holds the activations of at most `in_flight(...)` micro-batches. At a link the stage before has its
    activation out before it waits for a cotangent, and the stage after takes it before it gives one.
    """
    backward = stage >= backward_from
    ahead = in_flight(stage, stages=stages, micro_batches=micro_batches) - 1 if backward else micro_batches
    actions: list[Action] = []

    def add(kind: Kind, micro_batch: int, when: bool = True) -> None:
        if when:
            actions.append(Action(kind=kind, micro_batch=micro_batch))

    receives, sends = stage > 0, stage < stages - 1
    for turn in range(micro_batches + (ahead if backward else 0)):
        behind = turn - ahead  # the micro-batch whose backward pass follows
        if turn < micro_batches:
            add("receive_activation", turn, receives)
        if backward and behind > 0:
            add("send_cotangent", behind - 1, stage > backward_from)
        if turn < micro_batches:
            add("forward", turn)
            add("send_activation", turn, sends)
        if backward and behind >= 0:
            add("receive_cotangent", behind, sends)
            add("backward", behind)
    if backward and micro_batches:
        add("send_cotangent", micro_batches - 1, stage > backward_from)
    return actions


def in_flight(stage: int, *, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage holds at once, at most."""
    return min(micro_batches, stages - stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """`bubble` is the fraction of all stages' time in which they wait, for want of balance too; 0 with one stage."""

    seconds: float
    bubble: float


def expected_step(
    stage_seconds: Sequence[float], micro_batches: int, *, backward_from: int = 0, transfer_seconds: float = 0.0
) -> StepEstimate:
    """Of one step, by walking through the schedule. `stage_seconds`: forward and backward pass of one micro-batch;
    of a stage that only goes forward, that alone.

    With m micro-batches on n stages of equal time t and free transfers: (m + n - 1) t, a bubble of
    (n - 1) / (m + n - 1).
    """
    stages = len(stage_seconds)
    plans = [
        actions_of(stage, stages=stages, micro_batches=micro_batches, backward_from=backward_from)
        for stage in range(stages)
    ]

    def seconds(stage: int, action: Action) -> float:
        if stage < backward_from:
            return stage_seconds[stage]
        return stage_seconds[stage] * (FORWARD_SHARE if action.kind == "forward" else 1 - FORWARD_SHARE)

    busy = [
        sum(seconds(stage, action) for action in plan if action.kind in ("forward", "backward"))
        for stage, plan in enumerate(plans)
    ]
    free = [0.0] * stages  # when the stage can begin the next action
    line = [0.0] * stages  # when its side of the wire is free: sending goes on beside the computing
    position = [0] * stages
    while any(position[stage] < len(plans[stage]) for stage in range(stages)):
        before = list(position)
        for stage, plan in enumerate(plans):
            while position[stage] < len(plan):
                action = plan[position[stage]]
                if action.kind in ("forward", "backward"):
                    free[stage] += seconds(stage, action)
                    position[stage] += 1
                    continue
                other, counterpart = _counterpart(stage, action)
                if position[other] == len(plans[other]) or plans[other][position[other]] != counterpart:
                    break
                done = max(free[stage], line[stage], free[other], line[other]) + transfer_seconds
                receiver = stage if action.kind.startswith("receive") else other
                line[stage] = line[other] = free[receiver] = done
                position[stage] += 1
                position[other] += 1
        if position == before:
            raise AssertionError(f"stages wait for each other: {position} of {[len(plan) for plan in plans]}")
    total = max(free, default=0.0)
    return StepEstimate(seconds=total, bubble=1 - sum(busy) / (stages * total) if total else 0.0)


def _counterpart(stage: int, action: Action) -> tuple[int, Action]:
    """Who is at the other end of a transfer, and what it does there."""
    other, kind = {
        "receive_activation": (stage - 1, "send_activation"),
        "send_activation": (stage + 1, "receive_activation"),
        "receive_cotangent": (stage + 1, "send_cotangent"),
        "send_cotangent": (stage - 1, "receive_cotangent"),
    }[action.kind]
    return other, Action(kind=kind, micro_batch=action.micro_batch)  # type: ignore[arg-type]
