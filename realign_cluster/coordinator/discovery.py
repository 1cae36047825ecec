"""Finds daemons on the local network by zeroconf. A hint only: whoever is found is believed after mTLS, and not before.

Anybody may advertise anything here, so nothing found is trusted, and nothing lost is dead: liveness is heartbeats.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Literal

import psutil
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from realign_cluster.coordinator.describe import Described, describe
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import NodesMissing, RealignError
from realign_cluster.domain.ids import NodeId, NodeName

SERVICE = "_realign._tcp.local."
RESOLVE_SECONDS = 2.0
MOST_SERVICES = 256  # anybody may advertise; nobody may fill our memory
_PRINTABLE = re.compile(r"[^ -~]")

Standing = Literal["enrolled", "not enrolled", "revoked", "enrolled, not answering"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveredNode:
    """What a service says of itself, unverified, in printable ASCII."""

    node_id: str
    name: str
    host: str  # IPv4
    port: int
    fingerprint: str  # SHA-256 of the certificate it says it has, hex
    properties: dict[str, str]

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedNode:
    """A discovered node and what is true of it. Only `enrolled` was verified, by the node's own key."""

    node: DiscoveredNode
    standing: Standing
    detail: str  # why not enrolled, with the fix
    described: Described | None


async def find_nodes(timeout: float) -> list[DiscoveredNode]:
    """Everything that advertises itself within `timeout` seconds, by name. NodesMissing when mDNS cannot be used."""
    found: dict[str, DiscoveredNode] = {}
    resolving: dict[str, asyncio.Task[None]] = {}

    async def resolve(zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if await info.async_request(zeroconf, RESOLVE_SECONDS * 1000) and (node := _read(info)) is not None:
            found[name] = node

    def on_change(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            found.pop(name, None)
        elif len(resolving) < MOST_SERVICES:
            resolving[name] = asyncio.ensure_future(resolve(zeroconf, name))

    try:
        async with AsyncZeroconf(ip_version=IPVersion.V4Only) as zeroconf:
            browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[on_change])
            await asyncio.sleep(timeout)
            await browser.async_cancel()
            await asyncio.gather(*resolving.values(), return_exceptions=True)
    except OSError as error:
        raise NodesMissing(
            f"cannot listen for mDNS: {error.strerror or error}",
            "macOS: allow this terminal under System Settings > Privacy & Security > Local Network; or use --hostfile",
        ) from None
    return sorted(found.values(), key=lambda node: (node.name, node.address))


async def judge(node: DiscoveredNode, home: ClusterHome) -> JudgedNode:
    """Whether a discovered node is one of ours: by the registry first, then by making it prove its key."""

    def verdict(standing: Standing, detail: str = "", described: Described | None = None) -> JudgedNode:
        return JudgedNode(node=node, standing=standing, detail=detail, described=described)

    match home.standing(node.fingerprint) if home.exists else "unknown":
        case "revoked":
            return verdict("revoked", "its certificate was revoked; to admit it again: realign cluster join-code")
        case "unknown":
            return verdict(
                "not enrolled", "not trusted; to enrol it: realign cluster join-code, then there: realignd join CODE"
            )
    address = NodeAddress(
        name=NodeName(node.name),
        node_id=NodeId(node.node_id),
        address=node.address,
        bundle=home.bundle(),
        home=home,
    )
    try:
        return verdict("enrolled", described=await describe(address))
    except RealignError as error:
        return verdict("enrolled, not answering", str(error))


def _read(info: AsyncServiceInfo) -> DiscoveredNode | None:
    addresses = info.parsed_addresses(IPVersion.V4Only)
    if not addresses or not info.port:
        return None
    properties = {
        _clean(key.decode(errors="replace")): _clean((value or b"").decode(errors="replace"))
        for key, value in info.properties.items()
    }
    name = properties.get("name") or _clean(info.name.removesuffix("." + SERVICE))
    networks = _own_networks()
    addresses.sort(key=lambda ip: not any(ipaddress.IPv4Address(ip) in network for network in networks))
    return DiscoveredNode(
        node_id=properties.get("id", ""),
        name=name,
        host=addresses[0],
        port=info.port,
        fingerprint=properties.get("fingerprint", "").lower(),
        properties=properties,
    )


def _own_networks() -> list[ipaddress.IPv4Network]:
    """Those this machine is on, loopback last: of a node's addresses the one to dial is on one of them."""
    networks = [
        ipaddress.IPv4Network(f"{address.address}/{address.netmask or 32}", strict=False)
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    return sorted(networks, key=lambda network: network.is_loopback)


def _clean(text: str) -> str:
    """Printable and short: it goes to somebody's terminal."""
    return _PRINTABLE.sub("?", text)[:200]
