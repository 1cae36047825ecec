"""Which nodes are still there, and which workers still get somewhere.

Pure: the coordinator's monotonic time is passed in. Heartbeats end here and never reach the ledger; what follows from
them (NodeLost, WorkerStalled) does. A coordinator that slept or stalled blames nobody for its own gap: every deadline
moves by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from realign_cluster.domain.events import NodeLost, WorkerStalled
from realign_cluster.domain.ids import AttemptId, NodeName

LOADING_PHASES = frozenset({"load", "canary", "measure"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessPolicy:
    lease_seconds: float = 3.0  # silence longer than this loses the node
    gap_seconds: float = 1.0  # between two looks: longer, and it is the coordinator that was away
    stall_seconds: float | None = None  # without progress while computing; None: from the slowest unit expected
    stall_least_seconds: float = 10.0
    stall_factor: float = 4.0  # times the slowest expected unit
    load_stall_seconds: float = 600.0  # without progress while loading, checking canaries, measuring


class _Watch:
    __slots__ = ("attempt", "heard_at", "holds", "phase", "progress", "progress_at", "unit_seconds")

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.progress_at = now
        self.phase = ""
        self.attempt: AttemptId | None = None
        self.progress = 0
        self.unit_seconds = 0.0
        self.holds = 0


class Liveness:
    """One coordinator's view of its nodes. Invariant: no time it keeps lies after the last `now` it was given."""

    def __init__(self, policy: LivenessPolicy | None = None) -> None:
        self.policy = policy or LivenessPolicy()
        self._watches: dict[NodeName, _Watch] = {}
        self._last_look: float | None = None

    def watch(self, node: NodeName, now: float) -> None:
        """Its session is open: from now on silence counts.

        After a reconnect, with no NodeLost in between, a worker that made no progress before still has made none.
        """
        self._look(now)
        watch = self._watches.setdefault(node, _Watch(now))
        watch.heard_at = now

    def forget(self, node: NodeName) -> None:
        """It was released, or left: its silence means nothing any more."""
        self._watches.pop(node, None)

    def heard(
        self, node: NodeName, now: float, *, phase: str = "", computing: AttemptId | None = None, progress: int = 0
    ) -> None:
        """A beat of this node. `progress` only ever rises within one worker; a unit, a phase or a worker that is new
        counts as progress.
        """
        self._look(now)
        watch = self._watches.get(node)
        if watch is None:
            return
        watch.heard_at = now
        if (progress, computing, phase) != (watch.progress, watch.attempt, watch.phase):
            watch.progress, watch.attempt, watch.phase = progress, computing, phase
            watch.progress_at = now

    def heard_anything(self, node: NodeName, now: float, *, work: bool = False) -> None:
        """Any other message of this node: it is alive, which says nothing of its worker, unless it is `work` of it."""
        self._look(now)
        watch = self._watches.get(node)
        if watch is not None:
            watch.heard_at = now
            if work:
                watch.progress_at = now

    def expect(self, node: NodeName, slowest_unit_seconds: float, holds: int = 0) -> None:
        """The slowest unit that the node now holds should take this long: its worker may be silent for a multiple of
        it.

        `holds`: units it was given and has not returned. A worker that computes nothing for as long although its node
        holds some has stalled too. Leave it at 0 while results are not taken from the nodes (a full disk).
        """
        watch = self._watches.get(node)
        if watch is None:
            return
        watch.unit_seconds = slowest_unit_seconds
        if holds and not watch.holds and self._last_look is not None and watch.attempt is None:
            watch.progress_at = max(watch.progress_at, self._last_look)
        watch.holds = holds

    def silent_for(self, node: NodeName, now: float) -> float | None:
        """Seconds since it was last heard, gaps of the coordinator not counted; None if it is not watched."""
        watch = self._watches.get(node)
        return None if watch is None else max(0.0, now - watch.heard_at)

    def check(self, now: float) -> list[NodeLost | WorkerStalled]:
        """Who is lost, whose worker is stalled. A lost node is watched no more until its next session."""
        self._look(now)
        facts: list[NodeLost | WorkerStalled] = []
        for node, watch in list(self._watches.items()):
            silent = now - watch.heard_at
            if silent > self.policy.lease_seconds:
                del self._watches[node]
                facts.append(NodeLost(at=now, node=node, reason=f"not heard for {silent:.1f} s"))
                continue
            limit = self._stall_limit(watch)
            idle = now - watch.progress_at
            if limit is not None and idle > limit:
                watch.progress_at = now  # said again after as long, should the restart not help
                attempt = None if watch.phase in LOADING_PHASES else watch.attempt
                facts.append(WorkerStalled(at=now, node=node, attempt=attempt, seconds=idle))
        return facts

    def _stall_limit(self, watch: _Watch) -> float | None:
        """Seconds without progress that its worker is allowed; None while it has nothing to do."""
        policy = self.policy
        if watch.phase in LOADING_PHASES:
            return policy.load_stall_seconds
        if watch.attempt is None and not watch.holds:
            return None
        if policy.stall_seconds is not None:
            return policy.stall_seconds
        return max(policy.stall_least_seconds, policy.stall_factor * watch.unit_seconds)

    def _look(self, now: float) -> None:
        """Notice a gap of the coordinator itself, and move every deadline by it."""
        last, self._last_look = self._last_look, now
        if last is None or now - last <= self.policy.gap_seconds:
            return
        gap = now - last
        for watch in self._watches.values():
            watch.heard_at = min(now, watch.heard_at + gap)
            watch.progress_at = min(now, watch.progress_at + gap)
