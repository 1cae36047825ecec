"""Keeps a training run going while ranks and nodes fail: one event in, commands with their reasons out.

Generations follow each other and never overlap: the next is started when every rank of the last is known to be dead.
Knows nodes, generations and parts of states. Knows no clock, no network, no files, no MLX: the caller stores the event,
calls `apply`, stores and carries out the commands. The same events give the same commands.

What the caller must keep: an event's `at` never falls; commands take effect after they are in the ledger; a Tick comes
at least every half second; after a crash a new Recovery is opened with the last memory that was remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.crew import Crew
from realign_cluster.domain.generation import Generation
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.inventory import Inventory
from realign_cluster.domain.keeping import Keeping
from realign_cluster.domain.launching import Launching, nodes_of
from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.run_memory import GoBack, Options, RunMemory
from realign_cluster.domain.running import RankReport, Running
from realign_cluster.domain.transfers import Transfers
from realign_cluster.domain.world import StatePart

_Out = list[c.Command]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    nodes: tuple[NodeName, ...]
    text: str


class Recovery:
    """One sitting of a run. Invariant: no StartRank while a rank of an older generation may be alive."""

    def __init__(self, policy: RecoveryPolicy | None = None) -> None:
        self.policy = policy or RecoveryPolicy()
        self.memory = RunMemory()
        self._options: Options | None = None
        self._now = 0.0
        self._crew = Crew()
        self._inventory = Inventory()
        self._transfers = Transfers(self._inventory)
        self._running = Running(self.policy, self._crew)
        self._keeping = Keeping(self.policy, self._inventory, self._transfers)
        self._launching = Launching(self.policy, self._crew, self._inventory, self._transfers)
        self._ending: c.Finish | None = None  # what it comes to once nothing lives any more
        self._finished = False
        self._stops_asked = 0
        # while nothing runs
        self._waiting_since = 0.0
        self._first_ready_at: float | None = None
        self._launched = False
        self._asked: tuple[NodeName, ...] | None = None  # Replan for these is not answered yet
        self._planned_for: tuple[NodeName, ...] = ()
        self._refusal: _Refusal | None = None
        self._noted = ""
        # trying again
        self._reached = 0  # the highest step done
        self._relaunches = 0  # in a row without a new step
        self._losses = 0

    @property
    def generation(self) -> Generation | None:
        """The one that runs, to look at."""
        return self._running.generation

    def apply(self, event: e.Event) -> tuple[c.Command, ...]:
        """What this event leads to. Its `at` may not fall below the last one's; if it does, it is taken to be equal."""
        self._now = max(self._now, event.at)
        if self._finished:
            return ()
        out: _Out = []
        self._take_in(event, out)
        if self._options is not None:
            self._go_on(self._options, out)
        return tuple(out)

    def _take_in(self, event: e.Event, out: _Out) -> None:
        match event:
            case e.Tick():
                self._running.look(self._now, out)
                self._keeping.look(self._now, out)
                for node, part in self._transfers.overdue(self._now, self.policy.transfer_seconds):
                    self._transfers.failed(node, part, self._now)
            case e.Opened():
                self._on_opened(event)
            case e.NodeReady():
                self._on_node_ready(event, out)
            case e.NodeLost():
                self._on_node_lost(event, out)
            case e.Replanned():
                self._on_replanned(event, out)
            case e.PartKept() | e.PartFetched():
                self._on_part(event, out)
            case e.FetchFailed():
                self._on_fetch_failed(event, out)
            case e.CheckpointStored():
                self._keeping.stored(event.parts)
            case e.StoreFailed():
                self._keeping.store_failed(event.reason, self._now, out)
            case e.KlMeasured():
                self._on_kl(event, out)
            case e.SharesMeasured():
                self._on_shares(event, out)
            case e.StopAsked():
                self._on_stop_asked(out)
            case e.Stalled():
                self._on_stalled(event.gap)
            case (
                e.RankLoaded() | e.RankJoined() | e.RankSection() | e.StepDone() | e.RankEnded() | e.RankFailed()
                | e.StartFailed() | e.RankExited()
            ):  # fmt: skip
                self._on_rank(event, out)
            case _:
                assert_never(event)

    # --- nodes and the parts they hold ------------------------------------------------------------------------------

    def _on_opened(self, event: e.Opened) -> None:
        if self._options is not None:
            raise ValueError("this run is open already: a new sitting needs a new Recovery")
        self._options = event.options
        self.memory = event.memory
        self._waiting_since = self._now
        for back in self.memory.go_backs:
            self._inventory.go_back(back)
        self._inventory.set(None, event.checkpoints)
        if self.memory.world is not None:
            self._running.assume(nodes_of(self.memory.world), self.memory.generation, self._now)

    def _on_node_ready(self, event: e.NodeReady, out: _Out) -> None:
        member = self._crew.ready(event.node, event.boot)
        if self._first_ready_at is None:
            self._first_ready_at = self._now
        self._running.node_ready(event, self._now, out)
        self._inventory.set(event.node, event.parts)
        self._transfers.say_again(event.node)
        generation = self._running.generation
        self._keeping.drop_old(generation, out)
        if generation is not None and event.node not in generation.ranks and member.usable:
            self._ask_for_larger_world(generation, event.node, out)

    def _on_node_lost(self, event: e.NodeLost, out: _Out) -> None:
        if not self._crew.is_present(event.node):
            return
        self._crew.lost(event.node, event.clean)
        self._inventory.forget(event.node)
        self._transfers.give_up(event.node)
        self._running.node_lost(event.node, event.reason, event.clean, self._now, out)

    def _on_part(self, event: e.PartKept | e.PartFetched, out: _Out) -> None:
        self._transfers.ended(event.node, event.part)
        if not self._crew.is_present(event.node):
            return
        self._inventory.add(event.node, event.part)
        if not self.memory.any_state and self._inventory.states():
            self._remember(replace(self.memory, any_state=True), out)
        generation = self._running.generation
        self._keeping.drop_old(generation, out)
        if generation is None or generation.ending:
            return
        self._keeping.copy_to_peers(generation, self._now, out)
        is_new = event.part.kind == "checkpoint" and event.part.generation == generation.number
        if is_new and generation.larger_world and not generation.stop_reason:
            self._running.ask_stop(generation.larger_world, None, out)

    def _on_fetch_failed(self, event: e.FetchFailed, out: _Out) -> None:
        where = event.source or "the run folder"
        text = f"{event.node} could not fetch {event.part.name} from {where}: {event.reason}"
        out.append(c.NoteLine(text=text, level="warning"))
        if event.corrupt:
            self._transfers.ended(event.node, event.part)
            self._drop(event.source, event.part, event.reason, out)
            return
        self._transfers.failed(event.node, event.part, self._now + self.policy.transfer_again_seconds)
        wanted = self._launching.plan is not None and event.node in self._planned_for
        if wanted and self._transfers.failures(event.node, event.part) >= self.policy.transfer_attempts:
            self._launching.cancel()
            self._transfers.forgive()
            self._strike(event.node, text, out)
            self._count_relaunch(text, False, out)

    def _drop(self, source: NodeName | None, part: StatePart, reason: str, out: _Out) -> None:
        self._inventory.remove(source, part)
        if source is not None and self._crew.is_present(source):
            out.append(c.DropParts(node=source, parts=(part,), reason=reason))

    # --- the generation that runs -----------------------------------------------------------------------------------

    def _on_rank(self, event: RankReport, out: _Out) -> None:
        generation = self._running.generation
        self._running.report(event, self._now, out)
        if generation is None or event.generation != generation.number:
            return
        if isinstance(event, e.StepDone) and generation.step > self._reached:
            self._reached = generation.step
            self._relaunches = self._losses = 0
            if generation.step - generation.start_step >= self.policy.forgiving_steps:
                self._crew.forgive(generation.ranks)
        elif isinstance(event, e.RankFailed) and event.code == e.STATE_CODE and generation.start is not None:
            generation.state_failed = True
            held = [part for part in generation.start.parts if self._inventory.holds(event.node, part)]
            self._launching.state_failed(event.node, generation.start, out)
            if held:
                out.append(c.DropParts(node=event.node, parts=tuple(held), reason=event.message))
            self._keeping.drop_old(generation, out)

    def _ask_for_larger_world(self, generation: Generation, node: NodeName, out: _Out) -> None:
        """Whether it pays is the planner's to say."""
        assert self._options is not None
        if self._options.reproducible or generation.ending or generation.stop_reason or generation.larger_world:
            return
        self._asked = self._crew.usable()
        out.append(c.Replan(nodes=self._asked, reason=f"{node} is there: would a world with it be better?"))

    def _on_replanned(self, event: e.Replanned, out: _Out) -> None:
        if self._asked != event.nodes:
            return
        self._asked = None
        generation = self._running.generation
        if generation is not None:
            joining = set(event.plan.nodes) - set(generation.ranks) if event.plan is not None else set()
            if joining and not generation.ending:
                names = ", ".join(sorted(joining))
                generation.larger_world = f"{names} joins after this checkpoint"
                out.append(c.NoteLine(text=f"{names} is there and joins after the next checkpoint"))
        elif event.plan is None:
            self._refusal = _Refusal(nodes=event.nodes, text=event.refusal)
        elif event.nodes == self._crew.usable():
            self._planned_for = event.nodes
            self._launching.begin(event.plan)

    def _on_shares(self, event: e.SharesMeasured, out: _Out) -> None:
        generation = self._running.generation
        if generation is None or generation.number != event.generation or generation.ending or generation.stop_reason:
            return
        if self._options is None or self._options.reproducible or generation.plan.parallel != "data":
            return
        generation.shares_version += 1
        out.append(
            c.ShiftShares(
                generation=generation.number,
                version=generation.shares_version,
                shares=event.shares,
                reason=event.reason,
            )
        )

    def _on_kl(self, event: e.KlMeasured, out: _Out) -> None:
        generation, options = self._running.generation, self._options
        if generation is None or generation.number != event.generation or generation.ending or options is None:
            return
        if options.kl_budget is None or event.kl <= options.kl_budget:
            if event.step > self.memory.within_budget_step:
                self._remember(replace(self.memory, within_budget_step=event.step), out)
            return
        over = f"KL {event.kl:.4f} after step {event.step} is over the budget of {options.kl_budget:g}"
        good = self.memory.within_budget_step
        if options.kl_action == "stop" or len(self.memory.go_backs) >= self.policy.softenings:
            self._end("failed", f"{over}; within budget: up to step {good}", out)
            return
        target = next((state.step for state in self._inventory.states() if state.step <= good), 0)
        go_back = GoBack(generation=generation.number, step=target)
        self._inventory.go_back(go_back)
        memory = replace(
            self.memory,
            learning_rate_factor=self.memory.learning_rate_factor / 2,
            beta_factor=self.memory.beta_factor * 2,
            go_backs=(*self.memory.go_backs, go_back),
            any_state=target > 0,
        )
        self._remember(memory, out)
        self._reached = target
        reason = f"{over}: back to step {target} with half the learning rate and twice the beta"
        out.append(c.NoteLine(text=reason, level="warning"))
        self._running.end_on_purpose(reason, self._now, out)
        self._keeping.drop_old(generation, out)

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _on_stop_asked(self, out: _Out) -> None:
        self._stops_asked += 1
        generation = self._running.generation
        if self._ending is None:
            self._ending = c.Finish(state="incomplete", reason="interrupted; the same command goes on from here")
        if generation is None:
            return
        if self._stops_asked == 1 and all(rank.joined for rank in generation.ranks.values()):
            limit = self.policy.limit("step", generation.slowest_step)
            self._running.ask_stop("interrupted", self._now + limit + self.policy.stop_seconds, out)
        else:
            self._running.end_on_purpose("interrupted", self._now, out)

    def _end(self, state: c.Outcome, reason: str, out: _Out) -> None:
        """No further generation; this one is killed, what is stored is stored."""
        if self._ending is None or self._ending.state == "incomplete":
            self._ending = c.Finish(state=state, reason=reason)
        if self._running.generation is not None:
            self._running.end_on_purpose(reason, self._now, out)

    def _on_stalled(self, gap: float) -> None:
        self._running.excuse(gap)
        self._waiting_since += gap
        if self._first_ready_at is not None:
            self._first_ready_at += gap

    # --- what next --------------------------------------------------------------------------------------------------

    def _go_on(self, options: Options, out: _Out) -> None:
        if self._running.fatal and (self._ending is None or self._ending.state != "failed"):
            self._end("failed", self._running.fatal, out)
        ended = self._running.conclude()
        if ended is not None:
            self._conclude(ended, out)
        self._store_new(options, out)
        if self._running.generation is None and not self._running.may_live:
            self._go_on_from_nothing(options, out)

    def _store_new(self, options: Options, out: _Out) -> None:
        """The last checkpoint only once all ranks agree that it is the last."""
        state = self._keeping.newest_to_store(before=options.steps)
        if state is not None and self.memory.complete_step is None:
            self._keeping.store(state, self._now, out, "a whole checkpoint")

    def _conclude(self, generation: Generation, out: _Out) -> None:
        """All its ranks are dead: what does that mean?"""
        self._waiting_since = self._now
        step = generation.complete_step
        if step is not None:
            if generation.disagreement():
                reason = f"the replicas ended with different weights: {generation.disagreement()}"
                self._end("failed", reason, out)
            else:
                self._remember(replace(self.memory, complete_step=step), out)
            return
        stopped = generation.stop_reason and not generation.failure
        if generation.planned or generation.state_failed or stopped or self._ending is not None:
            return
        reason = generation.failure or "its ranks ended before their time"
        if len(generation.culprits) == 1 and not generation.lost:
            (node,) = generation.culprits
            self._strike(node, reason, out)
        self._count_relaunch(reason, bool(generation.lost), out)

    def _strike(self, node: NodeName, reason: str, out: _Out) -> None:
        assert self._options is not None
        member = self._crew.member(node)
        member.strikes += 1
        others = [other for other in self._crew.usable() if other != node]
        if member.strikes < self.policy.strikes_to_set_aside or not others or member.indispensable:
            return
        if not self._options.reproducible:
            member.set_aside = f"its ranks ended {member.strikes} generations in a row, the last: {reason}"
            out.append(c.Quarantine(node=node, reason=member.set_aside))

    def _count_relaunch(self, reason: str, lost: bool, out: _Out) -> None:
        if lost:
            self._losses += 1
        else:
            self._relaunches += 1
        if self._relaunches > self.policy.relaunches or self._losses > self.policy.relaunches_after_losses:
            tries = self._relaunches + self._losses
            self._end("incomplete", f"{tries} generations in a row without a new step, the last: {reason}", out)

    def _go_on_from_nothing(self, options: Options, out: _Out) -> None:
        """Nothing lives: end, or find out who could go on, from which state."""
        if self.memory.complete_step is not None and self._stops_asked < 2 and self._ending is None:
            if not self._is_final_state_lost(self.memory.complete_step, out):
                return
            self._remember(replace(self.memory, complete_step=None), out)
        if self._ending is not None:
            if self._keeping.storing is None or self._stops_asked > 1:
                self._finish(self._ending, out)
            return
        if self._launching.plan is not None and self._crew.usable() != self._planned_for:
            self._launching.cancel()
        if self._launching.plan is None:
            self._plan(options, out)
        if self._launching.plan is not None:
            launched = self._launching.advance(self.memory, options, self._now, out)
            if isinstance(launched, Generation):
                self._start(launched, out)
            elif launched is not None:
                self._wait_for_state(launched.reason, out)

    def _start(self, generation: Generation, out: _Out) -> None:
        memory = next(command.memory for command in out if isinstance(command, c.Remember))
        self.memory = memory
        self._running.start(generation)
        self._launched = True
        self._refusal = None
        self._noted = ""

    def _is_final_state_lost(self, step: int, out: _Out) -> bool:
        """All ranks ended: the run is complete once its last checkpoint is in the run folder."""
        keeping = self._keeping
        if any(state.step == step and keeping.is_stored(state) for state in self._inventory.states()):
            self._finish(c.Finish(state="complete", reason=f"{step} steps are done"), out)
            return False
        if keeping.storing is not None:
            return False
        if keeping.store_failures >= self.policy.transfer_attempts:
            reason = f"the last checkpoint could not be stored: {keeping.last_failure}"
            self._finish(c.Finish(state="incomplete", reason=reason), out)
            return False
        state = keeping.checkpoint_of(step)
        if state is not None:
            keeping.store(state, self._now, out, "the last checkpoint")
            return False
        return self._is_patience_over(self._missing(self._options_()))

    def _options_(self) -> Options:
        assert self._options is not None
        return self._options

    def _missing(self, options: Options) -> list[NodeName]:
        world = nodes_of(self.memory.world) if self.memory.world is not None else ()
        wanted = world if self._launched else tuple(dict.fromkeys((*world, *options.nodes)))
        return self._crew.missing(wanted)

    def _is_patience_over(self, missing: list[NodeName]) -> bool:
        if not missing:
            return True
        if self._first_ready_at is None:
            return False
        first_time = self.memory.world is None
        patience = self.policy.arrival_seconds if first_time else self.policy.return_seconds
        return self._now >= max(self._waiting_since, self._first_ready_at) + patience

    def _plan(self, options: Options, out: _Out) -> None:
        usable = self._crew.usable()
        if options.reproducible and self.memory.world is not None:
            world = nodes_of(self.memory.world)
            missing = [node for node in world if node not in usable]
            if not missing:
                self._planned_for = usable
                self._launching.begin(self.memory.world)
            else:
                self._wait(f"{', '.join(missing)}: the same world is asked for", self.policy.same_world_seconds, out)
            return
        missing = self._missing(options)
        if not usable:
            self._wait("a node that can be used", self.policy.give_up_seconds, out)
        elif not self._is_patience_over(missing):
            self._note(f"waiting for {', '.join(missing)}", out)
        elif self._refusal is not None and self._refusal.nodes == usable:
            self._after_refusal(self._refusal, options, out)
        elif self._asked != usable:
            self._asked = usable
            out.append(c.Replan(nodes=usable, reason=f"{len(usable)} nodes are there"))

    def _after_refusal(self, refusal: _Refusal, options: Options, out: _Out) -> None:
        if back := self._crew.take_back():
            self._note(f"{', '.join(back)} is taken back, the others cannot go on alone: {refusal.text}", out)
            self._refusal = None
            return
        absent = self._crew.absent(tuple(dict.fromkeys((*options.nodes, *self.memory.nodes))))
        if not absent:
            self._finish(c.Finish(state="failed", reason=refusal.text), out)
            return
        self._wait(f"{', '.join(absent)}: without it {refusal.text}", self.policy.give_up_seconds, out)

    def _wait_for_state(self, reason: str, out: _Out) -> None:
        self._wait(reason, self.policy.give_up_seconds, out)

    def _wait(self, what: str, seconds: float, out: _Out) -> None:
        """For something without which nothing can be started."""
        if self._now - self._waiting_since >= seconds:
            reason = f"waited {seconds:.0f} s for {what}; the same command goes on from here"
            self._finish(c.Finish(state="incomplete", reason=reason), out)
        else:
            self._note(f"waiting for {what}", out)

    def _note(self, text: str, out: _Out) -> None:
        """Once, until something else is to be said."""
        if text != self._noted:
            self._noted = text
            out.append(c.NoteLine(text=text))

    def _remember(self, memory: RunMemory, out: _Out) -> None:
        self.memory = memory
        out.append(c.Remember(memory=memory))

    def _finish(self, finish: c.Finish, out: _Out) -> None:
        self._finished = True
        out.append(finish)
