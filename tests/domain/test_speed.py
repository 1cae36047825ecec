"""A node's speed follows its results."""

from __future__ import annotations

import pytest

from realign_cluster.domain.speed import RunningSpeed


def test_a_prior_is_replaced_by_the_first_result() -> None:
    speed = RunningSpeed(1000.0, measured=False)
    assert not speed.measured
    speed.add(cost=50.0, compute_seconds=0.5)
    assert (speed.cost_per_second, speed.measured, speed.claimed) == (pytest.approx(100.0), True, 1000.0)


def test_a_false_calibration_is_outweighed_within_seconds_of_compute() -> None:
    speed = RunningSpeed(1000.0, measured=True)
    for _ in range(20):
        speed.add(cost=50.0, compute_seconds=0.5)
    assert speed.cost_per_second == pytest.approx(100.0, rel=0.5)
    for _ in range(80):
        speed.add(cost=50.0, compute_seconds=0.5)
    assert speed.cost_per_second == pytest.approx(100.0, rel=0.02)


def test_it_follows_a_node_that_throttles() -> None:
    speed = RunningSpeed(100.0, measured=True)
    for _ in range(100):
        speed.add(cost=100.0, compute_seconds=1.0)
    for _ in range(15):
        speed.add(cost=100.0, compute_seconds=2.0)
    assert speed.cost_per_second == pytest.approx(50.0, rel=0.06)


def test_many_short_results_weigh_as_one_long() -> None:
    short, long = RunningSpeed(100.0, measured=True), RunningSpeed(100.0, measured=True)
    for _ in range(1000):
        short.add(cost=0.05, compute_seconds=0.001)
    long.add(cost=50.0, compute_seconds=1.0)
    assert short.cost_per_second == pytest.approx(long.cost_per_second, rel=0.05)


def test_a_clock_too_coarse_does_not_divide_by_zero() -> None:
    speed = RunningSpeed(100.0, measured=False)
    speed.add(cost=1.0, compute_seconds=0.0)
    assert speed.cost_per_second == pytest.approx(1e6)


@pytest.mark.parametrize("claimed", [0.0, -1.0, float("nan")])
def test_a_speed_is_above_zero(claimed: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RunningSpeed(claimed, measured=True)
