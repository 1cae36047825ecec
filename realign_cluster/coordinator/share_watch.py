"""Collects what every rank of a generation says of a step, and asks `domain.shares` whether the shares should
change.
"""

from __future__ import annotations

from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.rank_report import StepDone
from realign_cluster.domain.recovery_events import SharesMeasured
from realign_cluster.domain.shares import Balance, BalancePolicy, begin_balance, rebalance
from realign_cluster.domain.world import RankSpec


class ShareWatch:
    """One for a run; each generation begins anew. Only replicas have shares to change."""

    def __init__(self, policy: BalancePolicy | None = None, *, fixed: bool = False) -> None:
        self._policy = policy or BalancePolicy()
        self._fixed = fixed
        self._generation = 0
        self._ranks: tuple[str, ...] = ()
        self._balance: Balance | None = None
        self._first_step = 0
        self._version = 0
        self._waiting: dict[int, dict[str, StepDone]] = {}

    def begin(self, spec: RankSpec) -> None:
        """A rank of a generation is started. Said once for each of them."""
        if spec.generation == self._generation:
            return
        self._generation, self._ranks = spec.generation, spec.world.nodes
        self._first_step, self._version = spec.start_step + 1, 0
        self._waiting.clear()
        moves = spec.world.parallel == "data" and spec.world.size > 1 and not self._fixed
        self._balance = begin_balance(spec.world.shares) if moves else None

    def step(self, node: NodeName, generation: int, done: StepDone, now: float) -> SharesMeasured | None:
        if self._balance is None or generation != self._generation or done.step == self._first_step:
            return None
        waiting = self._waiting.setdefault(done.step, {})
        waiting[node] = done
        if len(waiting) < len(self._ranks):
            return None
        reports = [self._waiting[done.step][rank] for rank in self._ranks]
        del self._waiting[done.step]
        self._balance = self._balance.after(
            [report.own_tokens for report in reports], [report.compute_seconds for report in reports], self._policy
        )
        if any(report.shares_version != self._version for report in reports):
            return None  # the last change has not arrived everywhere
        shares, reason = rebalance(self._balance, self._policy)
        if shares is None:
            return None
        return SharesMeasured(at=now, generation=generation, shares=shares, reason=reason)

    def moved(self, version: int, shares: tuple[float, ...]) -> None:
        """The change was decided."""
        self._version = version
        if self._balance is not None:
            self._balance = self._balance.with_shares(shares)
