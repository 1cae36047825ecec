"""How fast a node really is: cost per second of compute, from its results.

Knows no clock and no node: `RunningSpeed` is one number that starts as a calibration (or a prior) and becomes a
measurement.
"""

from __future__ import annotations

from math import exp

SHORTEST_SECONDS = 1e-6  # below the resolution of any clock we read; keeps a division finite


class RunningSpeed:
    """Exponentially weighted cost / seconds, weighted by seconds: a thousand tiny units count as much as one long one.

    `memory_seconds` of compute ago, a result counts 1/e. A calibration counts as `calibration_seconds` of compute, so
    that a false one is outweighed within a few leases; a prior counts nothing and is replaced by the first result.
    """

    __slots__ = ("_cost", "_memory_seconds", "_seconds", "claimed", "cost_per_second", "measured")

    def __init__(
        self, cost_per_second: float, measured: bool, memory_seconds: float = 10.0, calibration_seconds: float = 1.0
    ) -> None:
        if not cost_per_second > 0:
            raise ValueError(f"cost_per_second must be above 0, not {cost_per_second}")
        self.claimed = cost_per_second
        self.cost_per_second = cost_per_second
        self.measured = measured
        self._memory_seconds = memory_seconds
        self._seconds = calibration_seconds if measured else 0.0
        self._cost = cost_per_second * self._seconds

    def add(self, cost: float, compute_seconds: float) -> None:
        """A unit of `cost` took `compute_seconds`."""
        seconds = max(compute_seconds, SHORTEST_SECONDS)
        kept = exp(-seconds / self._memory_seconds)
        self._cost = self._cost * kept + cost
        self._seconds = self._seconds * kept + seconds
        self.cost_per_second = self._cost / self._seconds
        self.measured = True
