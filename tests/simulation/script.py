"""What a seed stands for: nodes, units, poison, and the faults with their times. Prints as text, so that a failure
can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

POISONS = ("kill", "raise", "hang")


@dataclass(frozen=True, slots=True)
class NodeScript:
    name: str
    speeds: tuple[tuple[float, float], ...]  # (from second, cost per second)
    claimed: float  # what its calibration says
    measured: bool
    joins_at: float
    load_seconds: float
    breaks: float = 0.0  # probability that its worker dies on any unit
    garbles: float = 0.0  # probability that a result is invalid


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: str
    node: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.2f} s" if self.seconds else ""
        return f"{self.at:8.2f} s  {self.kind} {self.node}{lasting}"


@dataclass(frozen=True, slots=True)
class Script:
    seed: int
    nodes: tuple[NodeScript, ...]
    units: dict[int, tuple[int, ...]]
    cost_of_row: dict[int, float]
    poison: dict[int, str]  # row -> kind
    faults: tuple[Fault, ...]
    latency: float
    spikes: float  # probability of a delay of up to 2 s
    repeats: float  # probability that a message comes twice
    resets: float  # probability that a message breaks its connection and is lost with all that follows
    page: int = 4096  # units asked of the ledger at once

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {len(self.units)} units, {len(self.cost_of_row)} rows, "
            f"cost {sum(self.cost_of_row.values()):.0f}; latency {self.latency:.3f} s, "
            f"spikes {self.spikes:.3f}, repeats {self.repeats:.3f}, resets {self.resets:.4f}",
            *(f"  {node}" for node in self.nodes),
            *(f"  poison: row {row}: {kind}" for row, kind in self.poison.items()),
            *(f"  {fault}" for fault in self.faults),
        ]
        return "\n".join(lines)


def _cut(rng: Random, units: int, most_rows: int) -> tuple[dict[int, tuple[int, ...]], dict[int, float]]:
    """Units of neighbouring lengths, longest first, as the real cut makes them."""
    cut: dict[int, tuple[int, ...]] = {}
    costs: dict[int, float] = {}
    row = 0
    for unit in range(units):
        count = rng.randint(1, most_rows)
        cut[unit] = tuple(range(row, row + count))
        for one in cut[unit]:
            costs[one] = rng.uniform(0.5, 1.5) * (100.0 - 90.0 * unit / units) / count
        row += count
    return cut, costs


def make_script(seed: int) -> Script:
    """A small run with anything in it that can go wrong together.

    Two limits keep "exactly the poison is quarantined" true by definition: chance crashes and hangs spare units that
    are suspected (world), and a node that breaks whatever it computes comes with two others that stay (here).
    """
    rng = Random(seed)
    count = rng.choice((1, 2, 2, 3, 3, 4, 5))
    units, costs = _cut(rng, rng.choice((0, 1, 3, 10, 20, 40)), rng.choice((1, 4, 8)))
    bad = rng.random() < 0.12 and count >= 3
    nodes = []
    for index in range(count):
        speed = 100.0 * rng.choice((0.3, 0.6, 1.0, 1.0, 2.0, 4.0))
        speeds = [(0.0, speed)]
        while rng.random() < 0.3:
            speeds.append((speeds[-1][0] + rng.uniform(1, 15), speed * rng.uniform(0.3, 1.2)))
        nodes.append(
            NodeScript(
                name=f"n{index}",
                speeds=tuple(speeds),
                claimed=speed * rng.choice((1.0, 1.0, 1.0, 0.2, 5.0)),
                measured=rng.random() < 0.7,
                joins_at=rng.choice((0.0, 0.0, 0.01, rng.uniform(0, 8))),
                load_seconds=rng.uniform(0.1, 3.0),
                breaks=1.0 if bad and index == 0 and rng.random() < 0.6 else 0.0,
                garbles=rng.choice((0.9, 0.5)) if bad and index == 0 else rng.choice((0.0, 0.0, 0.0, 0.02)),
            )
        )
    rows = list(costs)
    poisoned = rng.sample(rows, min(len(rows), rng.choice((0, 0, 0, 1, 1, 2, 4))))
    faults: list[Fault] = []
    kinds = ["kill worker", "hang worker", "pause coordinator", "kill coordinator", "disk full", "drain"]
    if not bad:
        kinds += ["cut", "cut", "reset", "reset", "kill node", "leave"]
    for _ in range(rng.choice((0, 0, 1, 2, 4, 8))):
        kind = rng.choice(kinds)
        seconds = {
            "cut": rng.choice((0.5, 2.0, 5.0, 12.0)),
            "kill node": rng.uniform(0.5, 10),
            "leave": rng.uniform(0.5, 10),
            "pause coordinator": rng.uniform(0.3, 6),
            "kill coordinator": rng.choice((0.05, 0.5, 2.0, 5.0)),
            "disk full": rng.uniform(0.2, 5),
            "drain": rng.uniform(0.1, 5),
        }.get(kind, 0.0)
        on_node = kind in ("kill worker", "hang worker", "cut", "reset", "kill node", "leave")
        faults.append(Fault(rng.uniform(0, 20), kind, rng.choice(nodes).name if on_node else "", seconds))
    harsh = rng.random() < 0.5
    return Script(
        seed=seed,
        nodes=tuple(nodes),
        units=units,
        cost_of_row=costs,
        poison={row: rng.choice(POISONS) for row in sorted(poisoned)},
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        latency=rng.choice((0.0005, 0.005, 0.05)),
        spikes=0.01 if harsh and not bad else 0.0,
        repeats=0.05 if harsh else 0.0,
        resets=rng.choice((0.0, 0.002, 0.01)) if harsh and not bad else 0.0,
        page=rng.choice((4, 16, 4096)),
    )
