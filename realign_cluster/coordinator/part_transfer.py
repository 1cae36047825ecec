"""Brings state parts from a node into the run folder (checkpoints), and from there to a node that lacks them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import structlog

from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import StatePart
from realign_cluster.rpc.channel import PeerRefused
from realign_cluster.rpc.part_stream import RETRY_SECONDS, TRANSFER_SECONDS, PartUnfit, remote_part, why_passing
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb import node_pb2_grpc as pb_grpc
from realign_cluster.store.part_stream import draw, part_chunks
from realign_cluster.store.state_part import Corrupt, data_path

log = structlog.get_logger()

Result = TypeVar("Result")


async def read_part(
    address: NodeAddress,
    run_id: str,
    part: StatePart,
    receive: Callable[[StatePart, bytes, Iterable[bytes]], Result],
) -> Result:
    """What `receive` answers to the part, its manifest and the chunks of its data, which it draws in a thread:
    CheckpointStore.receive is one. Goes on where a connection broke off.

    Raises PartUnfit where the node does not have the part, RealignError where it is not to be reached.
    """
    await address.verify()
    source = remote_part(address.address, address.bundle, address.node_id, run_id, part)
    async with contextlib.aclosing(source) as chunks:
        manifest = await anext(chunks)
        return await draw(lambda drawn: receive(part, manifest, drawn), chunks)


async def send_part(address: NodeAddress, run_id: str, part: StatePart, folder: Path) -> None:
    """Writes a part of `folder` to the node, which the run holds; it counts there once every byte is checked.

    Begins anew where a connection broke off. Raises Corrupt for a part that is not here as it was written, and
    RealignError: the node is not to be reached, or has no room.
    """
    for wait in (*RETRY_SECONDS, None):
        try:
            await address.verify()
            async with address.channel() as channel:
                await _write(pb_grpc.NodeStub(channel), run_id, part, folder)  # type: ignore[no-untyped-call]
            return
        except (PeerRefused, grpc.aio.AioRpcError) as error:
            otherwise = f"{part.name} cannot be brought to {address.name}"
            try:
                reason = why_passing(error, otherwise)
            except PartUnfit as unfit:
                raise Corrupt(data_path(folder, part), unfit.message) from error
            if wait is None:
                raise RealignError(f"{otherwise}: {reason}") from error
        log.warning("a part's transfer broke off, it begins anew", part=part.name, node=address.name, why=reason)
        await asyncio.sleep(wait)


async def _write(stub: Any, run_id: str, part: StatePart, folder: Path) -> None:
    chunks = part_chunks(folder, part)
    manifest = await asyncio.to_thread(next, chunks)
    call = stub.WritePart(timeout=TRANSFER_SECONDS)
    described = part.model_dump_json().encode()
    await call.write(pb.PartChunk(run_id=run_id, part=described, manifest=manifest))
    await call.initial_metadata()  # comes when the data may: a refusal that met a write of ours would lose its words
    with contextlib.suppress(asyncio.InvalidStateError):  # gRPC's word for a write to a call that is over
        while data := await asyncio.to_thread(next, chunks, b""):
            await call.write(pb.PartChunk(data=data))
        await call.done_writing()
    await call  # says how it ended
