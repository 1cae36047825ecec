"""The ranks of one generation: how far each is, which of them hang, which one is to blame, and which still live.

State and its reading; what follows from it is decided in `recovery`. Time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.inventory import State
from realign_cluster.domain.recovery_events import RankEnded
from realign_cluster.domain.section_limits import SectionLimits, SectionName
from realign_cluster.domain.world import WorldPlan

WAITING: frozenset[str] = frozenset({"wait", "join", "reduce"})  # sections in which a rank waits for others


@dataclass(slots=True, kw_only=True)
class Rank:
    """A process that may be alive. `gone`: it certainly is not, so nothing of it can reach a later generation."""

    node: NodeName
    generation: int
    section: SectionName = "load"
    progress_at: float = 0.0
    patience_seconds: float = 0.0  # it is hung if there is nothing of it for longer
    loaded: bool = False
    joined: bool = False
    config: str = ""
    ended: RankEnded | None = None
    blameless: bool = False  # it said that it fails because of another rank, or of the state
    gone: bool = False
    fenced_at: float | None = None  # its node is cut off: by then the daemon there has killed it
    kill_asked_at: float | None = None
    kill_said_at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Generation:
    number: int
    plan: WorldPlan
    start: State | None  # None: from step 0
    ranks: dict[NodeName, Rank]  # in rank order
    went: bool = False  # told to join
    step: int = 0  # the highest that it did; 0 before
    slowest_step: float = 0.0
    shares_version: int = 0
    joining: tuple[NodeName, ...] = ()  # who takes part from the next checkpoint on
    stop_reason: str = ""  # asked to stop after a step
    stop_until: float | None = None  # and killed then
    failure: str = ""  # the first reason that it cannot go on
    ending_since: float | None = None
    planned: bool = False  # it was ended on purpose: nobody failed
    state_failed: bool = False  # what it was to start from could not be used
    lost: list[NodeName] = field(default_factory=list)
    culprits: dict[NodeName, str] = field(default_factory=dict)  # whose rank failed by itself, and how

    @property
    def start_step(self) -> int:
        return self.start.step if self.start else 0

    @property
    def last_step(self) -> int:
        return max(self.step, self.start_step)

    @property
    def ending(self) -> bool:
        return bool(self.failure) or self.planned

    @property
    def living(self) -> list[Rank]:
        return [rank for rank in self.ranks.values() if not rank.gone]

    @property
    def complete_step(self) -> int | None:
        """Where all ranks ended, having nothing left to do; None if they did not."""
        steps = {rank.ended.step if rank.ended and rank.ended.complete else None for rank in self.ranks.values()}
        return steps.pop() if len(steps) == 1 else None

    def disagreement(self) -> str:
        """Replicas must end with the same weights: who did not; "" if they did. Sharded ranks hold different ones."""
        ends = [rank.ended for rank in self.ranks.values() if rank.ended is not None]
        if self.plan.parts > 1 or len({end.digest for end in ends}) < 2:
            return ""
        return ", ".join(f"{end.node} {end.digest[:12]}" for end in ends)

    def stalled(self, now: float, limits: SectionLimits) -> list[tuple[Rank, float]]:
        """Ranks without progress for longer than they may be, with the seconds.

        Who waits for others may as long as one of these is busy. Where all only wait nobody is, and it is soon over. Of
        several, those that wait or join are left out: it is others who hang.
        """
        living = self.living
        busy = any(rank.section not in ("wait", "reduce") for rank in living)
        latest = max((rank.progress_at for rank in living), default=now)
        found = []
        for rank in living:
            waits = rank.section in ("wait", "reduce")
            if rank.kill_asked_at is not None or (rank.loaded and not self.went) or (waits and busy):
                continue
            silent = now - (latest if waits else rank.progress_at)
            patience = limits.of("step", self.slowest_step) if rank.section == "wait" else rank.patience_seconds
            if silent > patience:
                found.append((rank, silent))
        culprits = [(rank, silent) for rank, silent in found if rank.section not in WAITING]
        return culprits or found
