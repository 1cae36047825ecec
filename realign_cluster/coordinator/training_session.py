"""A training run's session with one node: orders to its rank down, reports up, state parts to and fro.

Orders of a generation are kept until the node has them, and said again after a reconnect; a report is handed on once.
Decides nothing: what follows from reports is for `domain.recovery`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from realign_cluster.coordinator.inbox import Inbox
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.node_stream import NodeStream, greeting
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import RankSpec, StatePart
from realign_cluster.rpc.frames import pack_frame
from realign_cluster.rpc.pb import node_pb2 as pb


class TrainingSession(NodeStream):
    def __init__(
        self,
        address: NodeAddress,
        *,
        hello: pb.Hello,
        prepare: pb.PrepareTraining,
        sources: Sequence[ModelSource],
        inbox: Inbox,
    ) -> None:
        super().__init__(address, hello=hello, sources=sources, inbox=inbox)
        self._prepare = prepare
        self._numbers: Counter[int] = Counter()  # of the last order, by generation
        self._orders: deque[pb.RankOrder] = deque()  # that the node is not known to have
        self._ready = False  # whether the node has said on this stream what it has
        self._heard = (0, 0)  # generation and sequence of the last report that was handed on
        self._recorded = (0, 0)  # and of the last that was acknowledged

    # --- what the engine asks ---

    def start_rank(self, spec: RankSpec) -> None:
        """The node kills what it has of older generations first. Orders for those are void from now on."""
        self._orders.clear()
        start = pb.StartRank(spec=spec.model_dump_json().encode())
        self._order(pb.RankOrder(generation=spec.generation, start=start))

    def go(self, generation: int, addresses: Sequence[str]) -> None:
        """`addresses` are "ip:port" in rank order."""
        self._order(pb.RankOrder(generation=generation, go=pb.Go(addresses=addresses)))

    def tell_rank(self, generation: int, frame: Mapping[str, Any]) -> None:
        """A frame ("op" and what belongs to it) that the node hands on as it is."""
        self._order(pb.RankOrder(generation=generation, tell=pb.TellRank(message=pack_frame(frame))))

    def stop_rank(self, generation: int, *, kill: bool, reason: str, grace_seconds: float = 0.0) -> None:
        """`kill`: SIGTERM now, SIGKILL after the grace. Otherwise it is asked, and killed after the grace; 0: the node
        knows one. Answered by RankExited, also where there is no such rank.
        """
        stop = pb.StopRank(kill=kill, reason=reason, grace_seconds=grace_seconds)
        self._order(pb.RankOrder(generation=generation, stop=stop))

    def acknowledge_report(self, generation: int, sequence: int) -> None:
        """This one and all before it are recorded."""
        self._recorded = max(self._recorded, (generation, sequence))
        self._put(pb.CoordinatorMessage(rank_ack=pb.RankAck(generation=generation, sequence=sequence)))

    def fetch_part(self, part: StatePart, address: str = "", node_id: str = "") -> None:
        """The node pulls it from the daemon at `address`; without one it only checks what it has. Answered by
        PartFetched; lost with the stream.
        """
        fetch = pb.FetchPart(part=_json(part), address=address, node_id=node_id)
        self._put(pb.CoordinatorMessage(fetch_part=fetch))

    def drop_parts(self, parts: Iterable[StatePart]) -> None:
        """Not answered; lost with the stream."""
        self._put(pb.CoordinatorMessage(drop_parts=pb.DropParts(parts=[_json(part) for part in parts])))

    def start_over(self) -> None:
        """The node was given up, with its rank: orders to it are void, what it said meanwhile was not listened to."""
        self._orders.clear()
        self._heard = self._recorded
        super().start_over()

    # --- the stream ---

    def _order(self, order: pb.RankOrder) -> None:
        self._numbers[order.generation] += 1
        order.number = self._numbers[order.generation]
        self._orders.append(order)
        if self._ready:
            self._put(pb.CoordinatorMessage(rank_order=order))

    def _opening(self) -> Iterable[pb.CoordinatorMessage]:
        self._ready = False
        yield pb.CoordinatorMessage(prepare_training=self._prepare)

    def _notice(self, message: pb.NodeMessage) -> bool:
        match message.WhichOneof("body"):
            case "beat" if message.beat.HasField("rank"):
                self._have_arrived(message.beat.rank.generation, message.beat.rank.orders)
            case "training_ready":
                self._have_arrived(message.training_ready.generation, message.training_ready.orders)
                self._go_on()
            case "rank_report":
                return self._is_news(message.rank_report.generation, message.rank_report.sequence)
            case "rank_exited" if message.rank_exited.sequence:
                return self._is_news(message.rank_exited.generation, message.rank_exited.sequence)
        return True

    def _have_arrived(self, generation: int, number: int) -> None:
        while self._orders and (self._orders[0].generation, self._orders[0].number) <= (generation, number):
            self._orders.popleft()

    def _go_on(self) -> None:
        """Says what was lost with an older stream."""
        self._ready = True
        if self._recorded != (0, 0):
            generation, sequence = self._recorded
            self._put(pb.CoordinatorMessage(rank_ack=pb.RankAck(generation=generation, sequence=sequence)))
        for order in self._orders:
            self._put(pb.CoordinatorMessage(rank_order=order))

    def _is_news(self, generation: int, sequence: int) -> bool:
        if (generation, sequence) <= self._heard:
            return False
        self._heard = (generation, sequence)
        return True


def open_training_session(
    address: NodeAddress,
    *,
    run_id: str,
    epoch: int,
    job: TrainJob,
    model: ModelSource,
    data: ModelSource,
    inbox: Inbox,
    environment: Mapping[str, str] = MappingProxyType({}),
    nice: int | None = None,
) -> TrainingSession:
    """`environment` and `nice` are the job's: they go before what the hostfile says of the node."""
    if address.memory_limit_bytes:
        job = job.model_copy(update={"memory_limit_bytes": address.memory_limit_bytes})
    return TrainingSession(
        address,
        hello=greeting(run_id, epoch),
        prepare=pb.PrepareTraining(
            job=job.model_dump_json().encode(),
            environment={**address.environment, **environment},
            nice=nice if nice is not None else address.nice or 0,
        ),
        sources=(model, data),
        inbox=inbox,
    )


def _json(part: StatePart) -> bytes:
    return part.model_dump_json().encode()
