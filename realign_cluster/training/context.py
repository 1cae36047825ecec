"""What a rank has once it has joined: passed whole to what trains and to what measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from realign_cluster.domain.rank_report import RankReport
from realign_cluster.domain.shares import assign
from realign_cluster.domain.world import WorldPlan
from realign_cluster.training.examples import Examples, TrainingSet
from realign_cluster.training.orders import Mailbox, Orders
from realign_cluster.training.parallel.base import Strategy
from realign_cluster.training.setup import LoadedModel
from realign_cluster.training.watchdog import Watchdog


class Division:
    """Which of some rows this rank computes: all of them where the model is in parts, else by the shares in force."""

    def __init__(self, world: WorldPlan, rank: int) -> None:
        self.together = world.parallel in ("tensor", "pipeline")
        self.version = 0
        self._shares = world.shares
        self._rank = rank

    def use(self, version: int, shares: tuple[float, ...]) -> None:
        self.version, self._shares = version, shares

    def own(self, examples: Examples, rows: Sequence[int]) -> list[int]:
        if self.together:
            return list(rows)
        costs = [int(examples.lengths[row]) for row in rows]
        return [rows[at] for at in assign(costs, self._shares)[self._rank]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankContext:
    """`config` is what all ranks of this generation have in common."""

    orders: Orders
    model: LoadedModel
    data: TrainingSet
    strategy: Strategy
    group: mx.distributed.Group | None
    division: Division
    mailbox: Mailbox
    say: Callable[[RankReport], None]
    watch: Watchdog
    config: str

    @property
    def replicas(self) -> mx.distributed.Group | None:
        """Ranks that each hold all of the model; None: there are no others, or they hold parts of it."""
        return self.group if self.orders.spec.world.parallel == "data" else None

    def all_sum(self, value: mx.array) -> mx.array:
        """Over ranks that each computed their own rows; what all computed together is not added up."""
        if self.group is None or self.division.together:
            return value
        return mx.distributed.all_sum(value, group=self.group, stream=mx.cpu)

    def of_first(self, number: int) -> int:
        """Rank 0's, on all ranks."""
        if self.group is None:
            return number
        own = mx.array(number if self.orders.spec.rank == 0 else 0, dtype=mx.int32)
        return int(mx.distributed.all_sum(own, group=self.group, stream=mx.cpu))

    def meet(self) -> None:
        """Returns once all ranks have come here."""
        if self.group is not None:
            mx.eval(mx.distributed.all_sum(mx.array(0), group=self.group, stream=mx.cpu))
