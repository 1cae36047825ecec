"""The learning rate of each step: warm-up, then a schedule. Pure; knows no optimizer and no states."""

from __future__ import annotations

import math
from typing import assert_never

from realign_cluster.domain.training import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, steps: int, start: int = 0) -> float:
    """For the step that is taken when `step` are done (the first has 0) of `steps` in all.

    Warm-up is linear and reaches the full rate with step `warmup_steps`. The schedule begins there and gets to
    `final_fraction` of the rate when all steps are done, so that the last of them is not wasted on a rate of 0. Or it
    begins anew when `start` are done, over the steps that are left.
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * ((step + 1) / settings.warmup_steps)
    begin = max(settings.warmup_steps, start)
    progress = min(1.0, max(0, step - begin) / max(1, steps - begin))
    final = settings.final_fraction
    match settings.schedule:
        case "constant":
            fraction = 1.0
        case "linear":
            fraction = 1 + (final - 1) * progress
        case "cosine":
            fraction = final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
        case _:
            assert_never(settings.schedule)
    return settings.learning_rate * fraction
