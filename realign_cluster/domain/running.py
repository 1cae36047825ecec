"""The ranks that live, or may: what they report, when they hang, how they are stopped, and when they are surely dead.

A rank is surely dead when its daemon said so, or when its node has been cut off for so long that the daemon there has
killed it. Whatever else is heard of is a leftover, and reaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.generation import WAITING, Generation, Rank
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.recovery_commands import AskStop, Go, KillRank, Quarantine
from realign_cluster.domain.sitting import Sitting

RankReport = (
    e.RankLoaded | e.RankJoined | e.RankSection | e.StepDone | e.RankEnded | e.RankFailed | e.StartFailed | e.RankExited
)


class Running:
    """At most one generation, and what is left of older ones."""

    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting
        self._fence_seconds = sitting.policy.lease_seconds + sitting.policy.fence_margin_seconds
        self.generation: Generation | None = None
        self._leftovers: dict[tuple[NodeName, int], Rank] = {}

    @property
    def may_live(self) -> bool:
        return any(not rank.gone for rank in self._all())

    def _all(self) -> Iterator[Rank]:
        yield from self._leftovers.values()
        if self.generation is not None:
            yield from self.generation.ranks.values()

    def assume(self, nodes: Iterable[NodeName], generation: int) -> None:
        """Ranks of a coordinator that is gone: unless their nodes say otherwise they live as long as its lease."""
        fenced_at = self._sitting.now + self._fence_seconds
        for node in nodes:
            self._leftovers[node, generation] = Rank(node=node, generation=generation, fenced_at=fenced_at)

    def start(self, generation: Generation) -> None:
        if self.may_live:
            raise AssertionError("a generation is started while ranks of an older one may live")
        self.generation = generation
        self._leftovers.clear()

    def conclude(self) -> Generation | None:
        """The generation, once all its ranks are dead."""
        generation = self.generation
        if generation is None or generation.living:
            return None
        self.generation = None
        return generation

    def node_ready(self, event: e.NodeReady) -> None:
        for rank in [rank for rank in self._all() if rank.node == event.node and not rank.gone]:
            awaited = rank.fenced_at is not None or rank.kill_asked_at is not None
            if awaited and rank.generation != event.generation:
                rank.gone = True  # its daemon says so, and nothing that was said before reaches it any more
            elif rank.fenced_at is not None:
                rank.fenced_at = None
                self._kill(rank, "its node was cut off")
            elif rank.kill_asked_at is not None:
                self._kill(rank, "it is not known to be dead")
            elif rank.generation == event.generation:
                self._say_again(rank)
            elif rank.ended is not None:
                self._kill(rank, "it has ended")
            else:
                self.fail(f"{rank.node} has no rank of generation {rank.generation} any more")
        if event.generation is not None and self._find(event.node, event.generation) is None:
            self._reap(event.node, event.generation)

    def node_lost(self, event: e.NodeLost) -> None:
        for rank in [rank for rank in self._all() if rank.node == event.node and not rank.gone]:
            rank.gone = event.clean
            rank.fenced_at = self._sitting.now + self._fence_seconds
        generation = self.generation
        if generation is not None and event.node in generation.ranks:
            generation.lost.append(event.node)
            if generation.ranks[event.node].ended is None:
                self.fail(f"{event.node} is lost: {event.reason}")

    def _say_again(self, rank: Rank) -> None:
        """The node's stream is new: what was said over the old one may not have come through."""
        generation = self.generation
        assert generation is not None
        if generation.went and not rank.joined:
            self._go(generation, f"{rank.node} may not have heard it")
        if generation.stop_reason:
            self._say_stop(generation)

    # --- reports

    def _find(self, node: NodeName, generation: int) -> Rank | None:
        """A rank that may live."""
        rank = self._leftovers.get((node, generation))
        if self.generation is not None and self.generation.number == generation and (rank is None or rank.gone):
            rank = self.generation.ranks.get(node)
        return None if rank is None or rank.gone else rank

    def report(self, event: RankReport) -> None:
        rank = self._find(event.node, event.generation)
        generation = self.generation
        if isinstance(event, e.RankExited) and event.wedged:
            self._needs_reboot(event.node, event.reason)
        if rank is None:
            if not isinstance(event, (e.RankExited, e.StartFailed)) and self._sitting.crew.is_present(event.node):
                self._reap(event.node, event.generation)
        elif generation is None or generation.ranks.get(rank.node) is not rank:
            rank.gone = isinstance(event, (e.RankExited, e.StartFailed))
        else:
            rank.progress_at = self._sitting.now
            self._take_in(event, rank, generation)

    def _take_in(self, event: RankReport, rank: Rank, generation: Generation) -> None:
        match event:
            case e.RankLoaded():
                rank.loaded, rank.config, rank.section = True, event.config, "wait"
                self._go_if_all_loaded(generation)
            case e.RankJoined():
                rank.joined = True
                self._step_follows(rank, generation)
            case e.RankSection():
                rank.section, rank.patience_seconds = event.section, event.patience_seconds
            case e.StepDone():  # the next one follows, unless it says otherwise
                rank.joined = True
                generation.step = max(generation.step, event.step)
                generation.slowest_step = max(generation.slowest_step, event.seconds)
                self._step_follows(rank, generation)
            case e.RankEnded():
                rank.ended = event
            case e.RankFailed():
                waited = event.code == e.HANG_CODE and rank.section in WAITING
                rank.blameless = waited or event.code in e.PEER_CODES or event.code == e.STATE_CODE
                if event.fatal and not rank.blameless:
                    self._sitting.end("failed", event.message)
                self.fail(f"the rank on {rank.node} failed: {event.message}", culprit=rank)
            case e.StartFailed():
                rank.gone = True
                culprit = rank if rank.kill_asked_at is None else None
                self.fail(f"{rank.node} could not start its rank: {event.reason}", culprit)
            case e.RankExited():
                rank.gone = True
                if rank.ended is None:
                    self.fail(f"the rank on {rank.node} exited: {event.reason}", None if event.asked else rank)

    def _step_follows(self, rank: Rank, generation: Generation) -> None:
        rank.section = "step"
        rank.patience_seconds = self._sitting.policy.sections.of("step", generation.slowest_step)

    def _needs_reboot(self, node: NodeName, why: str) -> None:
        member = self._sitting.crew.member(node)
        if not member.needs_reboot:
            member.needs_reboot = f"needs a reboot: {why}"
            self._sitting.do(Quarantine(node=node, reason=member.needs_reboot))

    def _reap(self, node: NodeName, generation: int) -> None:
        rank = self._leftovers[node, generation] = Rank(node=node, generation=generation)
        self._kill(rank, f"a leftover of generation {generation}")

    # --- going and stopping

    def _go_if_all_loaded(self, generation: Generation) -> None:
        ranks = generation.ranks.values()
        if generation.went or generation.ending or not all(rank.loaded for rank in ranks):
            return
        if len({rank.config for rank in ranks}) > 1:
            configs = ", ".join(f"{rank.node} {rank.config[:12]}" for rank in ranks)
            reason = f"the ranks do not mean the same run: {configs}"
            self._sitting.end("failed", reason)
            self.fail(reason)
            return
        generation.went = True
        for rank in ranks:
            rank.section, rank.progress_at = "join", self._sitting.now
            rank.patience_seconds = self._sitting.policy.sections.of("join")
        self._go(generation, "all ranks are loaded")

    def _go(self, generation: Generation, reason: str) -> None:
        self._sitting.do(Go(generation=generation.number, nodes=tuple(generation.ranks), reason=reason))

    def ask_stop(self, reason: str, until: float | None) -> None:
        """After a step, with a checkpoint; ranks that have not ended by `until` are killed."""
        generation = self.generation
        assert generation is not None
        generation.stop_reason, generation.stop_until = reason, until
        self._say_stop(generation)

    def _say_stop(self, generation: Generation) -> None:
        nodes = tuple(generation.ranks)
        self._sitting.do(AskStop(generation=generation.number, nodes=nodes, reason=generation.stop_reason))

    def fail(self, reason: str, culprit: Rank | None = None) -> None:
        """The generation cannot go on. The first reason counts; who failed by himself is noted until all are dead."""
        generation = self.generation
        assert generation is not None
        if culprit is not None and not culprit.blameless:
            generation.culprits.setdefault(culprit.node, reason)
        if not generation.ending:
            generation.failure, generation.ending_since = reason, self._sitting.now
            self._sitting.warn(f"generation {generation.number} cannot go on: {reason}")
            self._kill_all(generation, reason)

    def end_on_purpose(self, reason: str) -> None:
        """Nobody failed; it is killed all the same."""
        generation = self.generation
        if generation is not None and not generation.ending:
            generation.planned, generation.ending_since = True, self._sitting.now
            self._kill_all(generation, reason)

    def _kill_all(self, generation: Generation, reason: str) -> None:
        for rank in generation.living:
            if rank.fenced_at is None:
                self._kill(rank, reason)

    def _kill(self, rank: Rank, reason: str) -> None:
        rank.kill_said_at = self._sitting.now
        if rank.kill_asked_at is None:
            rank.kill_asked_at = rank.kill_said_at
        grace = self._sitting.policy.kill_grace_seconds
        kill = KillRank(node=rank.node, generation=rank.generation, grace_seconds=grace, reason=reason)
        self._sitting.do(kill)

    # --- time

    def look(self) -> None:
        now = self._sitting.now
        for rank in self._all():
            if not rank.gone:
                self._look_at(rank, now)
        generation = self.generation
        if generation is None or generation.ending:
            return
        for rank, seconds in generation.stalled(now, self._sitting.policy.sections):
            self.fail(f"the rank on {rank.node} made no progress in {rank.section} for {seconds:.1f} s", culprit=rank)
        if generation.stop_until is not None and now >= generation.stop_until:
            self.fail("it did not stop in time")

    def _look_at(self, rank: Rank, now: float) -> None:
        policy = self._sitting.policy
        if rank.fenced_at is not None:
            if now >= rank.fenced_at:
                rank.gone = True
                self._sitting.note(f"the rank of generation {rank.generation} on {rank.node} counts as dead")
        elif rank.kill_asked_at is not None and now - rank.kill_asked_at > policy.kill_patience_seconds:
            rank.gone = True
            self._needs_reboot(rank.node, f"its rank was not dead after {policy.kill_patience_seconds:.0f} s")
        elif rank.kill_asked_at is not None and now - rank.kill_said_at > policy.kill_again_seconds:
            self._kill(rank, "it is not known to be dead")
        elif rank.kill_asked_at is None and rank.ended and now - rank.progress_at > policy.kill_again_seconds:
            self._kill(rank, "it has ended and does not exit")

    def excuse(self, gap: float) -> None:
        """The coordinator was away: the time is nobody's fault."""
        for rank in self._all():
            rank.progress_at += gap
            rank.kill_said_at += gap
            if rank.kill_asked_at is not None:
                rank.kill_asked_at += gap
        if self.generation is not None and self.generation.stop_until is not None:
            self.generation.stop_until += gap
