"""How near the schedule comes to the best there is: T*/T over unequal, throttling nodes.

T* is the least time in which the nodes could have done the work, were it infinitely divisible and known in advance:
the sum of the integrals of their speeds covers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .script import Fault, NodeScript, Script
from .world import World, check


@dataclass(frozen=True, slots=True)
class Efficiency:
    value: float  # T*/T
    duplicated: float  # cost computed and not committed, begun units included, of all committed
    best_seconds: float
    seconds: float


def area(speeds: tuple[tuple[float, float], ...], start: float, end: float) -> float:
    """Cost that a node of these speeds computes between two times."""
    total = 0.0
    for index, (since, speed) in enumerate(speeds):
        until = speeds[index + 1][0] if index + 1 < len(speeds) else float("inf")
        total += max(0.0, min(end, until) - max(start, since)) * speed
    return total


def best_time(nodes: list[tuple[tuple[tuple[float, float], ...], float, float]], work: float) -> float:
    """T*, by bisection. Each node: speeds, when it is ready, when it dies."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        done = sum(area(speeds, ready, min(middle, dies)) for speeds, ready, dies in nodes)
        low, high = (low, middle) if done >= work else (middle, high)
    return high


def unequal(
    seed: int, seconds: float, claims: float = 1.0, units_per_second: float = 8.0, death: bool = False
) -> Script:
    """Five nodes of 1 : 2 : 3 : 5 : 8, of which three throttle and recover at times of the seed's choice.

    `claims`: the factor by which the fastest node's calibration is false. With `death` the third dies at 95 % of T*
    for good.
    """
    rng = Random(seed)
    speeds: list[tuple[tuple[float, float], ...]] = []
    for index, base in enumerate((100.0, 200.0, 300.0, 500.0, 800.0)):
        steps = [(0.0, base)]
        if index % 2 == 0:
            time = 0.0
            while (time := time + rng.uniform(0.1, 0.4) * seconds) < 2 * seconds:
                steps.append((time, base * rng.uniform(0.5, 1.0)))
        speeds.append(tuple(steps))
    work = sum(area(steps, 0.0, seconds) for steps in speeds)
    count = int(units_per_second * seconds)
    lengths = sorted((rng.lognormvariate(0.0, 0.5) for _ in range(count)), reverse=True)
    scale = work / sum(lengths)
    costs = {unit: length * scale for unit, length in enumerate(lengths)}
    faults: tuple[Fault, ...] = ()
    if death:
        faults = (Fault(0.95 * best_time([(steps, 0.0, 1e9) for steps in speeds], work), "kill node", "n2", 1e6),)
    nodes = tuple(
        NodeScript(
            name=f"n{index}",
            speeds=steps,
            claimed=steps[0][1] * (claims if index == 4 else 1.0),
            measured=True,
            joins_at=0.0,
            load_seconds=0.0,
        )
        for index, steps in enumerate(speeds)
    )
    return Script(
        seed=seed,
        nodes=nodes,
        units={unit: (unit,) for unit in costs},
        cost_of_row=costs,
        poison={},
        faults=faults,
        latency=0.002,
        spikes=0.0,
        repeats=0.0,
        resets=0.0,
    )


def measure(script: Script) -> Efficiency:
    """Runs it. Time counts from when the first node is ready: this is the warm efficiency."""
    world = World(script)
    world.run()
    check(world)
    first = next(event.at for event, _ in world.recorded if type(event).__name__ == "NodeReady")
    deaths = {fault.node: fault.at for fault in script.faults}
    work = sum(script.cost_of_row.values())
    lives = [(node.speeds, first, deaths.get(node.name, float("inf"))) for node in script.nodes]
    best = best_time(lives, work) - first
    seconds = world.clock.now - first
    computed = sum(node.computed_cost + node.cost_in_hand() for node in world.nodes)
    return Efficiency(value=best / seconds, duplicated=(computed - work) / work, best_seconds=best, seconds=seconds)
