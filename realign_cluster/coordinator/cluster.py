"""The nodes of a hostfile, or those that discovery finds: dialled, identified, compared in versions, measured.

Holds no run: `connect` gives the cluster to whoever has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import grpc.aio

from realign_cluster.coordinator.describe import describe
from realign_cluster.coordinator.discovery import find_nodes
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.hostfile_reader import naming_hostfile, read_hostfile
from realign_cluster.coordinator.inbox import Barred, Disconnected, Inbox, Incoming
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.node_stream import greeting
from realign_cluster.coordinator.session import Session
from realign_cluster.domain.errors import NodesMissing, RealignError, UsageError
from realign_cluster.domain.group import Place
from realign_cluster.domain.hostfile import Hostfile
from realign_cluster.domain.ids import NodeId, NodeName
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.report import WorkerReport
from realign_cluster.domain.skew import refused, skew
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb import node_pb2_grpc as pb_grpc
from realign_cluster.rpc.versions import local_versions

DISCOVER_SECONDS = 3.0
LINK_BYTES = 16 << 20
LINK_ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLink:
    """A node that answered and may take part."""

    address: NodeAddress
    info: common.NodeInfo
    health: common.Health
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> NodeName:
        return self.address.name


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingNode:
    name: NodeName
    reason: str  # with the fix
    address: NodeAddress | None  # None: nobody to dial (not enrolled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    nodes: tuple[NodeLink, ...]
    missing: tuple[MissingNode, ...]
    home: ClusterHome
    hostfile: Hostfile | None

    async def measure(
        self,
        job: ScoreJob,
        samples: Sequence[bytes],
        *,
        mode: str = "full",
        model: ModelSource | None = None,
        progress: Callable[[NodeName, str, float], None] = lambda name, what, fraction: None,
        timeout: float = 1800.0,
    ) -> dict[NodeName, WorkerReport]:
        """Loads the job's model on every node at once, measures, lets go. Raises NodesMissing naming who cannot."""
        inbox: Inbox = asyncio.Queue()
        run_id = secrets.token_hex(8)
        sessions = [
            open_session(
                link.address, run_id=run_id, epoch=1, job=job, measure=mode, samples=samples, model=model, inbox=inbox
            )
            for link in self.nodes
        ]
        tasks = [asyncio.create_task(session.run()) for session in sessions]
        reports: dict[NodeName, WorkerReport] = {}
        try:
            async with asyncio.timeout(timeout):
                while len(reports) < len(self.nodes):
                    item = await inbox.get()
                    if not isinstance(item, Incoming):
                        continue
                    match item.report:
                        case Barred(message=message):
                            raise NodesMissing(message)
                        case Disconnected(reason=reason):
                            progress(item.node, f"disconnected: {reason}", 0.0)
                        case pb.NodeMessage() as message:
                            _on_measuring(item.node, message, reports, progress)
        except TimeoutError:
            waiting = ", ".join(link.name for link in self.nodes if link.name not in reports)
            raise NodesMissing(f"no measurement from {waiting} within {timeout:.0f} s", "see realign doctor") from None
        finally:
            await asyncio.gather(*(session.release("measured") for session in sessions))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return reports

    async def links(self) -> list[tuple[NodeName, NodeName, pb.LinkReport]]:
        """Round trip and bandwidth between each pair of nodes, one pair at a time."""
        found = []
        for one, other in itertools.combinations(self.nodes, 2):
            request = pb.LinkRequest(
                address=other.address.address, node_id=other.address.node_id, bytes=LINK_BYTES, rounds=LINK_ROUNDS
            )
            async with one.address.channel() as channel:
                try:
                    report = await pb_grpc.NodeStub(channel).MeasureLink(request, timeout=60.0)  # type: ignore[no-untyped-call]
                except grpc.aio.AioRpcError as error:
                    report = pb.LinkReport(error=error.details() or str(error.code()))
            found.append((one.name, other.name, report))
        return found


def _on_measuring(
    node: NodeName,
    message: pb.NodeMessage,
    reports: dict[NodeName, WorkerReport],
    progress: Callable[[NodeName, str, float], None],
) -> None:
    match message.WhichOneof("body"):
        case "worker_ready":
            reports[node] = WorkerReport.model_validate_json(message.worker_ready.report)
        case "worker_refused":
            raise UsageError(f"{node} cannot do this job: {message.worker_refused.message}")
        case "measuring":
            progress(node, message.measuring.what, message.measuring.fraction)
        case "worker_exited":
            progress(node, f"worker exited: {message.worker_exited.reason}", 0.0)


def open_session(
    address: NodeAddress,
    *,
    run_id: str,
    epoch: int,
    job: ScoreJob,
    measure: str,
    samples: Sequence[bytes],
    model: ModelSource | None,
    inbox: Inbox,
    environment: Mapping[str, str] = MappingProxyType({}),
    nice: int | None = None,
    place: Place | None = None,
    others: Iterable[ModelSource] = (),
) -> Session:
    """`others`: what the job names besides its model. `environment` and `nice` are the job's: they go before what the
    hostfile says of the node. `place`: in a group that holds the model.
    """
    limited = (
        job.model_copy(update={"memory_limit_bytes": address.memory_limit_bytes}) if address.memory_limit_bytes else job
    )
    return Session(
        address,
        hello=greeting(run_id, epoch),
        prepare=pb.Prepare(
            job=limited.model_dump_json().encode(),
            measure=measure,
            samples=list(samples),
            environment={**address.environment, **environment},
            nice=nice if nice is not None else address.nice or 0,
            group=place.model_dump_json().encode() if place is not None else b"",
        ),
        sources=(*((model,) if model is not None else ()), *others),
        inbox=inbox,
    )


@contextlib.asynccontextmanager
async def connect(
    hostfile: Path | None = None,
    *,
    discover: bool = False,
    home: ClusterHome | None = None,
    min_nodes: int | None = None,
    allow_skew: frozenset[str] = frozenset(),
) -> AsyncIterator[Cluster]:
    """Dials every node of the hostfile, or every enrolled one that answers on the network, in parallel.

    Raises NodesMissing when fewer answer than needed: `min_nodes`; by default all of the hostfile, one of discovery.
    """
    if (hostfile is None) == (not discover):
        raise UsageError(
            "no cluster was named" if hostfile is None else "both --hostfile and --discover",
            "--hostfile FILE or --discover",
        )
    home = home or ClusterHome()
    parsed = read_hostfile(hostfile) if hostfile is not None else None
    if parsed is not None and min_nodes is not None and min_nodes > len(parsed.hosts):
        raise UsageError(f"--min-nodes {min_nodes}: {parsed.name} has {len(parsed.hosts)} hosts", "ask for fewer")
    if parsed is not None:
        addresses, missing = _from_hostfile(parsed, home)
    else:
        addresses, missing = await _from_discovery(home)
    answers = await asyncio.gather(*(_dial(address, allow_skew) for address in addresses))
    links = [answer for answer in answers if isinstance(answer, NodeLink)]
    missing += [answer for answer in answers if isinstance(answer, MissingNode)]
    links, twins = _refuse_twins(links)
    missing += twins
    needed = min_nodes if min_nodes is not None else (len(parsed.hosts) if parsed is not None else 1)
    if len(links) < max(1, needed):
        reasons = "\n".join(f"  {node.name}: {node.reason}".replace("\n", "\n    ") for node in missing)
        found = f"{len(links)} of {len(links) + len(missing)} nodes are there, {max(1, needed)} are needed"
        start = "realign-launch --hostfile FILE up" if parsed is not None else "realignd run on each"
        fewer = "; or go on with fewer: --min-nodes N" if links else ""
        raise NodesMissing(
            naming_hostfile(f"{found}:\n{reasons}" if missing else found, hostfile),
            naming_hostfile(f"start them: {start}{fewer}", hostfile),
        )
    yield Cluster(nodes=tuple(links), missing=tuple(missing), home=home, hostfile=parsed)


def _from_hostfile(hostfile: Hostfile, home: ClusterHome) -> tuple[list[NodeAddress], list[MissingNode]]:
    addresses: list[NodeAddress] = []
    missing: list[MissingNode] = []
    for host in hostfile.hosts:
        name = NodeName(host.name)
        if (node := home.find(host.name, host.target)) is None:
            reason = "it is not enrolled in this cluster\n  fix: realign-launch --hostfile FILE up"
            missing.append(MissingNode(name=name, reason=reason, address=None))
            continue
        addresses.append(
            NodeAddress(
                name=name,
                node_id=NodeId(node.node_id),
                address=host.target,
                bundle=home.bundle(),
                home=home,
                environment=dict(host.env),
                memory_limit_bytes=host.memory_limit_bytes,
                nice=host.nice,
            )
        )
    return addresses, missing


async def _from_discovery(home: ClusterHome) -> tuple[list[NodeAddress], list[MissingNode]]:
    known = {node.node_id: node for node in home.nodes() if node.revoked is None}
    addresses: list[NodeAddress] = []
    missing: list[MissingNode] = []
    for found in await find_nodes(DISCOVER_SECONDS):
        if (node := known.get(found.node_id)) is None:
            reason = (
                "found on the network but not enrolled, so not trusted\n"
                "  fix: realign cluster join-code, then realignd join CODE there"
            )
            missing.append(MissingNode(name=NodeName(found.name), reason=reason, address=None))
            continue
        addresses.append(
            NodeAddress(
                name=NodeName(node.name),
                node_id=NodeId(found.node_id),
                address=f"{found.host}:{found.port}",
                bundle=home.bundle(),
                home=home,
            )
        )
    return addresses, missing


async def _dial(address: NodeAddress, allow_skew: frozenset[str]) -> NodeLink | MissingNode:
    try:
        described = await describe(address)
    except RealignError as error:
        return MissingNode(name=address.name, reason=str(error), address=address)
    info, health = described.info, described.health
    differences = skew(local_versions(), info.versions, allow_skew)
    if bad := refused(differences):
        reason = "\n".join(item.text(address.name) for item in bad)
        return MissingNode(name=address.name, reason=reason, address=None)
    warnings = tuple(item.text(address.name) for item in differences)
    return NodeLink(address=address, info=info, health=health, warnings=warnings)


def _refuse_twins(links: Sequence[NodeLink]) -> tuple[list[NodeLink], list[MissingNode]]:
    """Of several live daemons with one node id only the first is taken: the others run on a copy of its folder."""
    first: dict[str, NodeLink] = {}
    twins: list[MissingNode] = []
    for link in links:
        if (other := first.setdefault(link.info.node_id, link)) is not link:
            reason = (
                f"it has the same node id as {other.name}: one state folder is a copy\n"
                "  fix: realignd reset --state DIR on one of them"
            )
            twins.append(MissingNode(name=link.name, reason=reason, address=None))
    return list(first.values()), twins
