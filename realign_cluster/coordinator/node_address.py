"""Where a node is and how to know that it is the one: TLS preflight, the cluster's own authority, the list of the revoked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc.aio

from realign_cluster.domain.errors import NodesMissing
from realign_cluster.domain.ids import NodeId, NodeName
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.channel import open_channel, preflight


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """A node as the hostfile or discovery names it, with the id that its certificate must carry. `address` is host:port."""

    name: NodeName
    node_id: NodeId
    address: str
    bundle: CertificateBundle
    revoked: frozenset[str] = frozenset()  # certificate fingerprints
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_limit_bytes: int | None = None

    async def verify(self) -> None:
        """Raises PeerRefused (not listening, expired, foreign, wrong host) or NodesMissing (revoked), each with the fix."""
        fingerprint = await preflight(self.address, self.bundle, self.node_id)
        if fingerprint in self.revoked:
            raise NodesMissing(
                f"{self.name} ({self.node_id}) shows a certificate that was revoked",
                "enrol it again if it is to be trusted: realign-launch --hostfile FILE up",
            )

    def channel(self) -> grpc.aio.Channel:
        """Only the node with this id can answer on it. Needs a running event loop."""
        return open_channel(self.address, self.bundle, self.node_id)
