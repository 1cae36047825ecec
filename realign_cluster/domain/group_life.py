"""The workers of a group as one: joined when all of them wait, replaced together when one is gone.

MLX never mends a group, so no worker outlives the group that it joined. Pure: hears what the nodes say of their
workers, answers with what they are to be told and what the scheduler is to hear. Must not know streams or ranks'
work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from realign_cluster.domain.ids import NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """`generation` is its daemon's count, which begins anew with the daemon."""

    generation: int
    pid: int


# --- what is to be done ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """Tell these workers, by the generation of each, to join. `ports` are all ranks', in rank order."""

    workers: tuple[tuple[NodeName, int], ...]
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """`generation` of the worker that is meant; 0: whichever is there."""

    node: NodeName
    reason: str
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReady:
    """The group can be given work. Said again when a rank says again that it is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """For the scheduler, the end of the leader's worker: `computing` is the attempt in its hands, 0 if there was none.
    `asked`: nobody is to blame.

    Said when all the group's workers are known to have ended, so that the loss of a member's node is told apart from
    the death of a worker, which may be the fault of what it computed.
    """

    reason: str
    computing: int
    asked: bool


Action = Join | Restart | AllReady | Ended
State = Literal["away", "waiting", "told", "ready", "over"]
IN_GROUP: frozenset[State] = frozenset({"told", "ready"})


@dataclass(slots=True)
class _Rank:
    """Away: no worker, or one that loads. Over: its group is, and it is to be replaced."""

    state: State = "away"
    worker: Worker | None = None
    port: int = 0


@dataclass(slots=True)
class _End:
    """Of a group: why, and whose workers have yet to be heard of."""

    reason: str
    asked: bool
    missing: set[NodeName]
    computing: int = 0


class GroupLife:
    """`nodes` in rank order, the last leads. Invariant: the ranks that are in a group were told so together."""

    def __init__(self, nodes: Sequence[NodeName]) -> None:
        self._ranks = {node: _Rank() for node in nodes}
        self._leader = nodes[-1]
        self._end: _End | None = None

    def greeted(self, node: NodeName) -> list[Action]:
        """Its stream begins anew: what it was told last may not have arrived."""
        rank = self._ranks[node]
        if rank.state != "over" or rank.worker is None:
            return []
        reason = "the group that it belongs to is over"
        return [Restart(node=node, reason=reason, generation=rank.worker.generation)]

    def waiting(self, node: NodeName, worker: Worker, port: int) -> list[Action]:
        """It waits to be told to join, on this port. Also said again, when what it was told may have been lost."""
        rank = self._ranks[node]
        if rank.worker == worker and rank.state == "told":
            return [Join(workers=((node, worker.generation),), ports=self._ports())]
        actions = self._replaced(node) if rank.worker != worker else []
        rank.state, rank.worker, rank.port = "waiting", worker, port
        if all(each.state == "waiting" for each in self._ranks.values()):
            for each in self._ranks.values():
                each.state = "told"
            workers = [(name, each.worker.generation) for name, each in self._ranks.items() if each.worker is not None]
            actions.append(Join(workers=tuple(workers), ports=self._ports()))
        return actions

    def ready(self, node: NodeName, worker: Worker) -> list[Action]:
        rank = self._ranks[node]
        if rank.worker != worker or rank.state not in IN_GROUP:
            rank.state, rank.worker = "over", worker
            reason = "the group that it belongs to is over"
            return [Restart(node=node, reason=reason, generation=worker.generation)]
        rank.state = "ready"
        return [AllReady()] if all(each.state == "ready" for each in self._ranks.values()) else []

    def exited(self, node: NodeName, generation: int, reason: str, *, computing: int, asked: bool) -> list[Action]:
        rank = self._ranks[node]
        actions: list[Action] = []
        if rank.worker is None or rank.worker.generation != generation:
            actions = self._replaced(node)
            rank.state = "away"
        if rank.state in ("away", "waiting"):
            rank.state = "away"
            return [*actions, Ended(reason=self._of(node, reason), computing=0, asked=asked)]
        if rank.state in IN_GROUP:
            actions += self._end_group(self._of(node, reason), asked=asked, gone=node)
        rank.state = "away"
        return actions + self._heard_of_end(node, computing=computing if node == self._leader else 0)

    def restart(self, reason: str) -> list[Action]:
        """All of them, wherever they are."""
        if any(rank.state in IN_GROUP for rank in self._ranks.values()):
            self._end_group(reason, asked=True)
        return [Restart(node=node, reason=reason) for node in self._ranks]

    def forget(self) -> None:
        """The group was given up: what comes of its workers is of the past."""
        self._end = None
        for rank in self._ranks.values():
            rank.state = "over" if rank.state != "away" else "away"

    def _replaced(self, node: NodeName) -> list[Action]:
        """Another worker is there than the one that was known, and nobody said what became of that."""
        actions: list[Action] = []
        if self._ranks[node].state in IN_GROUP:
            actions += self._end_group(self._of(node, "its worker was replaced"), asked=True, gone=node)
        return actions + self._heard_of_end(node, unseen=True)

    def _end_group(self, reason: str, *, asked: bool, gone: NodeName | None = None) -> list[Action]:
        members = [node for node, rank in self._ranks.items() if rank.state in IN_GROUP]
        self._end = _End(reason=reason, asked=asked, missing=set(members))
        actions: list[Action] = []
        for node in members:
            rank = self._ranks[node]
            rank.state = "over"
            if node != gone:
                generation = rank.worker.generation if rank.worker is not None else 0
                actions.append(Restart(node=node, reason=f"the group is over: {reason}", generation=generation))
        return actions

    def _heard_of_end(self, node: NodeName, *, computing: int = 0, unseen: bool = False) -> list[Action]:
        """One of the group's workers has ended; `unseen`: nobody said how."""
        end = self._end
        if end is None or node not in end.missing:
            return []
        end.missing.discard(node)
        end.computing = end.computing or computing
        end.asked = end.asked or unseen
        if end.missing:
            return []
        self._end = None
        return [Ended(reason=end.reason, computing=end.computing, asked=end.asked)]

    def _of(self, node: NodeName, reason: str) -> str:
        return reason if node == self._leader else f"{node}'s worker: {reason}"

    def _ports(self) -> tuple[int, ...]:
        return tuple(rank.port for rank in self._ranks.values())
