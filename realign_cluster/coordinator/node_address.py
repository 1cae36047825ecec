"""Where a node is and how to know that it is the one: TLS preflight, the cluster's own authority, the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc.aio

from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.domain.errors import NodesMissing
from realign_cluster.domain.ids import NodeId, NodeName
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.channel import open_channel, preflight


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """A node as the hostfile or discovery names it, with the id its certificate must carry. `address` is host:port."""

    name: NodeName
    node_id: NodeId
    address: str
    bundle: CertificateBundle
    home: ClusterHome  # says which certificates were signed here and not revoked
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_limit_bytes: int | None = None
    nice: int | None = None  # CPU priority of its workers

    async def verify(self) -> None:
        """Raises PeerRefused (not listening, expired, foreign, wrong host) or NodesMissing (revoked), with the fix."""
        fingerprint = await preflight(self.address, self.bundle, self.node_id)
        standing = self.home.standing(fingerprint)
        if standing != "enrolled":
            what = "was revoked" if standing == "revoked" else "is not in this cluster's registry"
            raise NodesMissing(
                f"{self.name} ({self.node_id}) shows a certificate that {what}",
                "if it is to be trusted, enrol it again: realign cluster join-code, then realignd join CODE there",
            )

    def channel(self) -> grpc.aio.Channel:
        """Only the node with this id can answer on it. Needs a running event loop."""
        return open_channel(self.address, self.bundle, self.node_id)
