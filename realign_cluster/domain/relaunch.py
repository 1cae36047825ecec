"""What is next when nothing runs: who is waited for, who is asked to plan, when to give up.

Nothing here looks at ranks: it is asked once all of them are dead.
"""

from __future__ import annotations

from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.generation import Generation
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.launching import Launching, nodes_of
from realign_cluster.domain.recovery_commands import Quarantine, Replan
from realign_cluster.domain.sitting import Sitting
from realign_cluster.domain.world import WorldPlan


class Relaunch:
    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting
        self._launching = Launching(sitting)
        self._waiting_since = sitting.now  # nothing runs, and nothing is about to
        self._lost_at = sitting.now  # when the last of the nodes that are waited for was lost
        self._blocked_since: float | None = None
        self._first_ready_at: float | None = None
        self._launched = False
        self._asked: tuple[NodeName, ...] = ()  # Replan for these is not answered yet
        self._planned_for: tuple[NodeName, ...] = ()
        self._refusal: e.Replanned | None = None
        self._reached = 0  # the highest step done
        self._relaunches = 0  # in a row without a new step
        self._losses = 0  # those of them where a node went
        self._together = 0  # those of them, in a row, where no single rank was to blame
        self._left_out: list[NodeName] = []  # nodes without which it was tried since
        self._with_fewer = False  # than the same world has, though that is asked for

    # --- nodes and time

    def node_ready(self) -> None:
        if self._first_ready_at is None:
            self._first_ready_at = self._sitting.now

    def node_lost(self, node: NodeName) -> None:
        if node in self._missing():
            self._lost_at = self._sitting.now

    def excuse(self, gap: float) -> None:
        self._waiting_since += gap
        self._lost_at += gap
        if self._blocked_since is not None:
            self._blocked_since += gap
        if self._first_ready_at is not None:
            self._first_ready_at += gap

    # --- a generation's course

    def stepped(self, generation: Generation) -> None:
        if generation.step > self._reached:
            self._reached = generation.step
            self._relaunches = self._losses = self._together = 0
            self._left_out.clear()
        if generation.step - generation.start_step >= self._sitting.policy.forgiving_steps:
            self._sitting.crew.forgive(generation.ranks)

    def went_back(self, step: int) -> None:
        self._reached = step

    def could_not_load(self, node: NodeName, generation: Generation) -> None:
        if generation.start is not None:
            self._launching.could_not_load(node, generation.start, generation.number)

    def concluded(self, generation: Generation) -> None:
        """All its ranks are dead."""
        self._waiting_since = self._sitting.now if generation.ending_since is None else generation.ending_since

    def fell_short(self, generation: Generation) -> None:
        """It did not come to the end of the run."""
        stopped = generation.stop_reason and not generation.failure
        if generation.planned or generation.state_failed or stopped or self._sitting.ending is not None:
            return
        reason = generation.failure or "its ranks ended before their time"
        if len(generation.culprits) == 1 and not generation.lost:
            self._strike(next(iter(generation.culprits)), reason)
        if not self._try_without_one(generation, reason):
            self._count(reason, bool(generation.lost))

    def last_state_lost(self) -> None:
        """All ranks came to the end, and left nothing of it."""
        self._count("the last checkpoint could not be kept", lost=False)

    def _strike(self, node: NodeName, reason: str) -> None:
        """It was this node alone that failed."""
        sitting = self._sitting
        member = sitting.crew.member(node)
        member.strikes += 1
        others = [other for other in sitting.crew.usable() if other != node]
        if member.strikes < sitting.policy.strikes_to_set_aside or not others or member.indispensable:
            return
        if not sitting.options.reproducible:
            member.set_aside = f"it failed {member.strikes} times in a row, the last: {reason}"
            sitting.do(Quarantine(node=node, reason=member.set_aside))

    def _try_without_one(self, generation: Generation, reason: str) -> bool:
        """Ranks that came to no step together, and no single one to blame: some link between them may be cut, though
        the coordinator hears all of their nodes. They are tried without one node after the other.
        """
        sitting = self._sitting
        together = len(generation.ranks) > 1 and not generation.lost and len(generation.culprits) != 1
        if not together or generation.step > generation.start_step or sitting.options.reproducible:
            self._together = 0
            return False
        self._together += 1
        if self._together < sitting.policy.tries_together:
            return False
        for node in self._left_out[-1:]:  # it was no better without
            sitting.crew.member(node).set_aside = ""
        members = [sitting.crew.member(node) for node in sitting.crew.usable()]
        suspects = [each.name for each in members if not (each.indispensable or each.name in self._left_out)]
        if len(members) < 2 or not suspects:
            return False
        suspect = min(reversed(suspects), key=lambda node: node in generation.ranks and generation.ranks[node].joined)
        self._left_out.append(suspect)
        why = f"{self._together} times ranks came to no step together, perhaps without it; the last: {reason}"
        sitting.crew.member(suspect).set_aside = why
        sitting.do(Quarantine(node=suspect, reason=why))
        return True

    def _count(self, reason: str, lost: bool) -> None:
        self._losses += lost
        self._relaunches += not lost
        policy = self._sitting.policy
        if self._relaunches > policy.relaunches or self._losses > policy.relaunches_after_losses:
            tries = self._relaunches + self._losses
            self._sitting.end("incomplete", f"{tries} tries in a row without a new step, the last: {reason}")

    def fetch_failed(self, node: NodeName, reason: str) -> None:
        """Too often to go on trying."""
        if self._launching.plan is not None and node in self._planned_for:
            self._launching.plan = None
            self._sitting.transfers.forgive()
            self._strike(node, reason)
            self._count(reason, lost=False)

    # --- plans

    def ask(self, reason: str) -> None:
        self._asked = self._sitting.crew.usable()
        self._sitting.do(Replan(nodes=self._asked, reason=reason))

    def replanned(self, event: e.Replanned, generation: Generation | None) -> None:
        if event.nodes != self._asked:
            return
        self._asked = ()
        if generation is not None:
            planned = nodes_of(event.plan) if event.plan is not None else ()
            joining = tuple(node for node in planned if node not in generation.ranks)
            if joining and not generation.ending:
                generation.joining = joining
                self._sitting.note(f"{', '.join(joining)} is there and joins after the next checkpoint")
        elif event.plan is None:
            self._refusal = event
        elif event.nodes == self._sitting.crew.usable():
            self._planned_for = event.nodes
            self._launching.plan = event.plan

    def advance(self) -> Generation | None:
        """A generation that has been started; None while that is not possible, or until the run has finished."""
        launching, sitting = self._launching, self._sitting
        if launching.plan is not None and sitting.crew.usable() != self._planned_for:
            lost = sitting.crew.absent(nodes_of(launching.plan))
            launching.plan = None
            self._waiting_since = sitting.now
            if lost:
                self._count(f"{', '.join(lost)} went before its rank could be started", lost=True)
                return None
        if launching.plan is None:
            self._plan()
        if launching.plan is None:
            return None
        generation = launching.advance()
        if launching.blocked:
            self._wait(launching.blocked, sitting.policy.give_up_seconds)
        else:
            self._blocked_since = None
        if generation is not None:
            self._launched, self._refusal = True, None
        return generation

    def _plan(self) -> None:
        sitting = self._sitting
        usable, world = sitting.crew.usable(), sitting.memory.world
        if world is not None and sitting.options.reproducible and not self._settles_for_fewer(world):
            missing = [node for node in nodes_of(world) if node not in usable]
            if barred := sitting.crew.barred(missing):
                self._give_up_on(barred)
            elif missing:
                self._wait(f"{', '.join(missing)}: the same world is asked for", self._same_world_seconds)
            else:
                self._planned_for, self._launching.plan = usable, world
        elif not usable and len(barred := sitting.crew.barred(self._expected())) == len(self._expected()):
            self._give_up_on(barred)
        elif not usable:
            self._wait("a node that can be used", sitting.policy.give_up_seconds)
        elif not self.is_patience_over():
            sitting.note(f"waiting for {', '.join(self._missing())}")
        elif self._refusal is not None and self._refusal.nodes == usable:
            self._refused(self._refusal.refusal)
        elif self._asked != usable:
            self.ask(f"{', '.join(usable)} can be used")

    @property
    def _same_world_seconds(self) -> float:
        asked = self._sitting.options.wait_seconds
        return asked if asked is not None else self._sitting.policy.same_world_seconds

    def _settles_for_fewer(self, world: WorldPlan) -> bool:
        """Some of the same world stayed away for too long, or will not come at all, and as many as are enough are
        there.
        """
        sitting, least = self._sitting, self._sitting.options.least_nodes
        missing = [node for node in nodes_of(world) if node not in sitting.crew.usable()]
        if not missing or least is None or len(sitting.crew.usable()) < least:
            self._with_fewer = False
        elif not self._with_fewer:
            waited = self._blocked_since is not None and sitting.now - self._blocked_since >= self._same_world_seconds
            if waited or len(sitting.crew.barred(missing)) == len(missing):
                self._with_fewer, self._blocked_since = True, None
                sitting.warn(
                    f"{', '.join(missing)} stayed away: it goes on without, and comes to the same only to "
                    "floating-point order"
                )
        return self._with_fewer

    def _missing(self) -> list[NodeName]:
        """In the first place all that are expected; later those that were there until now."""
        memory, options = self._sitting.memory, self._sitting.options
        world = nodes_of(memory.world) if memory.world is not None else ()
        return self._sitting.crew.missing(world if self._launched else dict.fromkeys((*world, *options.nodes)))

    def is_patience_over(self) -> bool:
        """Nobody is missing, or somebody was for too long. Nodes that come and go do not prolong it for ever."""
        if not self._missing():
            return True
        if self._first_ready_at is None:
            return False
        policy, first_time = self._sitting.policy, self._sitting.memory.world is None
        patience = policy.arrival_seconds if first_time else policy.return_seconds
        since = max(self._waiting_since, self._first_ready_at)
        return self._sitting.now >= min(max(since, self._lost_at) + patience, since + policy.give_up_seconds)

    def _refused(self, refusal: str) -> None:
        crew = self._sitting.crew
        if back := crew.take_back():
            self._sitting.note(f"{', '.join(back)} is taken back, the others cannot go on alone: {refusal}")
            self._refusal = None
            return
        unusable = [node for node in self._expected() if node not in crew.usable()]
        if unusable and len(barred := crew.barred(unusable)) == len(unusable):
            self._give_up_on(barred)
        elif unusable:
            self._wait(f"{', '.join(unusable)}: without it {refusal}", self._sitting.policy.give_up_seconds)
        else:
            self._sitting.finish("failed", refusal)

    def _expected(self) -> tuple[NodeName, ...]:
        return tuple(dict.fromkeys((*self._sitting.options.nodes, *self._sitting.memory.nodes)))

    def _give_up_on(self, barred: dict[NodeName, str]) -> None:
        """What is lacking will not come in this sitting."""
        why = "; ".join(f"{node} takes no part: {reason}" for node, reason in barred.items())
        self._sitting.finish("incomplete", why)

    def _wait(self, what: str, seconds: float) -> None:
        """For something without which nothing can be started."""
        if self._blocked_since is None:
            self._blocked_since = self._sitting.now
        if self._sitting.now - self._blocked_since >= seconds:
            reason = f"waited {seconds:.0f} s for {what}; the same command goes on from here"
            self._sitting.finish("incomplete", reason)
        else:
            self._sitting.note(f"waiting for {what}")
