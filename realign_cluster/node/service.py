"""The gRPC face of the daemon: checks who calls, translates, and never lets an exception of one call reach another."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from realign_cluster.domain.errors import RealignError
from realign_cluster.node.logs import follow
from realign_cluster.node.models import ModelRefused, ModelStore
from realign_cluster.node.outbox import Outbox
from realign_cluster.node.probe import HealthSampler, free_disk_bytes, quick_device
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.node.tenancy import Denied, Tenant
from realign_cluster.node.workplace import Workplace
from realign_cluster.rpc.certificates import CertificateBundle, CertificateError, PeerIdentity, Role
from realign_cluster.rpc.channel import caller_identity, open_channel, preflight
from realign_cluster.rpc.pb import common_pb2, node_pb2_grpc
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.versions import PROTOCOL_VERSION

log = structlog.get_logger()

BEAT_SECONDS = 0.5
HELLO_SECONDS = 10.0
LAST_WORD_SECONDS = 1.0
DEVICE_SECONDS = 6.0
STALL_SECONDS = 1.0
MINIMUM_FREE_BYTES = 32 * 1024**2
_MAX_ECHO_BYTES = 32 * 1024**2
_MAX_LOG_BYTES = 4 * 1024**2
_WATCH_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What every call may need, put together once by the daemon."""

    node_id: str
    name: str
    folder: StateFolder
    bundle: CertificateBundle
    workplace: Workplace
    models: ModelStore
    health: HealthSampler
    device: asyncio.Future[common_pb2.Device]
    versions: common_pb2.Versions
    pid: int
    started_at: float


class NodeService(node_pb2_grpc.NodeServicer):
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    # --- small calls ------------------------------------------------------------------------------------------------

    async def Describe(self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext) -> common_pb2.NodeInfo:
        await _require(context)
        return await self._describe()

    async def _describe(self) -> common_pb2.NodeInfo:
        serving = self._serving
        info = common_pb2.NodeInfo(
            node_id=serving.node_id,
            name=serving.name,
            versions=serving.versions,
            device=await self._device(),
            certificate_fingerprint=serving.bundle.fingerprint,
            models=serving.models.names(),
            uptime_seconds=time.monotonic() - serving.started_at,
            pid=serving.pid,
        )
        tenant = serving.workplace.tenancy.current(time.monotonic())
        if tenant is not None:
            info.holder.CopyFrom(_holder(tenant))
        return info

    async def _device(self) -> common_pb2.Device:
        """Without what MLX sees while that is still being asked for longer than a greeting may take."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._serving.device), DEVICE_SECONDS)
        except TimeoutError:
            return await quick_device()

    async def CheckHealth(self, request: pb.HealthRequest, context: grpc.aio.ServicerContext) -> common_pb2.Health:
        await _require(context)
        return self._health()

    def _health(self) -> common_pb2.Health:
        workplace = self._serving.workplace
        health = self._serving.health.sample(workplace.supervisor.pid)
        health.worker = workplace.supervisor.state
        health.spooled_results = len(workplace.spool)
        return health

    async def Logs(self, request: pb.LogsRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.LogChunk]:
        await _require(context, Role.COORDINATOR)
        paths = {"worker": self._serving.folder.worker_log, "daemon": self._serving.folder.daemon_log}
        if request.stream not in paths:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no log {request.stream!r}: worker or daemon")
        last_bytes = min(request.last_bytes or 64 * 1024, _MAX_LOG_BYTES)
        async for data in follow(paths[request.stream], last_bytes, on=request.follow):
            yield pb.LogChunk(data=data)

    async def Echo(self, request: pb.EchoMessage, context: grpc.aio.ServicerContext) -> pb.EchoMessage:
        await _require(context)
        if request.reply_bytes > _MAX_ECHO_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"an echo has {_MAX_ECHO_BYTES} bytes at most")
        return pb.EchoMessage(data=bytes(request.reply_bytes))

    async def MeasureLink(self, request: pb.LinkRequest, context: grpc.aio.ServicerContext) -> pb.LinkReport:
        await _require(context, Role.COORDINATOR)
        try:
            await preflight(request.address, self._serving.bundle, request.node_id)
            return await _measure_link(request, self._serving.bundle)
        except RealignError as error:
            return pb.LinkReport(error=str(error))
        except grpc.aio.AioRpcError as error:
            return pb.LinkReport(error=f"{error.code().name.lower()}: {error.details()}")

    # --- models -----------------------------------------------------------------------------------------------------

    async def ModelStatus(self, request: pb.ModelManifest, context: grpc.aio.ServicerContext) -> pb.ModelProgress:
        await _require(context, Role.COORDINATOR)
        try:
            return self._serving.models.status(request)
        except ModelRefused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def PutModel(
        self, request_iterator: AsyncIterator[pb.ModelChunk], context: grpc.aio.ServicerContext
    ) -> pb.ModelProgress:
        await _require(context, Role.COORDINATOR)
        model_hash = ""

        async def chunks() -> AsyncIterator[pb.ModelChunk]:
            nonlocal model_hash
            async for chunk in request_iterator:
                model_hash = model_hash or chunk.model_hash
                yield chunk

        try:
            progress = await self._serving.models.receive(chunks())
        except ModelRefused as error:
            log.warning("model transfer refused", why=error.message)
            code = grpc.StatusCode.FAILED_PRECONDITION
            if error.no_room:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
            elif error.resumable:
                code = grpc.StatusCode.ABORTED
            await context.abort(code, str(error))
            raise
        if progress.complete:
            await self._serving.workplace.model_arrived(model_hash)
        return progress

    # --- a run's stream ---------------------------------------------------------------------------------------------

    async def Session(
        self, request_iterator: AsyncIterator[pb.CoordinatorMessage], context: grpc.aio.ServicerContext
    ) -> None:
        caller = await _require(context, Role.COORDINATOR)
        try:
            first = await asyncio.wait_for(context.read(), HELLO_SECONDS)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the stream did not begin with a greeting")
            return
        if first is grpc.aio.EOF or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with a greeting")
            return
        info = await self._describe()  # before the claim: a lease must not run while MLX is being asked
        answer = self._admit(first.hello, caller)
        if isinstance(answer, pb.Refusal):
            log.warning("refused", run=first.hello.run_id, by=first.hello.coordinator, why=answer.message)
            await context.write(pb.NodeMessage(refusal=answer))
            return
        outbox = Outbox()
        spooled = self._serving.workplace.attach(outbox, answer)
        log.info("session", run=answer.run_id, epoch=answer.epoch, coordinator=answer.coordinator, spooled=len(spooled))
        try:
            welcome = pb.Welcome(info=info, spooled_attempts=spooled)
            await context.write(pb.NodeMessage(welcome=welcome))
            reason = await self._converse(context, outbox, answer)
        finally:
            self._serving.workplace.detach(outbox)
        log.info("session ended", run=answer.run_id, epoch=answer.epoch, why=reason)
        if reason and outbox.refusal is None:
            await context.abort(grpc.StatusCode.ABORTED, reason)

    def _admit(self, hello: pb.Hello, caller: PeerIdentity) -> Tenant | pb.Refusal:
        serving = self._serving
        codes = pb.Refusal
        if hello.versions.protocol != PROTOCOL_VERSION:
            return pb.Refusal(
                code=codes.VERSION,
                message=f"{serving.name} speaks protocol {PROTOCOL_VERSION} (realign-cluster "
                f"{serving.versions.project}), the coordinator {hello.versions.protocol} "
                f"({hello.versions.project or 'unknown version'})\n"
                "  fix: install the same version on both: realign-launch --hostfile FILE --install up",
            )
        if hello.node_id != serving.node_id:
            return pb.Refusal(
                code=codes.IDENTITY,
                message=f"this is {serving.node_id} ({serving.name}), not {hello.node_id}\n"
                "  fix: correct the address in the hostfile, or enrol this node again: realign-launch up",
            )
        if not hello.run_id or not hello.epoch:
            return pb.Refusal(code=codes.UNSPECIFIED, message="the greeting names no run or no epoch")
        if serving.workplace.stopping:
            return pb.Refusal(
                code=codes.STOPPING,
                message=f"{serving.name} is stopping\n  fix: start it again: realign-launch --hostfile FILE up",
            )
        free = free_disk_bytes(serving.folder.root)
        if free < MINIMUM_FREE_BYTES:
            return pb.Refusal(
                code=codes.DISK_FULL,
                message=f"{serving.name} has {free / 1e6:.0f} MB of disk left under {serving.folder.root}, "
                f"{MINIMUM_FREE_BYTES / 1e6:.0f} MB are needed\n  fix: free some there, or move its --state",
            )
        claim = serving.workplace.tenancy.claim(
            run_id=hello.run_id,
            epoch=hello.epoch,
            coordinator=hello.coordinator or caller.id,
            lease_seconds=hello.lease_seconds or 3.0,
            now=time.monotonic(),
        )
        if isinstance(claim, Denied):
            code = codes.HELD if claim.kind == "held" else codes.STALE_EPOCH
            return pb.Refusal(code=code, message=claim.message, holder=_holder(claim.tenant))
        return claim.tenant

    async def _converse(self, context: grpc.aio.ServicerContext, outbox: Outbox, tenant: Tenant) -> str:
        """Until a side ends the stream or the coordinator was silent for its lease. Returns why, if not clean."""
        tenancy = self._serving.workplace.tenancy
        reader = asyncio.create_task(self._read(context, tenant))
        writer = asyncio.create_task(self._write(context, outbox, tenant))
        ended = asyncio.create_task(outbox.ended.wait())
        tasks = {reader, writer, ended}
        looked = time.monotonic()
        try:
            while True:
                done, _ = await asyncio.wait(tasks, timeout=_WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                gap, looked = now - looked - _WATCH_SECONDS, now
                if gap > STALL_SECONDS:
                    tenancy.stalled(gap, now)
                if ended in done:
                    # The writer says the last word. Cut off within a message it could not: gRPC takes one at a time.
                    await asyncio.wait({writer}, timeout=LAST_WORD_SECONDS)
                    return "ended by this node"
                for task in done:
                    error = task.exception()
                    return f"broken: {type(error).__name__} {error}" if error else ""
                if tenancy.current(now) is None:
                    return f"nothing heard for {tenant.lease_seconds:g} s"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, context: grpc.aio.ServicerContext, tenant: Tenant) -> None:
        workplace = self._serving.workplace
        while True:
            message = await context.read()
            if message is grpc.aio.EOF:
                return
            workplace.tenancy.heard(tenant.run_id, tenant.epoch, time.monotonic())
            if message.HasField("beat"):
                continue
            await workplace.obey(message, tenant)
            if message.HasField("release"):
                return

    async def _write(self, context: grpc.aio.ServicerContext, outbox: Outbox, tenant: Tenant) -> None:
        sequence = 0
        next_beat = time.monotonic()
        while not outbox.ended.is_set():
            now = time.monotonic()
            if now >= next_beat:
                sequence += 1
                next_beat = max(next_beat + BEAT_SECONDS, now + BEAT_SECONDS / 2)
                await context.write(pb.NodeMessage(beat=self._beat(sequence)))
            if not await outbox.wait(max(0.0, next_beat - time.monotonic())):
                continue
            if (message := outbox.next_message()) is not None:
                await context.write(message)
            elif (attempt := outbox.next_result()) is not None:
                result = self._serving.workplace.spool.get(tenant.run_id, attempt)
                if result is not None:
                    await context.write(pb.NodeMessage(result=result))
        if outbox.refusal is not None:
            await context.write(pb.NodeMessage(refusal=outbox.refusal))

    def _beat(self, sequence: int) -> pb.NodeBeat:
        workplace = self._serving.workplace
        return pb.NodeBeat(
            sequence=sequence,
            health=self._health(),
            computing_attempt=workplace.computing_attempt,
            progress=workplace.supervisor.progress,
            phase=workplace.supervisor.phase,
        )


async def _require(context: grpc.aio.ServicerContext, role: Role | None = None) -> PeerIdentity:
    """Aborts the call unless the certificate on the other end has this role (any role of the cluster without one)."""
    try:
        caller = caller_identity(context)
    except CertificateError as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        raise
    if role is not None and caller.role is not role:
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{caller.id} is a {caller.role.value} of this cluster; only a {role.value} may ask for this",
        )
    return caller


def _holder(tenant: Tenant) -> common_pb2.Holder:
    return common_pb2.Holder(
        run_id=tenant.run_id,
        coordinator=tenant.coordinator,
        epoch=tenant.epoch,
        idle_seconds=tenant.silent_for(time.monotonic()),
    )


async def _measure_link(request: pb.LinkRequest, bundle: CertificateBundle) -> pb.LinkReport:
    size = min(request.bytes or 1024**2, _MAX_ECHO_BYTES)
    rounds = min(max(request.rounds, 1), 100)
    async with open_channel(request.address, bundle, request.node_id) as channel:
        stub: Any = node_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]
        await stub.Echo(pb.EchoMessage(), timeout=10.0)  # the handshake is not part of the link
        trips, transfers = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            await stub.Echo(pb.EchoMessage(), timeout=10.0)
            trips.append(time.perf_counter() - started)
        for _ in range(min(rounds, 5)):
            started = time.perf_counter()
            await stub.Echo(pb.EchoMessage(reply_bytes=size), timeout=60.0)
            transfers.append(time.perf_counter() - started)
    trip = statistics.median(trips)
    return pb.LinkReport(
        round_trip_seconds=trip, bytes_per_second=size / max(statistics.median(transfers) - trip, 1e-6)
    )
