"""Discovery takes nothing at its word: strangers, liars and the revoked are shown as what they are."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from zeroconf import IPVersion, ServiceInfo
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from realign_cluster.coordinator import discovery
from realign_cluster.coordinator.home import ClusterHome, NodeRequest
from realign_cluster.rpc.certificates import fingerprint, make_key_and_request


def service(label: str, port: int, **properties: str) -> ServiceInfo:
    return ServiceInfo(
        discovery.SERVICE,
        f"{label}.{discovery.SERVICE}",
        port=port,
        addresses=[socket.inet_aton("127.0.0.1")],
        properties={key: value.encode() for key, value in properties.items()},
        server=f"{label}.local.",
    )


async def test_what_advertises_itself_is_found_and_a_goodbye_is_heard() -> None:
    async with AsyncZeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only) as zeroconf:
        info = service("realign-test-n-7", 4711, id="n-7", name="gamma", fingerprint="AB")
        await (await zeroconf.async_register_service(info))
        found = [node for node in await discovery.find_nodes(2.0) if node.node_id == "n-7"]
        assert [(node.name, node.address, node.fingerprint) for node in found] == [("gamma", "127.0.0.1:4711", "ab")]
        await (await zeroconf.async_unregister_service(info))
    assert not [node for node in await discovery.find_nodes(1.0) if node.node_id == "n-7"]


def read(**properties: str) -> discovery.DiscoveredNode:
    info = AsyncServiceInfo(
        discovery.SERVICE,
        f"x.{discovery.SERVICE}",
        port=1,
        addresses=[socket.inet_aton("127.0.0.1")],
        properties={key: value.encode() for key, value in properties.items()},
    )
    node = discovery._read(info)
    assert node is not None
    return node


def test_what_a_stranger_says_cannot_write_to_the_terminal() -> None:
    node = read(id="n-1\x1b[2J", name="a\nb" + "c" * 190)
    assert node.node_id == "n-1?[2J"
    assert node.name.startswith("a?bccc")
    assert len(read(name="é" * 100).name) <= 200


@pytest.fixture
def home(tmp_path: Path) -> ClusterHome:
    return ClusterHome(tmp_path)


async def test_a_stranger_is_not_enrolled_and_no_home_is_made_for_it(home: ClusterHome) -> None:
    judged = await discovery.judge(read(id="n-1", fingerprint="00"), home)
    assert (judged.standing, judged.described) == ("not enrolled", None)
    assert "join-code" in judged.detail
    assert not home.exists


async def test_a_claimed_certificate_is_not_believed_without_its_key(home: ClusterHome) -> None:
    signed = home.sign_node(NodeRequest(node_id="n-1", name="a", request_pem=make_key_and_request("n-1")[1]))
    mark = fingerprint(signed.certificate_pem)
    judged = await discovery.judge(read(id="n-1", fingerprint=mark), home)  # nobody serves on port 1
    assert judged.standing == "enrolled, not answering"
    home.revoke("a")
    assert (await discovery.judge(read(id="n-1", fingerprint=mark), home)).standing == "revoked"
