"""Which states of a run matter: the best, what is kept, where to go back to, what comes out."""

from __future__ import annotations

from realign_cluster.domain.standing import Judged, best_of, go_back_step, is_better, result_of, retained

STATES = [
    Judged(step=0, loss=0.5),
    Judged(step=10, loss=3.0, kl=0.01),
    Judged(step=20, loss=2.0, kl=0.05),
    Judged(step=25),
    Judged(step=30, loss=1.0, kl=0.3),
    Judged(step=40, loss=2.0, kl=0.08),
]


def test_the_best_is_the_first_with_the_lowest_loss_after_training_began() -> None:
    assert best_of(reversed(STATES)) == STATES[4]
    assert best_of(STATES[:4]) == STATES[2]
    assert best_of([STATES[0], STATES[3]]) is None
    assert not is_better(2.0, 2.0)
    assert is_better(2.0, None)


def test_the_best_feasible_one_need_not_be_the_best_nor_the_last() -> None:
    assert best_of(STATES, kl_budget=0.1) == STATES[2]
    assert result_of(STATES, best=True, kl_budget=0.1) == STATES[2]
    assert result_of(STATES, best=False, kl_budget=0.1) == STATES[5]
    assert result_of(STATES[:5], best=False, kl_budget=0.1) == STATES[3]
    assert result_of(STATES[4:5], best=True, kl_budget=0.1) == STATES[4]  # nothing else is there
    assert result_of([], best=True, kl_budget=None) is None


def test_what_is_kept() -> None:
    assert retained(STATES, newest=1, within_budget_step=None, kl_budget=None) == {40, 30}
    assert retained(STATES, newest=1, within_budget_step=26, kl_budget=0.1) == {40, 25, 20}
    assert retained(STATES[3:4], newest=2, within_budget_step=5, kl_budget=None) == {25}


def test_a_run_goes_back_to_the_newest_state_not_beyond_its_budget() -> None:
    assert go_back_step([10, 20, 30], 25) == 20
    assert go_back_step([30], 25) is None
