"""The schedule is near the best there is on unequal, throttling nodes, and wastes next to nothing (facts.md,
Scheduling).
"""

from __future__ import annotations

from statistics import mean
from typing import Any

import pytest

from .efficiency import Efficiency, area, best_time, measure, unequal
from .world import World

SEEDS = range(8)


def measured(**options: Any) -> list[Efficiency]:
    return [measure(unequal(seed, **options)) for seed in SEEDS]


@pytest.mark.parametrize(
    ("options", "at_least"),
    [
        pytest.param({"seconds": 30.0}, 0.95, id="30 s"),
        pytest.param({"seconds": 120.0}, 0.985, id="120 s"),
        pytest.param({"seconds": 120.0, "death": True}, 0.975, id="a death at 95 %"),
        pytest.param({"seconds": 120.0, "claims": 4.0}, 0.98, id="a calibration four times too high"),
        pytest.param({"seconds": 120.0, "claims": 0.25}, 0.98, id="a calibration four times too low"),
        pytest.param({"seconds": 120.0, "units_per_second": 2.0}, 0.975, id="coarse units"),
    ],
)
def test_efficiency(options: dict[str, Any], at_least: float) -> None:
    runs = measured(**options)
    assert mean(run.value for run in runs) >= at_least
    assert max(run.value for run in runs) <= 1.0
    assert mean(run.duplicated for run in runs) <= 0.0025


def test_the_best_time_is_where_the_speeds_cover_the_work() -> None:
    steps = ((0.0, 10.0), (5.0, 20.0))
    assert area(steps, 2.0, 6.0) == pytest.approx(3 * 10 + 20)
    assert best_time([(steps, 0.0, 1e9), (((0.0, 10.0),), 0.0, 5.0)], 160.0) == pytest.approx(8.0)


def test_shares_follow_a_false_calibration() -> None:
    """The fastest of five claims a quarter of its speed: its share of what is committed is that of its real speed all
    the same.
    """
    world = World(unequal(1, seconds=120.0, claims=0.25))
    world.run()
    assert world.coordinator is not None
    views = world.coordinator.scheduler.node_states()
    areas = {node.name: area(node.speeds, 0.0, world.clock.now) for node in world.script.nodes}
    assert views["n4"].claimed_cost_per_second == pytest.approx(200.0)
    for name, view in views.items():
        assert view.cost_share == pytest.approx(areas[name] / sum(areas.values()), abs=0.02)
