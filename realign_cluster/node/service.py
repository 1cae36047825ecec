"""The gRPC face of the daemon: checks who calls, translates, and never lets an exception of one call reach another."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import structlog

from realign_cluster.domain.errors import RealignError
from realign_cluster.node.links import MAX_ECHO_BYTES, measure_link
from realign_cluster.node.logs import follow
from realign_cluster.node.models import ModelRefused
from realign_cluster.node.part_service import read_part, write_part
from realign_cluster.node.serving import Serving, require
from realign_cluster.node.session import RunStream
from realign_cluster.rpc.certificates import Role
from realign_cluster.rpc.channel import preflight
from realign_cluster.rpc.pb import common_pb2, node_pb2_grpc
from realign_cluster.rpc.pb import node_pb2 as pb

log = structlog.get_logger()

_MAX_LOG_BYTES = 4 * 1024**2


class NodeService(node_pb2_grpc.NodeServicer):
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    # --- small calls ------------------------------------------------------------------------------------------------

    async def Describe(self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext) -> common_pb2.NodeInfo:
        await require(context)
        return await self._serving.describe()

    async def CheckHealth(self, request: pb.HealthRequest, context: grpc.aio.ServicerContext) -> common_pb2.Health:
        await require(context)
        return self._serving.health_now()

    async def Logs(self, request: pb.LogsRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.LogChunk]:
        await require(context, Role.COORDINATOR)
        paths = {"worker": self._serving.folder.worker_log, "daemon": self._serving.folder.daemon_log}
        if request.stream not in paths:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no log {request.stream!r}: worker or daemon")
        last_bytes = min(request.last_bytes or 64 * 1024, _MAX_LOG_BYTES)
        async for data in follow(paths[request.stream], last_bytes, on=request.follow):
            yield pb.LogChunk(data=data)

    async def Echo(self, request: pb.EchoMessage, context: grpc.aio.ServicerContext) -> pb.EchoMessage:
        await require(context)
        if request.reply_bytes > MAX_ECHO_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"an echo has {MAX_ECHO_BYTES} bytes at most")
        return pb.EchoMessage(data=bytes(request.reply_bytes))

    async def MeasureLink(self, request: pb.LinkRequest, context: grpc.aio.ServicerContext) -> pb.LinkReport:
        await require(context, Role.COORDINATOR)
        try:
            await preflight(request.address, self._serving.bundle, request.node_id)
            return await measure_link(request, self._serving.bundle)
        except RealignError as error:
            return pb.LinkReport(error=str(error))
        except grpc.aio.AioRpcError as error:
            return pb.LinkReport(error=f"{error.code().name.lower()}: {error.details()}")

    # --- models -----------------------------------------------------------------------------------------------------

    async def ModelStatus(self, request: pb.ModelManifest, context: grpc.aio.ServicerContext) -> pb.ModelProgress:
        await require(context, Role.COORDINATOR)
        try:
            return self._serving.models.status(request)
        except ModelRefused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def PutModel(
        self, request_iterator: AsyncIterator[pb.ModelChunk], context: grpc.aio.ServicerContext
    ) -> pb.ModelProgress:
        await require(context, Role.COORDINATOR)
        model_hash = ""

        async def chunks() -> AsyncIterator[pb.ModelChunk]:
            nonlocal model_hash
            async for chunk in request_iterator:
                model_hash = model_hash or chunk.model_hash
                yield chunk

        try:
            progress = await self._serving.models.receive(chunks())
        except ModelRefused as error:
            log.warning("model transfer refused", why=error.message)
            code = grpc.StatusCode.FAILED_PRECONDITION
            if error.no_room:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
            elif error.resumable:
                code = grpc.StatusCode.ABORTED
            await context.abort(code, str(error))
            raise
        if progress.complete:
            await self._serving.workplace.model_arrived(model_hash)
        return progress

    # --- parts of a training's state --------------------------------------------------------------------------------

    async def ReadPart(self, request: pb.PartRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.PartChunk]:
        await require(context)
        async for chunk in read_part(self._serving.workplace.training.states, request, context):
            yield chunk

    async def WritePart(
        self, request_iterator: AsyncIterator[pb.PartChunk], context: grpc.aio.ServicerContext
    ) -> pb.PartWritten:
        await require(context, Role.COORDINATOR)
        first = await anext(request_iterator, pb.PartChunk())
        holder = self._serving.workplace.holder()
        if holder is None or holder.run_id != first.run_id:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"run {first.run_id} does not hold this node")
        return await write_part(self._serving.workplace.training.states, first, request_iterator, context)

    # --- runs -------------------------------------------------------------------------------------------------------

    async def Session(
        self, request_iterator: AsyncIterator[pb.CoordinatorMessage], context: grpc.aio.ServicerContext
    ) -> None:
        caller = await require(context, Role.COORDINATOR)
        await RunStream(self._serving, context, caller).run()
