"""The preflight names what gRPC would only call UNAVAILABLE: against real gRPC servers with real certificates."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from realign_cluster.rpc.certificates import Authority, CertificateBundle, Role, make_key_and_request
from realign_cluster.rpc.channel import (
    SERVER_OPTIONS,
    PeerRefused,
    fetch_certificate,
    open_channel,
    preflight,
    server_credentials,
    split_address,
)
from realign_cluster.rpc.pb.common_pb2 import NodeInfo
from realign_cluster.rpc.pb.node_pb2 import DescribeRequest
from realign_cluster.rpc.pb.node_pb2_grpc import NodeServicer, NodeStub, add_NodeServicer_to_server

Serve = Callable[[CertificateBundle], Awaitable[str]]


class Described(NodeServicer):
    async def Describe(self, request: DescribeRequest, context: grpc.aio.ServicerContext) -> NodeInfo:
        return NodeInfo(node_id="n-1")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers = []

    async def start(bundle: CertificateBundle) -> str:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        add_NodeServicer_to_server(Described(), server)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(bundle))
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ours")


@pytest.fixture
def coordinator(authority: Authority) -> CertificateBundle:
    return authority.issue("coordinator-1", Role.COORDINATOR)


def dated(authority: Authority, id: str, role: Role, days_from_now: int) -> CertificateBundle:
    """Valid for one day, from so many days from now."""
    key, request = make_key_and_request(id)
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days_from_now)
    certificate = authority.sign(request, role=role, id=id, now=start, days=1)
    return CertificateBundle(key_pem=key, certificate_pem=certificate, authority_pem=authority.certificate_pem)


async def refusal(address: str, bundle: CertificateBundle, node_id: str = "n-1", timeout: float = 5.0) -> PeerRefused:
    with pytest.raises(PeerRefused) as refused:
        await preflight(address, bundle, node_id, timeout)
    assert refused.value.fix
    assert refused.value.exit_code == 3
    return refused.value


async def test_a_node_of_the_cluster_passes(serve: Serve, authority: Authority, coordinator: CertificateBundle) -> None:
    node = authority.issue("n-1", Role.NODE)
    address = await serve(node)
    assert await preflight(address, coordinator, "n-1") == node.fingerprint
    async with open_channel(address, coordinator, "n-1") as channel:
        assert (await NodeStub(channel).Describe(DescribeRequest(), timeout=5)).node_id == "n-1"


async def test_a_wrong_host_is_named(serve: Serve, authority: Authority, coordinator: CertificateBundle) -> None:
    address = await serve(authority.issue("n-2", Role.NODE))
    refused = await refusal(address, coordinator)
    assert refused.reason == "wrong-host"
    assert "is n-2, not n-1" in refused.message
    async with open_channel(address, coordinator, "n-1") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await NodeStub(channel).Describe(DescribeRequest(), timeout=5)


@pytest.mark.parametrize(("days", "reason"), [(-10, "expired"), (10, "not-yet-valid")])
async def test_a_node_certificate_out_of_its_dates(
    serve: Serve, authority: Authority, coordinator: CertificateBundle, days: int, reason: str
) -> None:
    address = await serve(dated(authority, "n-1", Role.NODE, days))
    assert (await refusal(address, coordinator)).reason == reason


@pytest.mark.parametrize(("days", "reason"), [(-10, "expired"), (10, "not-yet-valid")])
async def test_our_own_certificate_out_of_its_dates(serve: Serve, authority: Authority, days: int, reason: str) -> None:
    address = await serve(authority.issue("n-1", Role.NODE))
    refused = await refusal(address, dated(authority, "coordinator-1", Role.COORDINATOR, days))
    assert refused.reason == reason
    assert "our own" in refused.message


async def test_a_node_of_another_cluster(serve: Serve, coordinator: CertificateBundle, tmp_path: Path) -> None:
    address = await serve(Authority.create(tmp_path / "theirs").issue("n-1", Role.NODE))
    assert (await refusal(address, coordinator)).reason == "foreign"


async def test_a_node_that_does_not_take_our_certificate(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    address = await serve(authority.issue("n-1", Role.NODE))
    theirs = Authority.create(tmp_path / "theirs").issue("coordinator-1", Role.COORDINATOR)
    mixed = CertificateBundle(
        key_pem=theirs.key_pem, certificate_pem=theirs.certificate_pem, authority_pem=authority.certificate_pem
    )
    refused = await refusal(address, mixed)
    assert refused.reason == "foreign"
    assert "does not accept our certificate" in refused.message


async def test_nothing_listens(coordinator: CertificateBundle) -> None:
    assert (await refusal("127.0.0.1:1", coordinator)).reason == "not-listening"
    assert (await refusal("no-such-host.invalid:1", coordinator)).reason == "not-listening"
    assert (await refusal("no port", coordinator)).reason == "not-listening"


async def test_something_else_listens_or_says_nothing(coordinator: CertificateBundle) -> None:
    async def answer_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)
        writer.close()

    for handler, reason in ((answer_http, "not-realign"), (say_nothing, "timeout")):
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await refusal(address, coordinator, timeout=0.5)).reason == reason
        server.close()


async def test_the_shown_certificate_can_be_pinned(serve: Serve, authority: Authority) -> None:
    node = authority.issue("n-1", Role.NODE)
    from realign_cluster.rpc.certificates import fingerprint_of_der

    assert fingerprint_of_der(await fetch_certificate(await serve(node))) == node.fingerprint


def test_addresses() -> None:
    assert split_address("10.0.0.1:5") == ("10.0.0.1", 5)
    assert split_address("[fe80::1]:5") == ("fe80::1", 5)
    for wrong in ("10.0.0.1", ":5", "a:b"):
        with pytest.raises(ValueError):
            split_address(wrong)
