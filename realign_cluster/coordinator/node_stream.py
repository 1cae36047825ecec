"""One node's stream for one run: dials, greets, beats, brings models, hands what comes up to the engine's inbox.

Reconnects for as long as the run wants the node. Decides nothing: whether a silent node is lost is for
`domain.liveness`. What a kind of run says and hears on it is in `session` and `training_session`.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import getpass
import os
import socket
from collections.abc import Coroutine, Iterable
from typing import Any

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
from realign_cluster.rpc.versions import local_versions

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


class NodeStream(abc.ABC):
    """The run's end of a node's stream. `sources` are the models (and prepared data) that the node may ask for."""

    def __init__(self, address: NodeAddress, *, hello: pb.Hello, sources: Iterable[ModelSource], inbox: Inbox) -> None:
        self.address = address
        self.name = address.name
        self._hello = hello
        self._sources = {source.spec.hash: source for source in sources}
        self._inbox = inbox
        self._outbox: asyncio.Queue[pb.CoordinatorMessage] = asyncio.Queue(OUTBOX_LIMIT)
        self._closing = False
        self._welcomed = False
        self._call: grpc.aio.StreamStreamCall | None = None
        self._held_since: float | None = None
        self._ended = asyncio.Event()  # the node closed the stream after our goodbye, or barred us

    # --- what a kind of run adds ---

    @abc.abstractmethod
    def _opening(self) -> Iterable[pb.CoordinatorMessage]:
        """What a stream begins with, after the greeting: nothing of an older one is known to have arrived."""

    @abc.abstractmethod
    def _notice(self, message: pb.NodeMessage) -> bool:
        """Keeps account of what comes up. Whether the engine is to hear it."""

    # --- what the engine asks ---

    def start_over(self) -> None:
        """The node was given up: whatever comes of it next begins with a new greeting."""
        if self._call is not None:
            self._call.cancel()

    def _put(self, message: pb.CoordinatorMessage) -> None:
        if not self._welcomed:
            return  # a reconnect begins with `_opening`
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
            for message in list(self._opening()):
                await call.write(message)
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
                    heard = self._notice(message)
                    if message.HasField("refusal"):
                        if message.refusal.code == pb.Refusal.STOPPING:
                            await self._tell(Left(reason=message.refusal.message))
                        return self._barred(message.refusal)
                    if message.HasField("model_needed"):
                        wanted = message.model_needed.model_hash
                        uploads.start(wanted, self._upload(channel, wanted))
                    elif heard:
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

    async def _upload(self, channel: grpc.aio.Channel, model_hash: str) -> None:
        if (source := self._sources.get(model_hash)) is None:
            await self._tell(Barred(kind="model", message=f"{self.name} asks for a model, but this run has none"))
            return
        while True:
            try:
                async for sent, total in send_model(pb_grpc.NodeStub(channel), source):  # type: ignore[no-untyped-call]
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
    """The model transfers of a stream, at most one of each model; they end with it."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, model_hash: str, upload: Coroutine[Any, Any, None]) -> None:
        before = self._tasks.get(model_hash)
        if before is None or before.done():
            self._tasks[model_hash] = asyncio.create_task(upload)
        else:
            upload.close()

    async def __aenter__(self) -> _Uploads:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        for task in self._tasks.values():
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await task


def greeting(run_id: str, epoch: int) -> pb.Hello:
    """Without the node's id, which the stream knows."""
    return pb.Hello(
        run_id=run_id,
        epoch=epoch,
        coordinator=coordinator_name(),
        versions=local_versions(),
        lease_seconds=LEASE_SECONDS,
    )


def coordinator_name() -> str:
    """Who has a node, in the words of whoever is refused because of it."""
    return f"{getpass.getuser()}@{socket.gethostname()} pid {os.getpid()}"
