"""Asks one node who it is and how it does, over the cluster's mTLS. Decides nothing about it."""

from __future__ import annotations

from dataclasses import dataclass

import grpc.aio

from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import NodesMissing
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb import node_pb2_grpc as pb_grpc

DESCRIBE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    info: common.NodeInfo
    health: common.Health


async def describe(address: NodeAddress) -> Described:
    """Raises PeerRefused (with the reason) or NodesMissing when the node cannot be had or is not who it should be."""
    await address.verify()
    try:
        async with address.channel() as channel:
            stub = pb_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]
            info = await stub.Describe(pb.DescribeRequest(), timeout=DESCRIBE_SECONDS)
            health = await stub.CheckHealth(pb.HealthRequest(), timeout=DESCRIBE_SECONDS)
    except grpc.aio.AioRpcError as error:
        raise NodesMissing(
            f"{address.address} does not answer: {error.code().name.lower()}: {error.details()}",
            "see its log: realignd status there names the file",
        ) from None
    return Described(info=info, health=health)
