"""`realign logs`: what a node's worker or daemon printed, fetched over the cluster's own connection."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import grpc.aio
import typer

from realign_cluster.cli import task_options as options
from realign_cluster.coordinator.cluster import connect
from realign_cluster.domain.errors import NodesMissing, UsageError
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb import node_pb2_grpc as pb_grpc

EPILOG = """
\b
Example:
  realign logs m3ultra --hostfile hosts.json --follow
"""
STREAMS = ("worker", "daemon")


def register(app: typer.Typer) -> None:
    app.command("logs", epilog=EPILOG)(command)


def command(
    node: Annotated[str, typer.Argument(help="Name of a node.")],
    stream: Annotated[str, typer.Option(help="worker (its output and errors) or daemon.")] = "worker",
    last_bytes: Annotated[int, typer.Option(min=1, help="How much of the end.")] = 65_536,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes; Ctrl-C ends it.")] = False,
    hostfile: options.HostfileOption = None,
    discover: options.Discover = False,
) -> int:
    """Print what a node's worker or daemon printed."""
    options.one_of(stream, STREAMS, "--stream")
    asyncio.run(_print(node, hostfile, discover, pb.LogsRequest(stream=stream, last_bytes=last_bytes, follow=follow)))
    return 0


async def _print(node: str, hostfile: Path | None, discover: bool, request: pb.LogsRequest) -> None:
    async with connect(hostfile, discover=discover, min_nodes=1) as cluster:
        links = {str(link.name): link for link in cluster.nodes}
        if node not in links:
            reasons = [str(missing.reason) for missing in cluster.missing if missing.name == node]
            if reasons:
                raise NodesMissing(f"{node} is not there: {reasons[0]}")
            known = [*links, *(str(missing.name) for missing in cluster.missing)]
            raise UsageError(f"there is no node '{node}'{did_you_mean(node, known)}", f"nodes are {', '.join(known)}")
        async with links[node].address.channel() as channel:
            call = pb_grpc.NodeStub(channel).Logs(request)  # type: ignore[no-untyped-call]
            try:
                async for chunk in call:
                    sys.stdout.buffer.write(chunk.data)
                    sys.stdout.buffer.flush()
            except grpc.aio.AioRpcError as error:
                raise NodesMissing(f"{node} ended the stream: {error.details()}", "see realign nodes") from None
