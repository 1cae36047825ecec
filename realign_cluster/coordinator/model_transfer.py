"""Brings a model to a node that lacks it: chunked, resumed where it broke off, checked by hash on arrival."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.job import ModelSpec
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb import node_pb2_grpc as pb_grpc

CHUNK_BYTES = 1 << 20
STATUS_SECONDS = 30.0
TRANSFER_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    folder: Path
    spec: ModelSpec

    def manifest(self) -> pb.ModelManifest:
        files = [pb.ModelFile(path=file.path, size=file.size, blake2b=file.blake2b) for file in self.spec.files]
        return pb.ModelManifest(model_hash=self.spec.hash, name=self.spec.name, files=files)


async def send_model(stub: pb_grpc.NodeStub, source: ModelSource) -> AsyncIterator[tuple[int, int]]:
    """Yields (bytes there, bytes in all) as the transfer goes on.

    Raises:
        RealignError: the node has no room for it, or what arrived does not have the hash.
    """
    manifest = source.manifest()
    total = sum(file.size for file in source.spec.files)
    status = await stub.ModelStatus(manifest, timeout=STATUS_SECONDS)
    there = sum(status.received.values())
    if status.complete:
        yield total, total
        return
    if status.disk_free_bytes and total - there > status.disk_free_bytes:
        raise RealignError(
            f"no room for the model on this node: {(total - there) / 1e9:.2f} GB to go,"
            f" {status.disk_free_bytes / 1e9:.2f} GB free",
            "free disk space there, or put the node's state folder on a larger disk (hostfile: realign.state)",
        )
    yield there, total
    call = stub.PutModel(timeout=TRANSFER_SECONDS)
    first = True
    sent = there
    for file in source.spec.files:
        offset = int(status.received.get(file.path, 0))
        if offset >= file.size and not (first and file.size == 0):
            continue
        with (source.folder / file.path).open("rb") as handle:
            handle.seek(offset)
            while data := handle.read(CHUNK_BYTES):
                chunk = pb.ModelChunk(model_hash=source.spec.hash, path=file.path, offset=offset, data=data)
                if first:
                    chunk.manifest.CopyFrom(manifest)
                    first = False
                await _write(call, chunk)
                offset += len(data)
                sent += len(data)
                yield sent, total
    if first:  # everything was there but not yet verified
        await _write(call, pb.ModelChunk(model_hash=source.spec.hash, manifest=manifest))
    await call.done_writing()
    done = await call
    if not done.complete:
        raise RealignError(
            "the model did not arrive whole", "run the command again: the transfer resumes where it stopped"
        )


async def _write(call: grpc.aio.StreamUnaryCall, chunk: pb.ModelChunk) -> None:
    """Raises AioRpcError, with what the node says, also where gRPC only says that the call is over."""
    try:
        await call.write(chunk)
    except asyncio.InvalidStateError:
        await call
        raise
