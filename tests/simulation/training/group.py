"""The ranks of one generation as MLX's group joins them: they step together or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.section_limits import SectionName
from realign_cluster.domain.world import RankSpec, StateKind, StatePart

from .judge import branch_of

if TYPE_CHECKING:
    from .node import Rank
    from .world import World


class Group:
    def __init__(self, world: World, spec: RankSpec) -> None:
        self.world = world
        self.spec = spec
        self.number = spec.generation
        self.size = spec.world.size
        self.step = spec.start_step
        self.branch = branch_of(spec)
        self.ranks: list[Rank] = []
        self.joined = False
        self.broken = False

    def join(self, rank: Rank) -> None:
        self.ranks.append(rank)
        if len(self.ranks) == self.size and not self.broken:
            self.after(0.1, self.begin)

    def member_died(self) -> None:
        """Neighbours notice, others block for ever in a collective."""
        if self.broken:
            return
        self.broken = True
        rng = self.world.rng
        for rank in self.ranks:
            if rank.alive:
                if rng.random() < 0.9:
                    self.world.clock.after(0.02 + rng.random() * 0.3, rank.fail_because_of_another)
                else:
                    rank.hung = True

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        self.world.clock.after(seconds, self._try, then)

    def _try(self, then: Callable[[], None]) -> None:
        """Collectives get through when all members take part."""
        if self.broken:
            return
        later = 0.0
        for rank in self.ranks:
            if not rank.alive or rank.hung:
                return
            apart = max(rank.node.cut_until, rank.node.unlinked_until) * (self.size > 1)
            later = max(later, rank.frozen_until, rank.node.frozen_until, apart)
        if later > self.world.clock.now:
            self.world.clock.at(later, self._try, then)
        else:
            then()

    def begin(self) -> None:
        self.joined = True
        for rank in self.ranks:
            rank.say(e.RankJoined)
        self.next()

    def next(self) -> None:
        script = self.world.script
        if self.step >= script.steps:
            self.enter("save", 0.3, lambda: self.end(complete=True))
        elif any(rank.stop for rank in self.ranks):
            self.enter("save", 0.3, lambda: self.end(complete=False))
        else:
            for rank in self.ranks:
                if self.world.rng.random() < rank.node.crashes * 0.3:
                    self.world.clock.after(script.step_seconds / 2, rank.die, "crashed in a step", False)
            self.after(script.step_seconds * (0.9 + 0.2 * self.world.rng.random()), self.stepped)

    def enter(self, section: SectionName, seconds: float, then: Callable[[], None]) -> None:
        patience = self.spec.limits.of(section)
        for rank in self.ranks:
            rank.say(e.RankSection, section=section, step=self.step, patience_seconds=patience)
        self.after(seconds, then)

    def stepped(self) -> None:
        script, world = self.world.script, self.world
        self.step += 1
        world.judge.stepped(self)
        if self.step == script.nan_at:
            for rank in self.ranks:
                rank.fail("nan", f"the loss of step {self.step} is no number")
            return
        for rank in self.ranks:
            rank.say(e.StepDone, step=self.step, seconds=script.step_seconds)
        if self.step % script.snapshot_every == 0:
            self.keep("snapshot")
        self.measure()

    def measure(self) -> None:
        script = self.world.script
        if script.evaluate_every and self.step % script.evaluate_every == 0:
            self.enter("evaluate", 0.4, self.evaluated)
        else:
            self.diverge()

    def evaluated(self) -> None:
        self.ranks[0].say(e.LossMeasured, step=self.step, loss=self.loss(self.step))
        self.diverge()

    def loss(self, step: int) -> float:
        """It gets better until half of the way, and worse from then on."""
        return abs(step - self.world.script.steps / 2)

    def is_best(self) -> bool:
        every = self.world.script.evaluate_every
        steps = range(every, self.step + 1, every) if every else ()
        return bool(steps) and min(steps, key=self.loss) == self.step

    def diverge(self) -> None:
        script = self.world.script
        if script.kl_every and self.step % script.kl_every == 0:
            self.enter("generate", 0.4, self.diverged)
        else:
            self.checkpoint()

    def diverged(self) -> None:
        over = self.world.script.kl_over
        limit = over[self.branch] if self.branch < len(over) else self.world.script.steps + 1
        self.ranks[0].say(e.KlMeasured, step=self.step, kl=0.2 if self.step >= limit else 0.05)
        self.checkpoint()

    def checkpoint(self) -> None:
        due = self.step % self.world.script.checkpoint_every == 0 or self.is_best()
        if due and self.step < self.world.script.steps:
            self.keep("checkpoint")
        self.next()

    def keep(self, kind: StateKind) -> None:
        """Replicas each leave the whole as a snapshot; one of them writes the checkpoint."""
        parts = self.spec.world.parts
        for rank in self.ranks if parts > 1 or kind == "snapshot" else self.ranks[:1]:
            index = rank.spec.rank if parts > 1 else 0
            part = StatePart(
                kind=kind,
                step=self.step,
                part=index,
                parts=parts,
                layout=self.spec.world.layout,
                digest=f"{self.branch}.{self.step}.{index}",
                bytes=1,
                generation=self.number,
            )
            rank.keep(part, 0.05 + 0.2 * self.world.rng.random())

    def end(self, complete: bool) -> None:
        self.keep("checkpoint")
        self.after(0.3, lambda: self.ended(complete))

    def ended(self, complete: bool) -> None:
        self.world.judge.ended(self, complete)
        reason = "all steps are done" if complete else "as asked"
        for rank in self.ranks:
            shard = f".{rank.spec.rank}" if self.spec.world.parts > 1 else ""
            drift = "!" if rank.node.name == self.world.script.drifts else ""
            digest = f"{self.branch}.{self.step}{shard}{drift}"
            rank.say(e.RankEnded, step=self.step, complete=complete, reason=reason, digest=digest)
            self.world.clock.after(0.05 + 0.3 * self.world.rng.random(), rank.exit)
        self.broken = True  # nobody waits for the others any more
