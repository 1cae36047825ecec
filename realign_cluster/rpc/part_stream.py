"""A state part as another machine's daemon holds it, read chunk by chunk and gone on with where a connection broke off.

Knows nothing of files: what arrives is checked by who writes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import grpc.aio
import structlog

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import StatePart
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.channel import PeerRefused, open_channel, preflight
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb.node_pb2_grpc import NodeStub

log = structlog.get_logger()

TRANSFER_SECONDS = 24 * 3600.0
RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0)  # without a byte in between; then it is given up
PASSING = frozenset(  # what another try may mend
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED, grpc.StatusCode.UNKNOWN}
)
WRITE_MET_THE_END = "Internal error from Core"  # gRPC's aio client: a write was under way when the other side ended

UNFIT = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS})


class PartUnfit(RealignError):
    """Where the part was to come from it is missing, or not as it was announced."""


async def remote_part(
    address: str, bundle: CertificateBundle, node_id: str, run_id: str, part: StatePart
) -> AsyncGenerator[bytes, None]:
    """The part's manifest, then its data, from the daemon at `address` ("host:port"), which must be this node's.

    Raises PartUnfit, or RealignError: not to be reached, not one of this cluster.
    """
    request = pb.PartRequest(run_id=run_id, part=part.model_dump_json().encode())
    there = failures = 0
    began = False
    while there < part.bytes or not began:
        before = there
        request.offset = there
        try:
            await preflight(address, bundle, node_id)
            async with open_channel(address, bundle, node_id) as channel:
                stub: Any = NodeStub(channel)  # type: ignore[no-untyped-call]
                async for chunk in stub.ReadPart(request, timeout=TRANSFER_SECONDS):
                    if not began:
                        began = True
                        yield chunk.manifest
                    if chunk.data:
                        if chunk.offset != there:
                            raise RealignError(f"{address} sent byte {chunk.offset} of {part.name}, not {there}")
                        there += len(chunk.data)
                        yield chunk.data
            reason = f"the stream ended at byte {there} of {part.bytes}"
        except (PeerRefused, grpc.aio.AioRpcError) as error:
            reason = why_passing(error, f"{part.name} cannot be had from {address}")
        failures = 0 if there > before else failures + 1
        if failures > len(RETRY_SECONDS):
            raise RealignError(
                f"{part.name} cannot be read from {address}: {reason}", "see whether its daemon runs: realignd status"
            )
        if there < part.bytes:
            log.warning("a part's transfer broke off, it is gone on with", part=part.name, at=there, why=reason)
            await asyncio.sleep(RETRY_SECONDS[max(0, failures - 1)])


def why_passing(error: PeerRefused | grpc.aio.AioRpcError, otherwise: str) -> str:
    """Why a try failed that another may mend. Raises PartUnfit or RealignError, beginning with `otherwise`, where none
    would.
    """
    if isinstance(error, PeerRefused):
        if error.reason in ("not-listening", "timeout"):
            return error.message
        raise RealignError(f"{otherwise}: {error.message}", error.fix) from error
    details: str = error.details() or error.code().name.lower()
    if error.code() in PASSING or details == WRITE_MET_THE_END:
        return details
    raise (PartUnfit if error.code() in UNFIT else RealignError)(f"{otherwise}: {details}") from error
