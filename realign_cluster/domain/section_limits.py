"""How long a rank may be without a sign of progress, section by section: for its own watchdog and the coordinator.

Signs come piece by piece: a micro-batch, a step, a file, a tensor. What a piece of computing may take is learned from
those before it; what reading, writing and waiting may take is given. No clock: times are passed in.
"""

from __future__ import annotations

from typing import Literal, assert_never

from realign_cluster.domain.job import Strict

SectionName = Literal["load", "wait", "join", "reference", "step", "reduce", "snapshot", "evaluate", "generate", "save"]


class SectionLimits(Strict):
    """Seconds. Recorded with a run, and part of every rank's orders."""

    least_seconds: float = 5.0  # for a piece of computing
    factor: float = 3.0  # times the slowest piece of its section
    first_piece_seconds: float = 600.0  # of each section of a generation: kernels are compiled
    load_seconds: float = 300.0  # a file or a block of the model, some rows
    write_seconds: float = 300.0  # a tensor, or the sync of all of a state
    join_seconds: float = 60.0
    wait_seconds: float = 3600.0  # for others; the coordinator sees who it is that is waited for

    def of(self, section: SectionName, slowest: float = 0.0, growth: float = 1.0) -> float:
        """`slowest` is the longest that a piece took, 0 before the first; `growth` how many times the work of any
        before it the next one is.
        """
        match section:
            case "step" | "reduce" | "evaluate" | "reference" | "generate":
                longest = self.factor * slowest * max(1.0, growth)
                return max(self.least_seconds, longest) if slowest else self.first_piece_seconds
            case "load":
                return self.load_seconds
            case "snapshot" | "save":
                return self.write_seconds
            case "join":
                return self.join_seconds
            case "wait":
                return self.wait_seconds
            case _:
                assert_never(section)


class Pace:
    """What the pieces of each section took so far. Work is counted in tokens; 0: not known."""

    def __init__(self, limits: SectionLimits) -> None:
        self._limits = limits
        self._slowest: dict[SectionName, float] = {}
        self._most: dict[SectionName, int] = {}

    def took(self, section: SectionName, seconds: float, work: int = 0) -> None:
        self._slowest[section] = max(self._slowest.get(section, 0.0), seconds)
        self._most[section] = max(self._most.get(section, 0), work)

    def patience(self, section: SectionName, work: int = 0) -> float:
        """Seconds for a piece of so much work."""
        learned: SectionName = "step" if section == "reduce" else section
        growth = work / most if (most := self._most.get(learned, 0)) else 1.0
        return self._limits.of(section, self._slowest.get(learned, 0.0), growth)
