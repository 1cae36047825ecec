"""Measures the link to another node, through that node's Echo."""

from __future__ import annotations

import statistics
import time
from typing import Any

from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.channel import open_channel
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb.node_pb2_grpc import NodeStub

MAX_ECHO_BYTES = 32 * 1024**2


async def measure_link(request: pb.LinkRequest, bundle: CertificateBundle) -> pb.LinkReport:
    size = min(request.bytes or 1024**2, MAX_ECHO_BYTES)
    rounds = min(max(request.rounds, 1), 100)
    async with open_channel(request.address, bundle, request.node_id) as channel:
        stub: Any = NodeStub(channel)  # type: ignore[no-untyped-call]
        await stub.Echo(pb.EchoMessage(), timeout=10.0)  # the handshake is not part of the link
        trips, transfers = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            await stub.Echo(pb.EchoMessage(), timeout=10.0)
            trips.append(time.perf_counter() - started)
        for _ in range(min(rounds, 5)):
            started = time.perf_counter()
            await stub.Echo(pb.EchoMessage(reply_bytes=size), timeout=60.0)
            transfers.append(time.perf_counter() - started)
    trip = statistics.median(trips)
    return pb.LinkReport(
        round_trip_seconds=trip, bytes_per_second=size / max(statistics.median(transfers) - trip, 1e-6)
    )
