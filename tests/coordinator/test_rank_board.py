"""What is shown of a training while it goes on."""

from __future__ import annotations

from realign_cluster.coordinator.rank_board import RankBoard
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.rank_report import StepDone
from realign_cluster.domain.world import RankSpec, WorldPlan

ALPHA, BETA = NodeName("alpha"), NodeName("beta")
WORLD = WorldPlan(parallel="data", nodes=(ALPHA, BETA), shares=(0.5, 0.5))
STEP = StepDone(
    step=1, loss=2.0, tokens=20, rows=4, own_tokens=10, own_padded=0, seconds=1.0, compute_seconds=0.8,
    reduce_seconds=0.1, gradient_norm=1.0, learning_rate=1e-4,
)  # fmt: skip


def board_of(generation: int) -> RankBoard:
    """Both ranks of a generation have done a step."""
    board = RankBoard((ALPHA, BETA), steps=1, first=0, clock=lambda: 5.0)
    for rank, node in enumerate((ALPHA, BETA)):
        board.starting(node, RankSpec(generation=generation, rank=rank, world=WORLD))
    for node in (ALPHA, BETA):
        board.reported(node, generation, STEP)
    return board


def test_a_run_whose_ranks_are_done_is_written_and_not_loaded() -> None:
    board = board_of(1)
    assert board.snapshot(stopping=False).phase == "training"
    board.exited(ALPHA, 1, "exit status 0", asked=False, last_lines="")
    assert board.snapshot(stopping=False).phase == "writing"
    assert board.snapshot(stopping=False).retries == 0


def test_a_rank_that_died_is_recovered_from() -> None:
    board = board_of(1)
    board.exited(ALPHA, 1, "killed by SIGKILL", asked=False, last_lines="")
    board.exited(BETA, 1, "exit status 0", asked=True, last_lines="")
    board.starting(ALPHA, RankSpec(generation=2, rank=0, world=WORLD))
    assert board.snapshot(stopping=False).phase == "recovering"
    assert board.snapshot(stopping=False).retries == 1
