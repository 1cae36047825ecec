from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.learning_rate import learning_rate
from realign_cluster.domain.training import OptimizerSettings


def rates(steps: int, **settings: Any) -> list[float]:
    return [learning_rate(OptimizerSettings(**settings), step, steps) for step in range(steps)]


def test_warm_up_rises_to_the_full_rate_and_no_step_has_none() -> None:
    found = rates(8, learning_rate=1e-3, warmup_steps=4, schedule="constant")
    assert found == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])


def test_linear_falls_evenly_towards_the_final_fraction() -> None:
    found = rates(4, learning_rate=1.0, schedule="linear", final_fraction=0.2)
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4])
    settings = OptimizerSettings(learning_rate=1.0, schedule="linear", final_fraction=0.2)
    assert learning_rate(settings, 4, 4) == pytest.approx(0.2)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    found = rates(9, learning_rate=2.0, schedule="cosine", warmup_steps=1, final_fraction=0.1)
    assert found[0] == found[1] == 2.0
    assert found[5] == pytest.approx(2.0 * 0.55)
    assert found[3] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))


def test_gone_back_near_its_end_a_schedule_begins_anew_over_the_steps_that_are_left() -> None:
    settings = OptimizerSettings(learning_rate=1.0, schedule="cosine", warmup_steps=2)
    assert learning_rate(settings, 90, 100) < 0.03
    assert learning_rate(settings, 90, 100, start=90) == 1.0
    assert learning_rate(settings, 95, 100, start=90) == pytest.approx(0.5)
    assert learning_rate(settings, 100, 100, start=90) == pytest.approx(0.0)
    assert learning_rate(settings, 1, 100, start=1) == learning_rate(settings, 1, 100)  # the warm-up stays


@given(
    steps=st.integers(1, 200),
    warmup=st.integers(0, 250),
    final=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_every_step_has_a_rate_that_rises_in_the_warm_up_and_never_after(
    steps: int, warmup: int, final: float, schedule: str
) -> None:
    found = rates(steps, learning_rate=1e-4, warmup_steps=warmup, schedule=schedule, final_fraction=final)
    assert all(0 < rate <= 1e-4 for rate in found)
    assert all(one < two for one, two in itertools.pairwise(found[:warmup]))
    assert all(one >= two for one, two in itertools.pairwise(found[max(0, warmup - 1) :]))
