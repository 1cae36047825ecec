"""Keeps a training run going while ranks and nodes fail: one event in, commands with their reasons out.

Generations follow each other and never overlap: the next is started when every rank of the last is known to be dead.
Knows nodes, generations and parts of states. Knows no clock, no network, no files, no MLX: the caller stores the event,
calls `apply`, stores and carries out the commands. The same events give the same commands.

What the caller must keep: an event's `at` never falls; commands take effect after they are in the ledger; a Tick comes
at least every half second; after a crash a new Recovery is opened with the last memory that was remembered.
"""

from __future__ import annotations

from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.generation import Generation
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.keeping import Keeping
from realign_cluster.domain.launching import nodes_of
from realign_cluster.domain.recovery_commands import Command, ShiftShares
from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.relaunch import Relaunch
from realign_cluster.domain.run_memory import GoBack
from realign_cluster.domain.running import RankReport, Running
from realign_cluster.domain.sitting import Sitting
from realign_cluster.domain.standing import go_back_step, is_better


class Recovery:
    """One sitting of a run. Made of its Opened, which is then the first event to be applied.

    Invariant: no StartRank while a rank of an older generation may be alive.
    """

    def __init__(self, opened: e.Opened, policy: RecoveryPolicy | None = None) -> None:
        self._sitting = sitting = Sitting(
            policy=policy or RecoveryPolicy(), options=opened.options, memory=opened.memory, now=opened.at
        )
        self._running = Running(sitting)
        self._keeping = Keeping(sitting)
        self._relaunch = Relaunch(sitting)
        self._stops_asked = 0
        for back in opened.memory.go_backs:
            sitting.inventory.go_back(back)
        sitting.inventory.set(None, opened.checkpoints)
        if opened.memory.world is not None:
            self._running.assume(nodes_of(opened.memory.world), opened.memory.generation)

    @property
    def generation(self) -> Generation | None:
        """The one that runs, to look at."""
        return self._running.generation

    @property
    def finished(self) -> bool:
        return self._sitting.finished

    def apply(self, event: e.Event) -> tuple[Command, ...]:
        """What this event leads to. Its `at` may not fall below the last one's; if it does, it is taken to be equal."""
        sitting = self._sitting
        if sitting.finished:
            return ()
        sitting.now = max(sitting.now, event.at)
        sitting.out = []
        self._take_in(event)
        self._go_on()
        return tuple(sitting.out)

    def _take_in(self, event: e.Event) -> None:
        match event:
            case e.Opened():
                pass
            case e.Tick():
                self._running.look()
                self._keeping.look()
                self._look_at_transfers()
            case e.NodeReady():
                self._on_node_ready(event)
            case e.NodeLost():
                self._on_node_lost(event)
            case e.Replanned():
                self._relaunch.replanned(event, self._running.generation)
            case e.PartKept() | e.PartFetched():
                self._on_part(event)
            case e.FetchFailed():
                self._on_fetch_failed(event)
            case e.CheckpointStored():
                self._keeping.stored(event.parts)
            case e.StoreFailed():
                self._keeping.store_failed(event.reason, event.corrupt)
            case e.LossMeasured():
                self._on_loss(event)
            case e.KlMeasured():
                self._on_kl(event)
            case e.SharesMeasured():
                self._on_shares(event)
            case e.StopAsked():
                self._on_stop_asked()
            case e.Stalled():
                self._running.excuse(event.gap)
                self._relaunch.excuse(event.gap)
            case _:
                self._on_rank(event)

    # --- nodes and what they hold

    def _on_node_ready(self, event: e.NodeReady) -> None:
        sitting, generation = self._sitting, self._running.generation
        member = sitting.crew.ready(event.node, event.boot)
        self._relaunch.node_ready()
        self._running.node_ready(event)
        self._keeping.listed(event.node, event.parts)
        sitting.transfers.say_again(event.node)
        if event.parts:
            self._note_holder(event.node)
        self._keeping.drop_old(generation)
        if generation is None or event.node in generation.ranks or not member.usable or sitting.options.reproducible:
            return
        if not (generation.ending or generation.stop_reason):
            self._relaunch.ask(f"{event.node} is there: is a world with it better?")

    def _on_node_lost(self, event: e.NodeLost) -> None:
        sitting = self._sitting
        was_present = sitting.crew.is_present(event.node)
        sitting.crew.lost(event.node, event.clean)
        if event.barred:
            sitting.crew.bar(event.node, event.reason)
        if was_present:
            sitting.inventory.forget(event.node)
            sitting.transfers.give_up(event.node)
            self._running.node_lost(event)
            self._relaunch.node_lost(event.node)

    def _on_part(self, event: e.PartKept | e.PartFetched) -> None:
        sitting, generation = self._sitting, self._running.generation
        awaited = isinstance(event, e.PartFetched) and sitting.transfers.ended(event.node, event.part)
        if not sitting.crew.is_present(event.node) or (self._is_stale(event) and not awaited):
            return
        sitting.inventory.add(event.node, event.part)
        self._note_holder(event.node)
        self._keeping.drop_old(generation)
        if generation is None or generation.ending:
            return
        self._keeping.copy_to_peer(generation)
        joining = [node for node in generation.joining if sitting.crew.member(node).usable]
        is_new = event.part.kind == "checkpoint" and event.part.generation == generation.number
        if is_new and joining and not generation.stop_reason:
            self._running.ask_stop(f"{', '.join(joining)} joins after this checkpoint", until=None)

    def _is_stale(self, event: e.PartKept | e.PartFetched) -> bool:
        """Said again after the stream was new, when it had long been replaced or found damaged."""
        inventory = self._sitting.inventory
        held = inventory.held(event.node, event.part.name)
        replaced = held is not None and held.generation > event.part.generation
        return replaced or inventory.is_damaged(event.node, event.part)

    def _note_holder(self, node: NodeName) -> None:
        """Before anything is decided that would be wrong if this were forgotten."""
        inventory, memory = self._sitting.inventory, self._sitting.memory
        known = memory.any_state and node in memory.nodes
        if not known and any(inventory.is_wanted(part) for part in inventory.parts_of(node)):
            self._sitting.remember(any_state=True, nodes=tuple(dict.fromkeys((*memory.nodes, node))))

    def _on_fetch_failed(self, event: e.FetchFailed) -> None:
        sitting = self._sitting
        reason = f"{event.node} did not get {event.part.name} from {event.source or 'the run folder'}: {event.reason}"
        sitting.warn(reason)
        if event.corrupt:
            sitting.transfers.ended(event.node, event.part)
            if event.source is None:
                sitting.inventory.distrust(None, event.part)
            else:
                self._keeping.drop_damaged(event.source, (event.part,), event.reason)
            return
        sitting.transfers.failed(event.node, event.part, sitting.now + sitting.policy.transfer_again_seconds)
        if sitting.transfers.failures(event.node, event.part) >= sitting.policy.transfer_attempts:
            self._relaunch.fetch_failed(event.node, reason)

    def _look_at_transfers(self) -> None:
        sitting = self._sitting
        for node, part in sitting.transfers.overdue(sitting.now, sitting.policy.transfer_seconds):
            sitting.transfers.failed(node, part, sitting.now)
            sitting.warn(f"nothing was heard of {part.name} on its way to {node}")

    # --- the generation that runs

    def _on_rank(self, event: RankReport) -> None:
        generation = self._running.generation
        self._running.report(event)
        if generation is None or event.generation != generation.number:
            return
        if isinstance(event, e.StepDone):
            self._relaunch.stepped(generation)
        elif isinstance(event, e.RankFailed) and event.code == e.STATE_CODE and generation.start is not None:
            generation.state_failed = True
            self._relaunch.could_not_load(event.node, generation)
            self._keeping.drop_damaged(event.node, generation.start.parts, event.message)
            self._keeping.drop_old(generation)

    def _on_shares(self, event: e.SharesMeasured) -> None:
        generation, sitting = self._running.generation, self._sitting
        if generation is None or generation.number != event.generation or generation.ending or generation.stop_reason:
            return
        if not sitting.options.reproducible:
            generation.shares_version += 1
            version = generation.shares_version
            number, shares = generation.number, event.shares
            sitting.do(ShiftShares(generation=number, version=version, shares=shares, reason=event.reason))

    def _on_loss(self, event: e.LossMeasured) -> None:
        generation, memory = self._running.generation, self._sitting.memory
        if generation is None or generation.number != event.generation or generation.ending or event.step == 0:
            return
        if is_better(event.loss, memory.best_loss):
            self._sitting.remember(best_step=event.step, best_loss=event.loss)

    def _on_kl(self, event: e.KlMeasured) -> None:
        generation, sitting = self._running.generation, self._sitting
        memory, budget = sitting.memory, sitting.options.kl_budget
        if generation is None or generation.number != event.generation or generation.ending or budget is None:
            return
        if event.kl <= budget:
            sitting.remember(within_budget_step=max(memory.within_budget_step, event.step))
            return
        over = f"KL {event.kl:.4f} after step {event.step} is over the budget of {budget:g}"
        good = memory.within_budget_step
        if sitting.options.kl_action == "stop" or len(memory.go_backs) >= sitting.policy.softenings:
            reason = f"{over}; it was within up to step {good}"
            sitting.end("failed", reason)
            self._running.end_on_purpose(reason)
            return
        target = go_back_step((state.step for state in sitting.inventory.states()), good) or 0
        self._go_back(GoBack(generation=generation.number, step=target), over)

    def _go_back(self, back: GoBack, over: str) -> None:
        """Softened: half the learning rate, twice the beta, and what came after `back.step` never was."""
        sitting, memory = self._sitting, self._sitting.memory
        sitting.inventory.go_back(back)
        sitting.remember(
            learning_rate_factor=memory.learning_rate_factor / 2,
            beta_factor=memory.beta_factor * 2,
            go_backs=(*memory.go_backs, back),
            within_budget_step=back.step,
            **({"best_step": 0, "best_loss": None} if memory.best_step > back.step else {}),
            any_state=back.step > 0,
        )
        reason = f"{over}: back to step {back.step} with half the learning rate and twice the beta"
        sitting.warn(reason)
        self._relaunch.went_back(back.step)
        self._running.end_on_purpose(reason)
        self._keeping.drop_old(self._running.generation)

    def _on_stop_asked(self) -> None:
        """Gracefully the first time, if there is anything to keep."""
        self._stops_asked += 1
        sitting, generation = self._sitting, self._running.generation
        sitting.end("incomplete", "interrupted; the same command goes on from here")
        if generation is None:
            return
        if self._stops_asked == 1 and not generation.ending and generation.step > generation.start_step:
            limit = sitting.policy.sections.of("step", generation.slowest_step) + sitting.policy.stop_seconds
            self._running.ask_stop("interrupted", until=sitting.now + limit)
        else:
            self._running.end_on_purpose("interrupted")

    # --- what next

    def _go_on(self) -> None:
        sitting = self._sitting
        ended = self._running.conclude()
        if ended is not None:
            sitting.note(f"generation {ended.number} is over after step {ended.last_step}")
            self._conclude(ended)
        if sitting.memory.complete_step is None:
            self._keeping.store_next()
        if self._running.generation is not None or self._running.may_live:
            return
        if sitting.memory.complete_step is not None and self._stops_asked < 2 and not self._is_last_state_lost():
            return
        if sitting.ending is None:
            generation = self._relaunch.advance()
            if generation is not None:
                self._running.start(generation)
        elif self._keeping.storing is None or self._stops_asked > 1:
            sitting.finish(sitting.ending.state, sitting.ending.reason)

    def _conclude(self, generation: Generation) -> None:
        """All its ranks are dead: what does that mean?"""
        self._relaunch.concluded(generation)
        step = generation.complete_step
        if step is None:
            self._relaunch.fell_short(generation)
        elif disagreement := generation.disagreement():
            self._sitting.end("failed", f"the replicas ended with different weights: {disagreement}")
        else:
            self._sitting.remember(complete_step=step)

    def _is_last_state_lost(self) -> bool:
        """All ranks ended: the run is complete once its last checkpoint is in the run folder."""
        sitting, keeping, step = self._sitting, self._keeping, self._sitting.memory.complete_step
        assert step is not None
        if keeping.is_stored(step) and keeping.storing is None and not keeping.store_best():
            sitting.finish("complete", f"all is done after step {step}")
        elif keeping.is_stored(step):
            pass  # the best one is on its way
        elif keeping.storing is None and keeping.failures >= sitting.policy.transfer_attempts:
            sitting.finish("incomplete", f"the last checkpoint could not be stored: {keeping.last_failure}")
        elif keeping.storing is None and not keeping.store_last(step) and self._relaunch.is_patience_over():
            sitting.warn("the last checkpoint is lost: its steps are done again")
            sitting.remember(complete_step=None)
            self._relaunch.last_state_lost()
            return True
        return False
