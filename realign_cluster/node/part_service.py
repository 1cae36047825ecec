"""ReadPart and WritePart: parts of a training's state between this node's disk and a call. Who may call was checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import structlog
from pydantic import ValidationError

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import StatePart
from realign_cluster.node.states import StateRefused, StateStore
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.store.space import StorageFull
from realign_cluster.store.state_part import Corrupt

log = structlog.get_logger()


async def read_part(
    states: StateStore, request: pb.PartRequest, context: grpc.aio.ServicerContext
) -> AsyncIterator[pb.PartChunk]:
    part = await _part_of(request.part, context)
    try:
        if not states.knows(request.run_id):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"run {request.run_id} never trained on this node")
        chunks = states.chunks(request.run_id, part, request.offset)
        offset = request.offset
        yield pb.PartChunk(manifest=await asyncio.to_thread(next, chunks))
        while data := await asyncio.to_thread(next, chunks, b""):
            yield pb.PartChunk(offset=offset, data=data)
            offset += len(data)
    except (StateRefused, Corrupt) as error:
        await context.abort(_status_of(error, corrupt=grpc.StatusCode.NOT_FOUND), error.message)


async def write_part(
    states: StateStore,
    first: pb.PartChunk,
    rest: AsyncIterator[pb.PartChunk],
    context: grpc.aio.ServicerContext,
) -> pb.PartWritten:
    """`first` names the run, which holds this node, and the part."""
    part = await _part_of(first.part, context)

    async def chunks() -> AsyncIterator[bytes]:
        yield first.manifest
        await context.send_initial_metadata(())  # there is a place for it: the sender waits for this word
        async for chunk in rest:
            yield chunk.data

    try:
        await states.receive(first.run_id, part, chunks())
    except (StateRefused, Corrupt, StorageFull, OSError) as error:
        log.warning("a part was not taken", part=part.name, why=str(error))
        await context.abort(_status_of(error, corrupt=grpc.StatusCode.DATA_LOSS), str(error))
    return pb.PartWritten()


async def _part_of(described: bytes, context: grpc.aio.ServicerContext) -> StatePart:
    try:
        return StatePart.model_validate_json(described)
    except ValidationError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a part: {error.errors()[0]['msg']}")
        raise


def _status_of(error: RealignError | OSError, *, corrupt: grpc.StatusCode) -> grpc.StatusCode:
    match error:
        case Corrupt():
            return corrupt
        case StorageFull():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case StateRefused(passing=True):
            return grpc.StatusCode.ABORTED
        case StateRefused():
            return grpc.StatusCode.INVALID_ARGUMENT
        case _:
            return grpc.StatusCode.INTERNAL
