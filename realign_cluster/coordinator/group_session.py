"""A group of nodes that hold one model between them, to the engine one node: its leader.

Keeps a session with each of them and takes what they say apart: what concerns the group's own life goes to
`domain.group_life`, results and everything else of the leader to the engine. The group is heard when all of it is.
Decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import assert_never

import structlog
from pydantic import ValidationError

from realign_cluster.coordinator.cluster import Cluster
from realign_cluster.coordinator.inbox import (
    Barred,
    Connected,
    Disconnected,
    Inbox,
    Incoming,
    Left,
    ModelProgress,
    Report,
)
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.rank_hosts import rank_hosts
from realign_cluster.coordinator.session import Session
from realign_cluster.domain.group import Place
from realign_cluster.domain.group_life import Action, AllReady, Ended, GroupLife, Join, Restart, Worker
from realign_cluster.domain.group_plan import shape_of
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.jaccl import with_links
from realign_cluster.domain.plan import GroupPlan
from realign_cluster.domain.report import WorkerReport
from realign_cluster.domain.training import Backend
from realign_cluster.rpc.pb import node_pb2 as pb

log = structlog.get_logger()

OpenSession = Callable[[NodeAddress, Inbox, Place], Session]
WAITING_PHASES = ("", "wait")


def open_group(
    plan: GroupPlan, cluster: Cluster, sitting: int, open_session: OpenSession, inbox: Inbox
) -> GroupSession:
    """Raises UsageError when its nodes cannot be joined as the hostfile asks."""
    backend: Backend = "ring"
    if cluster.hostfile is not None and cluster.hostfile.backend in ("jaccl", "jaccl-ring"):
        backend = "jaccl"
    world = shape_of(plan.parallel, [member.name for member in plan.members], plan.layers)
    world = world.model_copy(update={"backend": backend})
    if cluster.hostfile is not None:
        world = with_links(world, cluster.hostfile)
    found = {link.name: link.address for link in cluster.nodes}
    addresses = [found[NodeName(member.name)] for member in plan.members]
    heard: Inbox = asyncio.Queue()
    places = [
        Place(sitting=sitting, rank=rank, world=world, batch_tokens=plan.batch_tokens) for rank in range(world.size)
    ]
    return GroupSession(
        [open_session(address, heard, place) for address, place in zip(addresses, places, strict=True)],
        layout=world.layout,
        hosts=rank_hosts(cluster.hostfile, addresses),
        heard=heard,
        inbox=inbox,
    )


class GroupSession:
    """`members` in rank order, with sessions that report to `heard`; the last leads. `layout` is the world's. `hosts`:
    each one's IPv4 address for the others. Offers what a Session offers, as `session.ScoringNode`.
    """

    def __init__(
        self, members: Sequence[Session], *, layout: str, hosts: Mapping[NodeName, str], heard: Inbox, inbox: Inbox
    ) -> None:
        self._members = {session.name: session for session in members}
        self._leader = members[-1]
        self._layout = layout
        self._hosts = hosts
        self._heard = heard
        self._inbox = inbox
        self._life = GroupLife(list(self._members))
        self._here: dict[NodeName, Connected] = {}
        self._ready: dict[NodeName, pb.WorkerReady] = {}
        self._progress: dict[NodeName, ModelProgress] = {}
        self._beats: dict[NodeName, pb.NodeBeat] = {}
        self._beaten: set[NodeName] = set()  # since the group's last beat

    @property
    def name(self) -> NodeName:
        return self._leader.name

    # --- what the engine asks ---

    @property
    def outstanding(self) -> int:
        return self._leader.outstanding

    def assign(self, assigns: Iterable[pb.Assign]) -> None:
        self._leader.assign(assigns)

    def revoke(self, attempts: Iterable[int], reason: str) -> None:
        self._leader.revoke(attempts, reason)

    def acknowledge(self, attempts: Iterable[int]) -> None:
        self._leader.acknowledge(attempts)

    def restart_worker(self, reason: str) -> None:
        for action in self._life.restart(reason):
            self._tell(action)

    def start_over(self) -> None:
        self._life.forget()
        self._here.clear()
        self._beaten.clear()
        for session in self._members.values():
            session.start_over()

    # --- life ---

    async def run(self) -> None:
        sessions = [asyncio.create_task(session.run()) for session in self._members.values()]
        try:
            while True:
                item = await self._heard.get()
                if not isinstance(item, Incoming):
                    raise TypeError(f"a session reported {type(item).__name__}")
                for report in self._on_report(item.node, item.report):
                    await self._inbox.put(Incoming(node=self.name, report=report))
        finally:
            for task in sessions:
                task.cancel()
            await asyncio.gather(*sessions, return_exceptions=True)

    async def release(self, reason: str, timeout: float = 2.0) -> None:
        await asyncio.gather(*(session.release(reason, timeout) for session in self._members.values()))

    # --- what came in ---

    def _on_report(self, node: NodeName, report: Report) -> list[Report]:
        """What the engine is to hear of it."""
        match report:
            case Connected():
                self._here[node] = report
                for action in self._life.greeted(node):
                    self._tell(action)
                return [self._here[self.name]] if len(self._here) == len(self._members) else []
            case Disconnected(reason=reason):
                self._here.pop(node, None)
                return [Disconnected(reason=self._of(node, reason))]
            case Left(reason=reason):
                self.start_over()
                return [Left(reason=self._of(node, reason))]
            case Barred(kind=kind, message=message):
                return [Barred(kind=kind, message=message)]
            case ModelProgress():
                self._progress[node] = report
                parts = self._progress.values()
                return [ModelProgress(sent=sum(part.sent for part in parts), total=sum(part.total for part in parts))]
            case pb.NodeMessage():
                return self._on_message(node, report)
            case _:
                assert_never(report)

    def _on_message(self, node: NodeName, message: pb.NodeMessage) -> list[Report]:
        match message.WhichOneof("body"):
            case "beat":
                return self._on_beat(node, message.beat)
            case "worker_waiting":
                waiting = message.worker_waiting
                worker = Worker(generation=waiting.generation, pid=waiting.pid)
                return self._do(self._life.waiting(node, worker, waiting.port))
            case "worker_ready":
                self._ready[node] = message.worker_ready
                worker = Worker(generation=message.worker_ready.generation, pid=message.worker_ready.pid)
                return self._do(self._life.ready(node, worker))
            case "worker_exited":
                exited = message.worker_exited
                computing = exited.computing_attempt if node == self.name else 0
                return self._do(
                    self._life.exited(node, exited.generation, exited.reason, computing=computing, asked=exited.asked),
                    exited,
                )
            case "worker_refused":
                refused = message.worker_refused
                text = self._of(node, refused.message)
                return [pb.NodeMessage(worker_refused=pb.WorkerRefused(code=refused.code, message=text))]
            case _:
                return [message] if node == self.name else []

    def _on_beat(self, node: NodeName, beat: pb.NodeBeat) -> list[Report]:
        """The leader's, once all have been heard again. While it waits, what the others are at is the group's phase."""
        self._beats[node] = beat
        self._beaten.add(node)
        if len(self._beaten) < len(self._members):
            return []
        self._beaten.clear()
        whole = pb.NodeBeat()
        whole.CopyFrom(self._beats[self.name])
        whole.progress = sum(each.progress for each in self._beats.values())
        if whole.phase in WAITING_PHASES:
            others = [each.phase for each in self._beats.values() if each.phase not in WAITING_PHASES]
            whole.phase = others[0] if others and not whole.computing_attempt else whole.phase
        return [pb.NodeMessage(beat=whole)]

    # --- what follows from it ---

    def _do(self, actions: Sequence[Action], exited: pb.WorkerExited | None = None) -> list[Report]:
        reports: list[Report] = []
        for action in actions:
            match action:
                case Join() | Restart():
                    self._tell(action)
                case AllReady():
                    reports.append(pb.NodeMessage(worker_ready=self._all_ready()))
                case Ended(reason=reason, computing=computing, asked=asked):
                    ended = pb.WorkerExited()
                    ended.CopyFrom(exited or pb.WorkerExited())
                    ended.reason, ended.computing_attempt, ended.asked = reason, computing, asked
                    reports.append(pb.NodeMessage(worker_exited=ended))
                case _:
                    assert_never(action)
        return reports

    def _tell(self, action: Action) -> None:
        match action:
            case Join(workers=workers, ports=ports):
                addresses = [f"{self._hosts[name]}:{port}" for name, port in zip(self._members, ports, strict=True)]
                for node, generation in workers:
                    self._members[node].join_group(generation, addresses)
            case Restart(node=node, reason=reason, generation=generation):
                log.info("a worker of the group is replaced", node=node, why=reason)
                self._members[node].restart_worker(reason, generation)

    def _all_ready(self) -> pb.WorkerReady:
        """The leader's report, for all: with every weight, and as device what decides the last bits of a score."""
        whole = pb.WorkerReady()
        whole.CopyFrom(self._ready[self.name])
        try:
            reports = [WorkerReport.model_validate_json(self._ready[node].report) for node in self._members]
        except ValidationError:
            return whole  # what the engine makes of the leader's is the run's answer
        kinds = list(dict.fromkeys(f"{each.device} {each.blas} {each.blas_core_type}".strip() for each in reports))
        device = f"{' + '.join(kinds)}, {self._layout}"
        weights = sum(each.weights_bytes for each in reports)
        report = reports[-1].model_copy(update={"device": device, "weights_bytes": weights})
        whole.report = report.model_dump_json().encode()
        return whole

    def _of(self, node: NodeName, text: str) -> str:
        return text if node == self.name or text.startswith(f"{node} ") else f"{node}: {text}"
