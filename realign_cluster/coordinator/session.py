"""A scoring run's session with one node: leases down, results up.

Decides nothing: what results are worth is for `domain.scheduler`. How the stream lives is in `node_stream`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from realign_cluster.coordinator.inbox import Inbox
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.node_stream import NodeStream
from realign_cluster.rpc.pb import node_pb2 as pb


class ScoringNode(Protocol):
    """What the engine takes for one node: a session, or a group of them."""

    @property
    def outstanding(self) -> int: ...
    def assign(self, assigns: Iterable[pb.Assign]) -> None: ...
    def revoke(self, attempts: Iterable[int], reason: str) -> None: ...
    def acknowledge(self, attempts: Iterable[int]) -> None: ...
    def restart_worker(self, reason: str) -> None: ...
    def start_over(self) -> None: ...
    async def run(self) -> None: ...
    async def release(self, reason: str, timeout: float = 2.0) -> None: ...


class Session(NodeStream):
    """What cannot be sent now is sent after the reconnect or not at all."""

    def __init__(
        self,
        address: NodeAddress,
        *,
        hello: pb.Hello,
        prepare: pb.Prepare,
        sources: Iterable[ModelSource],
        inbox: Inbox,
    ) -> None:
        super().__init__(address, hello=hello, sources=sources, inbox=inbox)
        self._prepare = prepare
        self._outstanding: dict[int, pb.Assign] = {}  # sent or to be sent, no result yet: sent again after a reconnect

    @property
    def outstanding(self) -> int:
        """Units that the node was given and did not answer yet."""
        return len(self._outstanding)

    def assign(self, assigns: Iterable[pb.Assign]) -> None:
        for assign in assigns:
            self._outstanding[assign.attempt] = assign
            self._put(pb.CoordinatorMessage(assign=assign))

    def revoke(self, attempts: Iterable[int], reason: str) -> None:
        gone = list(attempts)
        for attempt in gone:
            self._outstanding.pop(attempt, None)
        self._put(pb.CoordinatorMessage(revoke=pb.Revoke(attempts=gone, reason=reason)))

    def acknowledge(self, attempts: Iterable[int]) -> None:
        done = list(attempts)
        for attempt in done:
            self._outstanding.pop(attempt, None)
        self._put(pb.CoordinatorMessage(ack=pb.Ack(attempts=done)))

    def restart_worker(self, reason: str, generation: int = 0) -> None:
        """The worker of this generation, or with 0 whichever is there."""
        self._outstanding.clear()
        restart = pb.RestartWorker(reason=reason, generation=generation)
        self._put(pb.CoordinatorMessage(restart_worker=restart))

    def join_group(self, generation: int, addresses: Sequence[str]) -> None:
        """To the worker of this generation, which waits for it. `addresses` are "ip:port" in rank order."""
        join = pb.JoinGroup(generation=generation, addresses=addresses)
        self._put(pb.CoordinatorMessage(join_group=join))

    def start_over(self) -> None:
        """The scheduler took every attempt from this node."""
        self._outstanding.clear()
        super().start_over()

    def _opening(self) -> Iterable[pb.CoordinatorMessage]:
        yield pb.CoordinatorMessage(prepare=self._prepare)
        for assign in self._outstanding.values():
            yield pb.CoordinatorMessage(assign=assign)

    def _notice(self, message: pb.NodeMessage) -> bool:
        match message.WhichOneof("body"):
            case "result":
                self._outstanding.pop(message.result.attempt, None)
            case "unit_failed":
                self._outstanding.pop(message.unit_failed.attempt, None)
            case "worker_exited":
                self._outstanding.clear()
            case "refusal" if message.refusal.code == pb.Refusal.STOPPING:
                self._outstanding.clear()
        return True
