"""Which states of a run matter by what was measured of them: the best, the one to go back to, those that are kept, the
one that is the result. The only place that judges; ranks, recovery, retention and the report ask here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The state after `step` steps. `loss`: of validation, measured of this very state; None: it was not. `kl`: nats
    per completion token, the last that was measured up to this step.
    """

    step: int
    loss: float | None = None
    kl: float | None = None

    def is_feasible(self, kl_budget: float | None) -> bool:
        """Within budget as far as is known."""
        return kl_budget is None or self.kl is None or self.kl <= kl_budget


def is_better(loss: float, best: float | None) -> bool:
    """Of equal losses the earlier state is the better one. `best` None: there was none before."""
    return best is None or loss < best


def best_of(states: Iterable[Judged], kl_budget: float | None = None) -> Judged | None:
    """The lowest validation loss among feasible states. What there was before training is no candidate."""
    best: Judged | None = None
    for state in sorted(states, key=lambda state: state.step):
        if state.step == 0 or state.loss is None or not state.is_feasible(kl_budget):
            continue
        if is_better(state.loss, best.loss if best is not None else None):
            best = state
    return best


def go_back_step(steps: Iterable[int], within_budget_step: int) -> int | None:
    """Where a run over its KL budget begins again: the newest state that is not beyond the last one within budget."""
    return max((step for step in steps if step <= within_budget_step), default=None)


def retained(
    states: Iterable[Judged], *, newest: int, within_budget_step: int | None, kl_budget: float | None
) -> frozenset[int]:
    """Steps of the states to keep: the `newest` ones, the best, and that to go back to (None: nothing may)."""
    judged = list(states)
    steps = sorted(state.step for state in judged)
    best = best_of(judged, kl_budget)
    back = go_back_step(steps, within_budget_step) if within_budget_step is not None else None
    return frozenset({*steps[-newest:], *([best.step] if best else []), *([back] if back is not None else [])})


def result_of(states: Iterable[Judged], *, best: bool, kl_budget: float | None) -> Judged | None:
    """What a complete run came to: the best feasible state if that was asked for and anything was measured, else the
    last one that is feasible, else the last. None: there is no state.
    """
    judged = sorted(states, key=lambda state: state.step)
    if best and (found := best_of(judged, kl_budget)) is not None:
        return found
    feasible = [state for state in judged if state.is_feasible(kl_budget)]
    return max(feasible or judged, key=lambda state: state.step, default=None)
