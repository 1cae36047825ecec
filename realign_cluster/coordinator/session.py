"""One node's stream for one run: dials, greets, prepares, sends leases down, hands what comes up to the engine's inbox.

Reconnects for as long as the run wants the node. Decides nothing: whether a silent node is lost is for
`domain.liveness`, what its results are worth for `domain.scheduler`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import grpc
import grpc.aio
import structlog

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
from realign_cluster.coordinator.model_transfer import ModelSource, send_model
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import RealignError
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb import node_pb2_grpc as pb_grpc

log = structlog.get_logger()

BEAT_SECONDS = 0.5
LEASE_SECONDS = 3.0
GREETING_SECONDS = 10.0
RECONNECT_SECONDS = (0.1, 0.25, 0.5, 1.0)
OUTBOX_LIMIT = 4096
UPLOAD_RETRY_SECONDS = 1.0
NOT_TO_BE_HAD = frozenset(  # no room, damaged, not allowed: sending the model again would not help
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


class Session:
    """The run's end of a node's stream. What cannot be sent now is sent after the reconnect or not at all."""

    def __init__(
        self,
        address: NodeAddress,
        *,
        hello: pb.Hello,
        prepare: pb.Prepare,
        model: ModelSource | None,
        inbox: Inbox,
    ) -> None:
        self.address = address
        self.name = address.name
        self._hello = hello
        self._prepare = prepare
        self._model = model
        self._inbox = inbox
        self._outbox: asyncio.Queue[pb.CoordinatorMessage] = asyncio.Queue(OUTBOX_LIMIT)
        self._outstanding: dict[int, pb.Assign] = {}  # sent or to be sent, no result yet: sent again after a reconnect
        self._closing = False
        self._welcomed = False
        self._call: grpc.aio.StreamStreamCall | None = None
        self._held_since: float | None = None
        self._ended = asyncio.Event()  # the node closed the stream after our goodbye, or barred us

    # --- what the engine asks ---

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

    def restart_worker(self, reason: str) -> None:
        self._outstanding.clear()
        self._put(pb.CoordinatorMessage(restart_worker=pb.RestartWorker(reason=reason)))

    def start_over(self) -> None:
        """The scheduler took every attempt from this node: whatever comes of it next begins with a new greeting."""
        self._outstanding.clear()
        if self._call is not None:
            self._call.cancel()

    def _put(self, message: pb.CoordinatorMessage) -> None:
        if not self._welcomed:
            return  # a reconnect starts from `_outstanding`; acks of an older stream mean nothing to the new one
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:  # the node has not read for thousands of messages: the next stream begins afresh
            log.warning("outbox full", node=self.name)
            if self._call is not None:
                self._call.cancel()

    # --- life ---

    async def run(self) -> None:
        """Until `release`, or until the node bars this run."""
        try:
            await self._run()
        finally:
            self._ended.set()

    async def _run(self) -> None:
        tries = 0
        while not self._closing:
            try:
                barred = await self._one_stream()
                if barred is not None and not self._may_wait_out(barred):
                    await self._tell(barred)
                    return
                tries = 0 if barred is None else len(RECONNECT_SECONDS)
                reason = "the stream ended"
            except RealignError as error:
                reason = str(error)
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name.lower()}: {error.details() or 'no details'}"
            except TimeoutError:
                reason = f"{self.name} did not answer the greeting within {GREETING_SECONDS:g} s"
            except asyncio.InvalidStateError:  # gRPC's word for a write to a stream that has just ended
                reason = "the stream broke"
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                reason = f"{self.name} fell silent: greeting it again"  # `start_over` cut the stream
            if self._welcomed:
                tries = 0
            self._welcomed = False
            if self._closing:
                return
            await self._tell(Disconnected(reason=reason))
            await asyncio.sleep(RECONNECT_SECONDS[min(tries, len(RECONNECT_SECONDS) - 1)])
            tries += 1

    async def release(self, reason: str, timeout: float = 2.0) -> None:
        """Say goodbye so that the node is free at once; a node that does not answer frees itself after its lease."""
        self._closing = True
        if self._welcomed:
            self._put(pb.CoordinatorMessage(release=pb.Release(reason=reason)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), timeout)

    async def _one_stream(self) -> Barred | None:
        await self.address.verify()
        hello = pb.Hello()
        hello.CopyFrom(self._hello)
        hello.node_id = self.address.node_id
        async with self.address.channel() as channel:
            stub = pb_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]
            call = self._call = stub.Session()
            await call.write(pb.CoordinatorMessage(hello=hello))
            first = await asyncio.wait_for(call.read(), timeout=GREETING_SECONDS)
            if first is grpc.aio.EOF:
                raise RealignError(f"{self.name} closed the stream before it answered")
            if first.HasField("refusal"):
                return self._barred(first.refusal)
            if not first.HasField("welcome"):
                raise RealignError(f"{self.name} did not answer the greeting")
            while not self._outbox.empty():
                self._outbox.get_nowait()
            self._welcomed = True
            await self._tell(Connected(info=first.welcome.info))
            await call.write(pb.CoordinatorMessage(prepare=self._prepare))
            for assign in list(self._outstanding.values()):
                await call.write(pb.CoordinatorMessage(assign=assign))
            async with _background(self._write(call)) as writer, _Uploads() as uploads:
                while True:
                    reading = asyncio.ensure_future(call.read())
                    if not writer.done():
                        await asyncio.wait({reading, writer}, return_when=asyncio.FIRST_COMPLETED)
                        if writer.done():
                            writer.result()  # raises what broke the stream; after a goodbye only reading is left
                    message = await reading
                    if message is grpc.aio.EOF:
                        self._welcomed = False
                        return None
                    if message.HasField("refusal"):
                        if message.refusal.code == pb.Refusal.STOPPING:
                            self._outstanding.clear()
                            await self._tell(Left(reason=message.refusal.message))
                        return self._barred(message.refusal)
                    if message.HasField("model_needed"):
                        uploads.start(self._upload(channel))
                        continue
                    if message.HasField("result"):
                        self._outstanding.pop(message.result.attempt, None)
                    elif message.HasField("unit_failed"):
                        self._outstanding.pop(message.unit_failed.attempt, None)
                    elif message.HasField("worker_exited"):
                        self._outstanding.clear()
                    await self._tell(message)

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        beats = 0
        loop = asyncio.get_running_loop()
        next_beat = loop.time()
        while True:
            wait = max(0.0, next_beat - loop.time())
            try:
                message = self._outbox.get_nowait() if wait == 0.0 else await asyncio.wait_for(self._outbox.get(), wait)
            except (asyncio.QueueEmpty, TimeoutError):
                message = None
            if message is not None:
                await call.write(message)
                if message.HasField("release"):
                    await call.done_writing()
                    return
            if loop.time() >= next_beat:
                beats += 1
                await call.write(pb.CoordinatorMessage(beat=pb.CoordinatorBeat(sequence=beats)))
                next_beat = loop.time() + BEAT_SECONDS

    async def _upload(self, channel: grpc.aio.Channel) -> None:
        if self._model is None:
            await self._tell(Barred(kind="model", message=f"{self.name} asks for a model, but this run has none"))
            return
        while True:
            try:
                async for sent, total in send_model(pb_grpc.NodeStub(channel), self._model):  # type: ignore[no-untyped-call]
                    await self._tell(ModelProgress(sent=sent, total=total))
                return
            except (RealignError, OSError) as error:  # OSError: the model's files cannot be read here
                await self._tell(Barred(kind="model", message=f"{self.name}: {error}"))
                return
            except grpc.aio.AioRpcError as error:
                if error.code() in NOT_TO_BE_HAD:
                    await self._tell(Barred(kind="model", message=f"{self.name}: {error.details()}"))
                    return
                log.warning("model transfer broke off, it resumes", node=self.name, why=error.details())
                await asyncio.sleep(UPLOAD_RETRY_SECONDS)

    def _may_wait_out(self, barred: Barred) -> bool:
        """Whether who holds the node may be gone: then its lease ends within LEASE_SECONDS."""
        now = asyncio.get_running_loop().time()
        if barred.kind != "held":
            return False
        if self._held_since is None:
            self._held_since = now
        return now - self._held_since < LEASE_SECONDS + 1.0

    def _barred(self, refusal: pb.Refusal) -> Barred | None:
        codes = pb.Refusal.Code
        message = f"{self.name}: {refusal.message}"
        if refusal.code == codes.HELD:
            return Barred(kind="held", message=message)
        if refusal.code == codes.VERSION:
            return Barred(kind="version", message=message)
        if refusal.code == codes.IDENTITY:
            return Barred(kind="identity", message=message)
        if refusal.code == codes.STALE_EPOCH:
            return Barred(kind="epoch", message=message)
        raise RealignError(message)  # stopping, disk full: may pass

    async def _tell(self, report: Report) -> None:
        await self._inbox.put(Incoming(node=self.name, report=report))


@contextlib.asynccontextmanager
async def _background(coroutine):  # type: ignore[no-untyped-def]
    task = asyncio.ensure_future(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task


class _Uploads:
    """At most one model transfer on a stream, ended with it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self, coroutine) -> None:  # type: ignore[no-untyped-def]
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(coroutine)
        else:
            coroutine.close()

    async def __aenter__(self) -> _Uploads:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await self._task
