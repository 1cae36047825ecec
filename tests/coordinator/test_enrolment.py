"""The join code's listener: one node, one secret, few guesses, little time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from realign_cluster.coordinator.enrolment import MOST_WRONG_SECRETS, Enrolment, EnrolmentClosed, own_addresses
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.domain.errors import UsageError
from realign_cluster.rpc.certificates import ENROLMENT_NAME, fingerprint, fingerprint_of_der, make_key_and_request
from realign_cluster.rpc.channel import fetch_certificate
from realign_cluster.rpc.join_code import JoinCode, decode_join_code
from realign_cluster.rpc.pb import coordinator_pb2 as pb
from realign_cluster.rpc.pb import coordinator_pb2_grpc as pb_grpc


@pytest.fixture
async def enrolment(tmp_path: Path) -> AsyncIterator[Enrolment]:
    async with Enrolment(ClusterHome(tmp_path / "cluster"), "127.0.0.1", seconds=30) as enrolment:
        yield enrolment


async def ask(code: JoinCode, secret: str | None = None, request_pem: bytes | None = None) -> pb.EnrolReply:
    pem = ssl.DER_cert_to_PEM_cert(await fetch_certificate(code.address)).encode()
    options = (("grpc.ssl_target_name_override", ENROLMENT_NAME),)
    async with grpc.aio.secure_channel(code.address, grpc.ssl_channel_credentials(pem), options=options) as channel:
        request = pb.EnrolRequest(
            secret=code.secret.hex() if secret is None else secret,
            node_id="n-1",
            name="alpha",
            request_pem=make_key_and_request("n-1")[1] if request_pem is None else request_pem,
        )
        return await pb_grpc.EnrolmentStub(channel).Enrol(request, timeout=10)


async def test_the_code_pins_the_listener_and_works_once(enrolment: Enrolment, tmp_path: Path) -> None:
    code = decode_join_code(enrolment.code)
    assert fingerprint_of_der(await fetch_certificate(code.address)) == code.listener_sha256.hex()
    reply = await ask(code)
    assert reply.error == ""
    assert ClusterHome(tmp_path / "cluster").trusted(fingerprint(reply.certificate_pem))
    joined = await enrolment.joined()
    assert (joined.node_id, joined.name) == ("n-1", "alpha")
    assert "used up" in (await ask(code)).error


async def test_guesses_are_few(enrolment: Enrolment, tmp_path: Path) -> None:
    code = decode_join_code(enrolment.code)
    for _ in range(MOST_WRONG_SECRETS):
        assert "wrong secret" in (await ask(code, "00" * 16)).error
    with pytest.raises(EnrolmentClosed, match="wrong secrets were tried"):
        await enrolment.joined()
    assert "withdrawn" in (await ask(code)).error
    assert ClusterHome(tmp_path / "cluster").nodes() == ()


async def test_a_bad_request_is_refused_and_the_code_stays_good(enrolment: Enrolment) -> None:
    code = decode_join_code(enrolment.code)
    assert "not a signing request" in (await ask(code, request_pem=b"nonsense")).error
    assert "fix:" in (await ask(code, request_pem=make_key_and_request("n-2")[1])).error
    assert (await ask(code)).error == ""


async def test_a_code_expires(tmp_path: Path) -> None:
    async with Enrolment(ClusterHome(tmp_path), "127.0.0.1", seconds=0.2) as enrolment:
        with pytest.raises(EnrolmentClosed, match="nobody used the code"):
            await enrolment.joined()
        address = decode_join_code(enrolment.code).address
    with pytest.raises(OSError):
        await asyncio.wait_for(fetch_certificate(address), 5)


async def test_a_taken_port_is_named(enrolment: Enrolment, tmp_path: Path) -> None:
    port = int(decode_join_code(enrolment.code).address.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"port {port} is in use"):
        async with Enrolment(ClusterHome(tmp_path / "other"), "127.0.0.1", port=port):
            pass


def test_loopback_is_offered_last() -> None:
    addresses = own_addresses()
    assert addresses
    assert sorted(addresses, key=lambda ip: ip.startswith("127.")) == addresses
