"""The coordinator's end of a session, by hand: what tests of the daemon say and expect, message by message."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc

from realign_cluster.domain.job import ModelSpec, ScoreJob
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.channel import open_channel
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb.common_pb2 import WorkerState
from realign_cluster.rpc.pb.node_pb2_grpc import NodeStub
from realign_cluster.rpc.versions import local_versions
from tests.cluster_kit import DaemonProcess

NOOP = ScoreJob(kinds=("noop",), model=ModelSpec(name="none", hash="none"))
WAIT_SECONDS = 20.0


def rows(*faults: str, count: int = 3) -> bytes:
    """Raw rows of a unit; a fault is what the worker does when it computes that row (needs REALIGN_FAULTS=1)."""
    made = [{"prompt": f"p{number}", "response": "r"} for number in range(count)]
    made += [{"__realign_fault__": fault} for fault in faults]
    return b"\n".join(json.dumps(row).encode() for row in made)


class Stream:
    """Beats until told to be silent. `expect` skips beats and measuring."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._writing = asyncio.Lock()
        self._beating: asyncio.Task[None] | None = None
        self.ended: grpc.aio.AioRpcError | None = None  # how, if not in order

    async def send(self, **body: Any) -> None:
        async with self._writing:
            await self._call.write(pb.CoordinatorMessage(**body))

    def start_beating(self) -> None:
        self._beating = asyncio.create_task(self._beat())

    def fall_silent(self) -> None:
        assert self._beating is not None
        self._beating.cancel()

    async def _beat(self) -> None:
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            for sequence in range(1, 1_000_000):
                await self.send(beat=pb.CoordinatorBeat(sequence=sequence))
                await asyncio.sleep(0.2)

    async def next(self, timeout: float = WAIT_SECONDS) -> pb.NodeMessage | None:
        """Anything, beats included; None at the end of the stream."""
        try:
            message = await asyncio.wait_for(self._call.read(), timeout)
        except grpc.aio.AioRpcError as error:
            self.ended = error
            return None
        if message is grpc.aio.EOF:
            return None
        return message  # type: ignore[no-any-return]

    async def expect(self, kind: str, timeout: float = WAIT_SECONDS) -> Any:
        """The next message that is news, which must be of this kind ("end" for the end of the stream)."""
        message = await self.news(timeout)
        if message is None:
            assert kind == "end", f"the stream ended before {kind}"
            return None
        found = message.WhichOneof("body")
        assert found == kind, f"expected {kind}, got {str(message)[:500]}"
        return getattr(message, found)

    async def news(self, timeout: float = WAIT_SECONDS) -> pb.NodeMessage | None:
        """The next message that is neither a beat nor about measuring; None at the end of the stream."""
        async with asyncio.timeout(timeout):
            while True:
                message = await self.next(timeout)
                if message is None or message.WhichOneof("body") not in ("beat", "measuring"):
                    return message

    async def until_beat(self, **wanted: object) -> pb.NodeBeat:
        """A beat that says so (any without `wanted`)."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                message = await self.next()
                assert message is not None
                if message.HasField("beat") and all(
                    getattr(message.beat, key) == value for key, value in wanted.items()
                ):
                    return message.beat

    async def settled_computing_attempt(self) -> int:
        """What a stopped worker computes, once two beats in a row say the same: its last frames have been read."""
        before = -1
        while (now := (await self.until_beat()).computing_attempt) != before:
            before = now
        return now

    async def prepare(self, job: ScoreJob = NOOP, **more: Any) -> Any:
        await self.send(prepare=pb.Prepare(job=job.model_dump_json().encode(), measure="none", **more))
        return await self.expect("worker_ready")

    async def assign(self, attempt: int, data: bytes | None = None) -> None:
        data = rows() if data is None else data
        await self.send(
            assign=pb.Assign(
                lease=1, attempt=attempt, unit=attempt + 1000, rows=data, count=data.count(b"\n") + 1, cost=1.0
            )
        )

    async def acknowledge(self, attempts: Iterable[int]) -> None:
        await self.send(ack=pb.Ack(attempts=attempts))

    async def release(self) -> None:
        await self.send(release=pb.Release(reason="done"))
        await self.expect("end")

    def close(self) -> None:
        """As a coordinator that is killed."""
        self._call.cancel()


def hello(daemon: DaemonProcess, run: str = "run-1", epoch: int = 1, lease: float = 3.0) -> pb.Hello:
    return pb.Hello(
        run_id=run,
        epoch=epoch,
        coordinator=f"ada@mac pid {epoch}",
        versions=local_versions(),
        lease_seconds=lease,
        node_id=daemon.node_id,
    )


async def until_worker_is(daemon: DaemonProcess, bundle: CertificateBundle, state: WorkerState) -> None:
    async with open_channel(daemon.address, bundle, daemon.node_id) as channel, asyncio.timeout(WAIT_SECONDS):
        while (await NodeStub(channel).CheckHealth(pb.HealthRequest(), timeout=10)).worker != state:
            pass


@contextlib.asynccontextmanager
async def dialled(daemon: DaemonProcess, bundle: CertificateBundle, greeting: pb.Hello) -> AsyncIterator[Stream]:
    """A stream on which the greeting was sent; the answer is yet to be read."""
    async with open_channel(daemon.address, bundle, daemon.node_id) as channel:
        call = NodeStub(channel).Session()
        stream = Stream(call)
        await stream.send(hello=greeting)
        yield stream
        call.cancel()


@contextlib.asynccontextmanager
async def session(
    daemon: DaemonProcess, bundle: CertificateBundle, run: str = "run-1", epoch: int = 1, lease: float = 3.0
) -> AsyncIterator[Stream]:
    """A welcomed stream that beats. `stream.welcome` is what the node answered."""
    async with dialled(daemon, bundle, hello(daemon, run, epoch, lease)) as stream:
        stream.welcome = await stream.expect("welcome")  # type: ignore[attr-defined]
        stream.start_beating()
        yield stream
        stream.fall_silent()
