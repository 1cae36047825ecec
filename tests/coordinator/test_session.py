"""The coordinator's end of a stream against a real server over mTLS that misbehaves as nodes do: whatever happens in a
greeting or after it, the node is greeted again for as long as the run wants it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest

from realign_cluster.coordinator import node_stream
from realign_cluster.coordinator.home import ClusterHome, NodeRequest
from realign_cluster.coordinator.inbox import Connected, Disconnected, Inbox
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.session import Session
from realign_cluster.domain.ids import NodeId, NodeName
from realign_cluster.domain.job import ModelSpec
from realign_cluster.rpc.certificates import CertificateBundle, make_key_and_request
from realign_cluster.rpc.channel import server_credentials
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb import node_pb2_grpc

Talk = Callable[[grpc.aio.ServicerContext], Awaitable[None]]
Greet = Callable[..., Awaitable[tuple[Session, Inbox]]]
NODE = "n-1"


class Node(node_pb2_grpc.NodeServicer):
    """Reads the greeting of each stream, then does what the next of `talks` says; the last one holds for all others."""

    def __init__(self, *talks: Talk) -> None:
        self.talks = list(talks)
        self.streams = 0
        self.greeted = asyncio.Event()

    async def Session(self, request_iterator: object, context: grpc.aio.ServicerContext) -> None:
        talk = self.talks[min(self.streams, len(self.talks) - 1)]
        self.streams += 1
        assert (await context.read()).HasField("hello")
        self.greeted.set()
        await talk(context)


async def say_nothing(_: grpc.aio.ServicerContext) -> None:
    await asyncio.Event().wait()


async def welcome(context: grpc.aio.ServicerContext) -> None:
    await context.write(pb.NodeMessage(welcome=pb.Welcome()))
    while await context.read() is not grpc.aio.EOF:
        pass


@pytest.fixture
async def greeted(tmp_path: Path) -> AsyncIterator[Greet]:
    """Starts the node's server and a session that greets it."""
    home = ClusterHome(tmp_path / "cluster")
    key, request = make_key_and_request(NODE)
    signed = home.sign_node(NodeRequest(node_id=NODE, name="studio", request_pem=request))
    bundle = CertificateBundle(key_pem=key, certificate_pem=signed.certificate_pem, authority_pem=signed.authority_pem)
    server = grpc.aio.server()
    tasks: list[asyncio.Task[None]] = []

    async def start(node: Node, model: ModelSource | None = None) -> tuple[Session, Inbox]:
        node_pb2_grpc.add_NodeServicer_to_server(node, server)  # type: ignore[no-untyped-call]
        port = server.add_secure_port("127.0.0.1:0", server_credentials(bundle))
        await server.start()
        address = NodeAddress(
            name=NodeName("studio"),
            node_id=NodeId(NODE),
            address=f"127.0.0.1:{port}",
            bundle=home.bundle(),
            home=home,
        )
        inbox: Inbox = asyncio.Queue()
        session = Session(
            address, hello=pb.Hello(), prepare=pb.Prepare(), sources=(() if model is None else (model,)), inbox=inbox
        )
        tasks.append(asyncio.create_task(session.run()))
        return session, inbox

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.stop(None)


async def until(inbox: Inbox, kind: type[object]) -> object:
    while True:
        item = await asyncio.wait_for(inbox.get(), 10)
        report = getattr(item, "report", None)
        if isinstance(report, kind):
            return report


async def test_a_node_that_does_not_answer_a_greeting_is_greeted_again(
    greeted: Greet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_stream, "GREETING_SECONDS", 0.3)
    node = Node(say_nothing, welcome)
    _, inbox = await greeted(node)
    assert "did not answer" in (await until(inbox, Disconnected)).reason  # type: ignore[attr-defined]
    await until(inbox, Connected)
    assert node.streams == 2


async def test_a_node_that_is_lost_while_it_is_greeted_is_greeted_again(
    greeted: Greet,
) -> None:
    """Its lease ran out while the answer was on its way: the stream is cut by us, the session is not."""
    node = Node(say_nothing, welcome)
    session, inbox = await greeted(node)
    await asyncio.wait_for(node.greeted.wait(), 10)
    session.start_over()
    await until(inbox, Connected)
    assert node.streams == 2


async def test_a_stream_that_breaks_while_units_are_sent_again_is_made_anew(
    greeted: Greet,
) -> None:
    async def break_off(context: grpc.aio.ServicerContext) -> None:
        await context.write(pb.NodeMessage(welcome=pb.Welcome()))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the machine goes down")

    node = Node(*[break_off] * 20, welcome)
    session, inbox = await greeted(node)
    session.assign(pb.Assign(attempt=attempt, unit=attempt, rows=b"x" * 200_000, count=1) for attempt in range(1, 40))
    while node.streams < 21:
        await until(inbox, Connected)


class NodeWithoutModel(Node):
    """Breaks off the first transfers of its model, each after a few chunks."""

    def __init__(self, breaks: int) -> None:
        super().__init__(self._ask)
        self._breaks = breaks
        self.whole = asyncio.Event()

    async def _ask(self, context: grpc.aio.ServicerContext) -> None:
        await context.write(pb.NodeMessage(welcome=pb.Welcome()))
        await context.write(pb.NodeMessage(model_needed=pb.ModelNeeded(model_hash="h")))
        while await context.read() is not grpc.aio.EOF:
            pass

    async def ModelStatus(self, request: pb.ModelManifest, context: grpc.aio.ServicerContext) -> pb.ModelProgress:
        return pb.ModelProgress(disk_free_bytes=1 << 40)

    async def PutModel(self, request_iterator: object, context: grpc.aio.ServicerContext) -> pb.ModelProgress:
        self._breaks -= 1
        if self._breaks >= 0:
            for _ in range(3):
                await context.read()
            await context.abort(grpc.StatusCode.ABORTED, "the disk was slow")
        while await context.read() is not grpc.aio.EOF:
            pass
        self.whole.set()
        return pb.ModelProgress(complete=True)


async def test_a_model_transfer_that_the_node_breaks_off_is_made_again(
    greeted: Greet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_stream, "UPLOAD_RETRY_SECONDS", 0.05)
    (tmp_path / "weights").write_bytes(bytes(64 << 20))
    spec = ModelSpec.model_validate(
        {"name": "m", "hash": "h", "files": [{"path": "weights", "size": 64 << 20, "blake2b": "0" * 32}]}
    )
    node = NodeWithoutModel(breaks=6)
    await greeted(node, ModelSource(folder=tmp_path, spec=spec))
    await asyncio.wait_for(node.whole.wait(), 20)
    assert node.streams == 1
