"""Unequal ranks: which rows of a global batch each of them computes, and when their shares should change.

Shares say who computes, never what is trained on. Speeds are measured, in any unit of cost per second, and averaged so
long that noise alone changes nothing. Must not know tokens, models or clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from typing import Final

SHORTEST_SECONDS: Final = 1e-6  # below the resolution of any clock we read
RECENT_STEPS: Final = 8
FAR: Final = 4.0  # standard deviations that chance does not reach
SMALLEST_DEVIATION: Final = 0.02  # of a step's speed, relative: nothing real is steadier


def assign(costs: Sequence[float], shares: Sequence[float]) -> tuple[tuple[int, ...], ...]:
    """For each rank the indexes into `costs` of what it computes, ascending; a rank of a tiny share may get none.

    Longest first, each to the rank that would be through with it first: greedy scheduling on uniform machines. The
    same arguments give the same answer everywhere; ties go to the lower index and the lower rank.
    """
    takers = [rank for rank, share in enumerate(shares) if share > 0]
    if not takers:
        raise ValueError(f"no share is above 0: {tuple(shares)}")
    loads = [0.0] * len(shares)
    given: list[list[int]] = [[] for _ in shares]
    for at in sorted(range(len(costs)), key=lambda at: (-costs[at], at)):
        rank = min(takers, key=lambda rank: ((loads[rank] + costs[at]) / shares[rank], rank))
        loads[rank] += costs[at]
        given[rank].append(at)
    return tuple(tuple(sorted(indexes)) for indexes in given)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancePolicy:
    """When shares change. A change waits for `settle_steps` measured steps after the one before, has to bring
    `least_gain` of the step time and more than `doubt` standard errors of the speeds, and moves at most
    `largest_change` of the work.
    """

    memory_steps: int = 100  # so many steps ago, a measurement counts 1/e
    settle_steps: int = 8
    least_gain: float = 0.02
    doubt: float = 2.5
    largest_change: float = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a rank is: mean and variance of log(cost per second) over `steps` steps, the older ones weighing less.

    `recent` is the mean of the last few. Where it leaves the long one by more than chance would have it, the rank has
    become faster or slower (heat, another program), and what was before is forgotten.
    """

    mean: float = 0.0
    recent: float = 0.0
    variance: float = 0.0
    steps: int = 0

    def after(self, cost: float, seconds: float, memory_steps: int) -> Pace:
        """With one more step. One that is far off (a pause, a disk) counts as `FAR` deviations."""
        found = log(cost / max(seconds, SHORTEST_SECONDS))
        deviation = sqrt(max(self.variance, SMALLEST_DEVIATION**2))
        if self.steps >= RECENT_STEPS:
            found = min(max(found, self.mean - FAR * deviation), self.mean + FAR * deviation)
        weight = max(1 / (self.steps + 1), 1 / memory_steps)
        off = found - self.mean
        mean = self.mean + weight * off
        recent = self.recent + max(weight, 1 / RECENT_STEPS) * (found - self.recent)
        variance = (1 - weight) * (self.variance + weight * off * off)
        if self.steps > 2 * RECENT_STEPS and abs(recent - mean) > FAR * deviation / sqrt(2 * RECENT_STEPS - 1):
            return Pace(mean=recent, recent=recent, variance=variance, steps=RECENT_STEPS)
        return Pace(mean=mean, recent=recent, variance=variance, steps=self.steps + 1)

    def standard_error(self, memory_steps: int) -> float:
        """Of `mean`: a relative error of the speed."""
        return sqrt(self.variance / max(1, min(self.steps, 2 * memory_steps) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The shares in use, each rank's pace, and for how many measured steps these shares have been in use."""

    shares: tuple[float, ...]
    paces: tuple[Pace, ...]
    steps: int = 0

    def after(self, costs: Sequence[float], seconds: Sequence[float], policy: BalancePolicy) -> Balance:
        """With a step in which rank r computed `costs[r]` in `seconds[r]`; a rank without rows was not measured.

        Leave out a generation's first step, in which kernels are compiled.
        """
        paces = tuple(
            pace.after(cost, time, policy.memory_steps) if cost > 0 else pace
            for pace, cost, time in zip(self.paces, costs, seconds, strict=True)
        )
        return replace(self, paces=paces, steps=self.steps + 1)

    def with_shares(self, shares: tuple[float, ...]) -> Balance:
        """From now on."""
        return replace(self, shares=shares, steps=0)


def begin_balance(shares: Sequence[float]) -> Balance:
    """Nothing is measured yet."""
    return Balance(shares=tuple(shares), paces=(Pace(),) * len(shares))


def rebalance(balance: Balance, policy: BalancePolicy) -> tuple[tuple[float, ...] | None, str]:
    """Better shares, or None, and why. They move straight towards shares in proportion to the speeds."""
    if balance.steps < policy.settle_steps:
        return None, f"{balance.steps} of {policy.settle_steps} steps measured with these shares"
    unmeasured = [str(rank) for rank, pace in enumerate(balance.paces) if pace.steps < policy.settle_steps]
    if unmeasured:
        return None, f"too little is known of rank {', '.join(unmeasured)}"
    speeds = [exp(pace.mean) for pace in balance.paces]
    ideal = [speed / sum(speeds) for speed in speeds]
    furthest = max(abs(wanted - share) for wanted, share in zip(ideal, balance.shares, strict=True))
    part = min(1.0, policy.largest_change / furthest) if furthest else 0.0
    shares = tuple(share + part * (wanted - share) for wanted, share in zip(ideal, balance.shares, strict=True))
    gain = 1 - _step_time(shares, speeds) / _step_time(balance.shares, speeds)
    error = max(pace.standard_error(policy.memory_steps) for pace in balance.paces)
    needed = max(policy.least_gain, policy.doubt * error)
    if gain < needed:
        return None, f"a step would be {gain:.1%} shorter, less than {needed:.1%}"
    return shares, f"a step gets {gain:.1%} shorter at speeds {' : '.join(f'{share:.3f}' for share in ideal)}"


def _step_time(shares: Sequence[float], speeds: Sequence[float]) -> float:
    """Of a step of cost 1: that of the rank which is through last."""
    return max(share / speed for share, speed in zip(shares, speeds, strict=True))
