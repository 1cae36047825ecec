"""A run's stream: admits or refuses its greeting, then carries messages both ways until one side ends."""

from __future__ import annotations

import asyncio
import time

import grpc
import structlog

from realign_cluster.node.outbox import Outbox
from realign_cluster.node.probe import free_disk_bytes
from realign_cluster.node.serving import Serving, holder_of
from realign_cluster.node.tenancy import Denied, Tenant
from realign_cluster.rpc.certificates import PeerIdentity
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.versions import PROTOCOL_VERSION

log = structlog.get_logger()

BEAT_SECONDS = 0.5
HELLO_SECONDS = 10.0
LAST_WORD_SECONDS = 1.0
MINIMUM_FREE_BYTES = 32 * 1024**2
_WATCH_SECONDS = 0.25


class RunStream:
    """One call of Session. `caller` is a coordinator of this cluster."""

    def __init__(self, serving: Serving, context: grpc.aio.ServicerContext, caller: PeerIdentity) -> None:
        self._serving = serving
        self._context = context
        self._caller = caller

    async def run(self) -> None:
        """The whole call. Ends it with a status only when something was wrong."""
        context = self._context
        try:
            first = await asyncio.wait_for(context.read(), HELLO_SECONDS)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the stream did not begin with a greeting")
            return
        if first is grpc.aio.EOF or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with a greeting")
            return
        info = await self._serving.describe()  # before the claim: a lease must not run while MLX is being asked
        answer = self.admit(first.hello)
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
            reason = await self._converse(outbox, answer)
        finally:
            self._serving.workplace.detach(outbox)
        log.info("session ended", run=answer.run_id, epoch=answer.epoch, why=reason)
        if reason and outbox.refusal is None:
            await context.abort(grpc.StatusCode.ABORTED, reason)

    def admit(self, hello: pb.Hello) -> Tenant | pb.Refusal:
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
            coordinator=hello.coordinator or self._caller.id,
            lease_seconds=hello.lease_seconds or 3.0,
            now=time.monotonic(),
        )
        if isinstance(claim, Denied):
            code = codes.HELD if claim.kind == "held" else codes.STALE_EPOCH
            return pb.Refusal(code=code, message=claim.message, holder=holder_of(claim.tenant))
        return claim.tenant

    async def _converse(self, outbox: Outbox, tenant: Tenant) -> str:
        """Until a side ends the stream or the coordinator was silent for its lease. Returns why, if not clean."""
        workplace = self._serving.workplace
        reader = asyncio.create_task(self._read(tenant))
        writer = asyncio.create_task(self._write(outbox, tenant))
        ended = asyncio.create_task(outbox.ended.wait())
        tasks = {reader, writer, ended}
        try:
            while True:
                done, _ = await asyncio.wait(tasks, timeout=_WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                holder = workplace.holder()
                if ended in done:
                    # The writer says the last word. Cut off within a message it could not: gRPC takes one at a time.
                    await asyncio.wait({writer}, timeout=LAST_WORD_SECONDS)
                    return "ended by this node"
                for task in done:
                    error = task.exception()
                    return f"broken: {type(error).__name__} {error}" if error else ""
                if holder is None:
                    return f"nothing heard for {tenant.lease_seconds:g} s"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, tenant: Tenant) -> None:
        workplace = self._serving.workplace
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            workplace.tenancy.heard(tenant.run_id, tenant.epoch, time.monotonic())
            if message.HasField("beat"):
                continue
            await workplace.obey(message, tenant)
            if message.HasField("release"):
                return

    async def _write(self, outbox: Outbox, tenant: Tenant) -> None:
        sequence = 0
        next_beat = time.monotonic()
        while not outbox.ended.is_set():
            now = time.monotonic()
            if now >= next_beat:
                sequence += 1
                next_beat = max(next_beat + BEAT_SECONDS, now + BEAT_SECONDS / 2)
                await self._context.write(pb.NodeMessage(beat=self._beat(sequence)))
            if not await outbox.wait(max(0.0, next_beat - time.monotonic())):
                continue
            if (message := outbox.next_message()) is not None:
                await self._context.write(message)
            elif (attempt := outbox.next_result()) is not None:
                result = self._serving.workplace.spool.get(tenant.run_id, attempt)
                if result is not None:
                    await self._context.write(pb.NodeMessage(result=result))
        if outbox.refusal is not None:
            await self._context.write(pb.NodeMessage(refusal=outbox.refusal))

    def _beat(self, sequence: int) -> pb.NodeBeat:
        workplace = self._serving.workplace
        return pb.NodeBeat(
            sequence=sequence,
            health=self._serving.health_now(),
            computing_attempt=workplace.computing_attempt,
            progress=workplace.supervisor.progress,
            phase=workplace.supervisor.phase,
            rank=workplace.training.beat(),
        )
