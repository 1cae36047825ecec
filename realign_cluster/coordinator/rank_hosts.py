"""Where ranks on different nodes meet one another: an IPv4 address of each node, as MLX wants it."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence

from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.hostfile import Hostfile
from realign_cluster.domain.ids import NodeName

LOOPBACK = "127."


def rank_hosts(hostfile: Hostfile | None, addresses: Sequence[NodeAddress]) -> dict[NodeName, str]:
    """The hostfile's first `ips` of each node, which may be a Thunderbolt interface, else the address that its daemon
    is dialled on.

    Raises UsageError for a cluster that would be told to meet on a loopback address from another machine.
    """
    hosts = {host.name: host.ips[0] for host in hostfile.hosts if host.ips} if hostfile is not None else {}
    found = {address.name: hosts.get(address.name) or _ipv4(address) for address in addresses}
    local = [name for name, host in found.items() if host.startswith(LOOPBACK)]
    if local and len(local) < len(found):
        raise UsageError(
            f"the other nodes cannot reach {', '.join(local)} on a loopback address",
            'give these hosts "ips" in the hostfile that the others reach, best of a Thunderbolt interface',
        )
    return found


def dialled_host(address: NodeAddress) -> str:
    return address.address.rpartition(":")[0].strip("[]")


def _ipv4(address: NodeAddress) -> str:
    host = dialled_host(address)
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv4Address(host))
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise UsageError(
            f"{address.name}: {host} has no IPv4 address: {error.strerror or error}",
            'give the host "ips" in the hostfile: MLX joins ranks over IPv4',
        ) from error
