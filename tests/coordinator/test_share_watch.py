"""Shares follow measured step times, once all ranks of the generation have reported, and never where they are fixed."""

from __future__ import annotations

import pytest

from realign_cluster.coordinator.share_watch import ShareWatch
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.rank_report import StepDone
from realign_cluster.domain.recovery_events import SharesMeasured
from realign_cluster.domain.world import RankSpec, WorldPlan

NODES = (NodeName("alpha"), NodeName("beta"))
WORLD = WorldPlan(parallel="data", nodes=NODES, shares=(0.5, 0.5))


def done(step: int, tokens: int, seconds: float, version: int = 0) -> StepDone:
    return StepDone(
        step=step, loss=1.0, tokens=1000, rows=8, own_tokens=tokens, own_padded=tokens, seconds=seconds,
        compute_seconds=seconds, reduce_seconds=0.0, gradient_norm=1.0, learning_rate=1e-4, shares_version=version,
    )  # fmt: skip


def begun(generation: int = 1, *, fixed: bool = False, world: WorldPlan = WORLD) -> ShareWatch:
    watch = ShareWatch(fixed=fixed)
    for rank in range(world.size):
        watch.begin(RankSpec(generation=generation, rank=rank, world=world))
    return watch


def train(watch: ShareWatch, first: int, last: int, version: int = 0) -> list[SharesMeasured]:
    """Alpha is twice as fast; each computes half."""
    moved = []
    for step in range(first, last + 1):
        for node, seconds in zip(NODES, (1.0, 2.0), strict=True):
            found = watch.step(node, 1, done(step, 500, seconds, version), float(step))
            if found is not None:
                moved.append(found)
    return moved


def test_the_faster_rank_gets_more() -> None:
    moved = train(begun(), 1, 20)
    assert moved
    assert moved[0].generation == 1
    assert moved[0].shares[0] > 0.55
    assert sum(moved[0].shares) == pytest.approx(1.0)


def test_nothing_moves_until_the_last_change_has_arrived() -> None:
    watch = begun()
    first = train(watch, 1, 20)[0]
    watch.moved(1, first.shares)
    assert not train(watch, 21, 60, version=0)
    assert train(watch, 61, 90, version=1)


def test_a_rank_that_says_nothing_holds_all_back() -> None:
    watch = begun()
    assert all(watch.step(NODES[0], 1, done(step, 500, 1.0), float(step)) is None for step in range(1, 50))


def test_fixed_shares_models_in_parts_and_older_generations_are_left_alone() -> None:
    assert not train(begun(fixed=True), 1, 40)
    assert not train(begun(world=WORLD.model_copy(update={"parallel": "tensor"})), 1, 40)
    assert not train(begun(generation=2), 1, 40)
