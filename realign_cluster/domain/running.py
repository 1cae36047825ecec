"""The ranks that live, or may: what they report, when they hang, how they are stopped, and when they are surely dead.

A rank is surely dead when its daemon said so, or when its node has been cut off for so long that the daemon there has
killed it. Whatever else is heard of is a leftover, and reaped. Time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.crew import Crew
from realign_cluster.domain.generation import Generation, Rank
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.recovery_commands import AskStop, Command, Go, KillRank, NoteLine, Quarantine
from realign_cluster.domain.recovery_policy import RecoveryPolicy

_Out = list[Command]
RankReport = (
    e.RankLoaded | e.RankJoined | e.RankSection | e.StepDone | e.RankEnded | e.RankFailed | e.StartFailed | e.RankExited
)


class Running:
    """At most one generation, and what is left of older ones."""

    def __init__(self, policy: RecoveryPolicy, crew: Crew) -> None:
        self._policy = policy
        self._crew = crew
        self.generation: Generation | None = None
        self.fatal = ""  # why no other generation would fare better
        self._leftovers: dict[tuple[NodeName, int], Rank] = {}

    @property
    def may_live(self) -> bool:
        return any(not rank.gone for rank in self._all())

    def _all(self) -> Iterator[Rank]:
        yield from self._leftovers.values()
        if self.generation is not None:
            yield from self.generation.ranks.values()

    def assume(self, nodes: Iterable[NodeName], generation: int, now: float) -> None:
        """Ranks of a coordinator that is gone: unless their nodes say otherwise they live as long as its lease."""
        for node in nodes:
            rank = Rank(node=node, generation=generation)
            rank.fenced_at = now + self._policy.lease_seconds + self._policy.fence_margin_seconds
            self._leftovers[node, generation] = rank

    def start(self, generation: Generation) -> None:
        assert self.generation is None
        assert not self.may_live
        self.generation = generation
        self._leftovers.clear()

    def conclude(self) -> Generation | None:
        """The generation, once all its ranks are dead."""
        generation = self.generation
        if generation is None or generation.living:
            return None
        self.generation = None
        return generation

    # --- nodes

    def node_ready(self, event: e.NodeReady, now: float, out: _Out) -> None:
        for rank in [rank for rank in self._all() if rank.node == event.node and not rank.gone]:
            if rank.fenced_at is not None:
                rank.fenced_at = None
                self._kill(rank, "its node was cut off", now, out)
            elif rank.kill_asked_at is not None:
                self._kill(rank, "it is not known to be dead", now, out)
            elif rank.generation == event.generation:
                self._say_again(rank, out)
            elif rank.ended is None:
                self.fail(f"{rank.node} has no rank of generation {rank.generation} any more", now, out)
            else:
                self._kill(rank, "it has ended", now, out)
        if event.generation is not None and self._find(event.node, event.generation) is None:
            self._reap(event.node, event.generation, now, out)

    def node_lost(self, node: NodeName, reason: str, clean: bool, now: float, out: _Out) -> None:
        for rank in [rank for rank in self._all() if rank.node == node and not rank.gone]:
            rank.gone = clean
            rank.fenced_at = now + self._policy.lease_seconds + self._policy.fence_margin_seconds
        generation = self.generation
        if generation is not None and node in generation.ranks:
            generation.lost.append(node)
            if generation.ranks[node].ended is None:
                self.fail(f"{node} is lost: {reason}", now, out)

    def _say_again(self, rank: Rank, out: _Out) -> None:
        """The node's stream is new: what was said over the old one may not have come through."""
        generation = self.generation
        assert generation is not None
        if generation.went and not rank.joined:
            self._go(generation, f"{rank.node} may not have heard it", out)
        if generation.stop_reason:
            self._say_stop(generation, out)

    # --- reports

    def _find(self, node: NodeName, generation: int) -> Rank | None:
        """A rank that may live."""
        rank = self._leftovers.get((node, generation))
        if self.generation is not None and self.generation.number == generation and (rank is None or rank.gone):
            rank = self.generation.ranks.get(node)
        return None if rank is None or rank.gone else rank

    def report(self, event: RankReport, now: float, out: _Out) -> None:
        rank = self._find(event.node, event.generation)
        over = isinstance(event, (e.RankExited, e.StartFailed))
        if rank is None:
            if not over and self._crew.is_present(event.node):
                self._reap(event.node, event.generation, now, out)
            return
        generation = self.generation
        if generation is None or generation.ranks.get(rank.node) is not rank:
            rank.gone = over
            self._note_wedged(event, out)
            return
        rank.progress_at = now
        match event:
            case e.RankLoaded():
                rank.loaded, rank.config, rank.section = True, event.config, "wait"
            case e.RankJoined():
                rank.joined = True
            case e.RankSection():
                rank.section = event.section
            case e.StepDone():
                rank.joined = True
                generation.step = max(generation.step, event.step)
                generation.slowest_step = max(generation.slowest_step, event.seconds)
            case e.RankEnded():
                rank.ended = event
            case e.RankFailed():
                self._failed(rank, event, now, out)
            case e.StartFailed():
                rank.gone = True
                self.fail(f"{rank.node} could not start its rank: {event.reason}", now, out, culprit=rank)
            case e.RankExited():
                rank.gone = True
                self._note_wedged(event, out)
                if rank.ended is None:
                    culprit = None if event.asked else rank
                    self.fail(f"the rank on {rank.node} exited: {event.reason}", now, out, culprit)
        self._go_if_all_loaded(generation, now, out)

    def _failed(self, rank: Rank, event: e.RankFailed, now: float, out: _Out) -> None:
        rank.blameless = event.code in e.PEER_CODES or event.code == e.STATE_CODE
        if event.fatal and not rank.blameless:
            self.fatal = self.fatal or event.message
        self.fail(f"the rank on {rank.node} failed: {event.message}", now, out, culprit=rank)

    def _note_wedged(self, event: RankReport, out: _Out) -> None:
        if isinstance(event, e.RankExited) and event.wedged:
            self._needs_reboot(event.node, event.reason, out)

    def _needs_reboot(self, node: NodeName, why: str, out: _Out) -> None:
        reason = f"needs a reboot: {why}"
        self._crew.member(node).needs_reboot = reason
        out.append(Quarantine(node=node, reason=reason))

    def _reap(self, node: NodeName, generation: int, now: float, out: _Out) -> None:
        rank = self._leftovers.setdefault((node, generation), Rank(node=node, generation=generation))
        rank.gone = False
        self._kill(rank, f"a leftover of generation {generation}", now, out)

    # --- starting and stopping

    def _go_if_all_loaded(self, generation: Generation, now: float, out: _Out) -> None:
        if generation.went or generation.ending or not all(rank.loaded for rank in generation.ranks.values()):
            return
        if len({rank.config for rank in generation.ranks.values()}) > 1:
            configs = ", ".join(f"{rank.node} {rank.config[:12]}" for rank in generation.ranks.values())
            self.fatal = f"the ranks do not mean the same run: {configs}"
            self.fail(self.fatal, now, out)
            return
        generation.went = True
        for rank in generation.ranks.values():
            rank.section, rank.progress_at = "join", now
        self._go(generation, "all ranks are loaded", out)

    def _go(self, generation: Generation, reason: str, out: _Out) -> None:
        out.append(Go(generation=generation.number, nodes=tuple(generation.ranks), reason=reason))

    def ask_stop(self, reason: str, until: float | None, out: _Out) -> None:
        """After a step, with a checkpoint; ranks that have not ended by `until` are killed."""
        generation = self.generation
        assert generation is not None
        generation.stop_reason, generation.stop_until = reason, until
        self._say_stop(generation, out)

    def _say_stop(self, generation: Generation, out: _Out) -> None:
        nodes = tuple(generation.ranks)
        out.append(AskStop(generation=generation.number, nodes=nodes, reason=generation.stop_reason))

    def fail(self, reason: str, now: float, out: _Out, culprit: Rank | None = None) -> None:
        """The generation cannot go on. The first reason counts; who failed by himself is noted until all are dead."""
        generation = self.generation
        assert generation is not None
        if culprit is not None and not culprit.blameless:
            generation.culprits.setdefault(culprit.node, reason)
        if generation.ending:
            return
        generation.failure = reason
        out.append(NoteLine(text=f"generation {generation.number} cannot go on: {reason}", level="warning"))
        self._kill_all(generation, reason, now, out)

    def end_on_purpose(self, reason: str, now: float, out: _Out) -> None:
        generation = self.generation
        assert generation is not None
        if not generation.ending:
            generation.planned = True
            self._kill_all(generation, reason, now, out)

    def _kill_all(self, generation: Generation, reason: str, now: float, out: _Out) -> None:
        for rank in generation.living:
            if rank.fenced_at is None:
                self._kill(rank, reason, now, out)

    def _kill(self, rank: Rank, reason: str, now: float, out: _Out) -> None:
        if rank.kill_asked_at is None:
            rank.kill_asked_at = now
        rank.kill_said_at = now
        grace = self._policy.kill_grace_seconds
        out.append(KillRank(node=rank.node, generation=rank.generation, grace_seconds=grace, reason=reason))

    # --- time

    def look(self, now: float, out: _Out) -> None:
        policy = self._policy
        for rank in self._all():
            if rank.gone:
                continue
            if rank.fenced_at is not None:
                rank.gone = now >= rank.fenced_at
            elif rank.kill_asked_at is not None and now - rank.kill_asked_at > policy.kill_patience_seconds:
                rank.gone = True
                self._needs_reboot(rank.node, f"its rank was not dead after {policy.kill_patience_seconds:.0f} s", out)
            elif rank.kill_asked_at is not None and now - rank.kill_said_at > policy.kill_again_seconds:
                self._kill(rank, "it is not known to be dead", now, out)
            elif rank.ended is not None and now - rank.progress_at > policy.kill_again_seconds:
                self._kill(rank, "it has ended and does not exit", now, out)
        generation = self.generation
        if generation is None or generation.ending:
            return
        for rank, seconds in generation.stalled(now, policy):
            reason = f"the rank on {rank.node} made no progress in {rank.section} for {seconds:.1f} s"
            self.fail(reason, now, out, culprit=rank)
        if generation.stop_until is not None and now >= generation.stop_until:
            self.fail("it did not stop in time", now, out)

    def excuse(self, gap: float) -> None:
        """The coordinator was away: the time is nobody's fault."""
        for rank in self._all():
            rank.progress_at += gap
            rank.kill_said_at += gap
            if rank.kill_asked_at is not None:
                rank.kill_asked_at += gap
        if self.generation is not None and self.generation.stop_until is not None:
            self.generation.stop_until += gap
