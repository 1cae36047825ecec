"""How often a rank leaves a snapshot: as often as a hundredth of its time allows. Pure: times are passed in."""

from __future__ import annotations

import math

BUDGET = 0.01  # of a step's time
AROUND = 2.0  # of the writing: daemons and coordinator, which share the cores here, take as much for a state again
MEMORY = 0.2  # weight of the newest measurement


class SnapshotPace:
    """`fixed`: the interval that was asked for; None: from the budget, beginning with `first`. Intervals are in
    steps.
    """

    def __init__(self, fixed: int | None, first: int) -> None:
        self._fixed = fixed
        self._every = fixed or first
        self._step_seconds: float | None = None
        self._last = 0
        self._blocked_seconds = 0.0

    @property
    def every(self) -> int:
        return self._every

    def step_took(self, seconds: float) -> None:
        before = self._step_seconds
        self._step_seconds = seconds if before is None else before + MEMORY * (seconds - before)

    def due(self, step: int, every: int) -> bool:
        """`every` is what all ranks agreed on."""
        return step - self._last >= every

    def kept(self, step: int, blocked_seconds: float) -> None:
        """A state was left after `step`, for which the step waited."""
        self._last, self._blocked_seconds = step, blocked_seconds

    def wrote(self, seconds: float) -> None:
        """CPU time that writing it took: what the thread beside the training takes from it where the CPU computes."""
        if self._fixed is None and self._step_seconds:
            cost = self._blocked_seconds + AROUND * seconds
            self._every = max(1, math.ceil(cost / (BUDGET * self._step_seconds)))
