"""`realign nodes`: who is there, by hostfile or by discovery, and who of them can be trusted."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import orjson
import typer

from realign_cluster.coordinator.describe import Described, describe
from realign_cluster.coordinator.discovery import JudgedNode, find_nodes, judge
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.hostfile_reader import naming_hostfile, read_hostfile
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.hostfile import Host, Hostfile
from realign_cluster.domain.ids import NodeId, NodeName
from realign_cluster.rpc.pb.common_pb2 import WorkerState

EPILOG = """
Examples:

  realign nodes --hostfile hostfiles/local.json

  realign nodes --discover --json

Exit codes: 0 all nodes of the hostfile serve (or --min-nodes of them); 3 nodes missing.
"""


def register(app: typer.Typer) -> None:
    app.command("nodes", epilog=EPILOG)(command)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine:
    """One node as it is shown. `standing` is "serving", or why it is not to be used."""

    name: str
    address: str
    standing: str
    node_id: str = ""
    chip: str = ""
    backend: str = ""
    gpu_cores: int = 0
    cpu_cores: int = 0
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    disk_free_bytes: int = 0
    load_1m: float = 0.0
    thermal_pressure: str = ""
    worker: str = ""
    held_by: str = ""
    versions: str = ""
    detail: str = ""  # what is wrong, with the fix


def command(
    discover: Annotated[bool, typer.Option("--discover", help="List what zeroconf finds on the network.")] = False,
    hostfile: Annotated[Path | None, typer.Option(help="Ask the nodes of this hostfile.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="How long to listen with --discover.")] = 3.0,
    min_nodes: Annotated[int | None, typer.Option(min=0, help="Exit 0 when this many serve. Default: all.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Standard output is JSON lines only.")] = False,
) -> int:
    """Show the cluster's nodes: who answers, who is enrolled, how they are."""
    if discover == (hostfile is not None):
        raise UsageError(
            "which nodes?" if hostfile is None else "both --hostfile and --discover", "--hostfile FILE or --discover"
        )
    if hostfile is not None:
        parsed = read_hostfile(hostfile)
        lines = asyncio.run(_ask(parsed, ClusterHome()))
        needed = len(parsed.hosts) if min_nodes is None else min_nodes
    else:
        lines = asyncio.run(_discover(seconds, ClusterHome()))
        needed = min_nodes or 0
    serving = sum(line.standing in ("serving", "enrolled") for line in lines)
    if json:
        for line in lines:
            typer.echo(orjson.dumps({"event": "node", **asdict(line)}).decode())
        typer.echo(orjson.dumps({"event": "summary", "nodes": len(lines), "serving": serving}).decode())
    else:
        _show(lines, hostfile)
    return 0 if serving >= needed else 3


async def _ask(hostfile: Hostfile, home: ClusterHome) -> list[NodeLine]:
    return list(await asyncio.gather(*(_ask_one(host, home) for host in hostfile.hosts)))


async def _ask_one(host: Host, home: ClusterHome) -> NodeLine:
    entry = home.find(host.name, host.target)
    if entry is None:
        if any(known.name == host.name for known in home.nodes()):
            detail = (
                "its certificate was revoked; to admit it: realign cluster join-code, then there realignd join CODE"
            )
            return NodeLine(name=host.name, address=host.target, standing="revoked", detail=detail)
        detail = "to enrol and start it: realign-launch --hostfile FILE up"
        return NodeLine(name=host.name, address=host.target, standing="not enrolled", detail=detail)
    address = NodeAddress(
        name=NodeName(host.name),
        node_id=NodeId(entry.node_id),
        address=host.target,
        bundle=home.bundle(),
        home=home,
    )
    try:
        return _line(host.name, host.target, "serving", await describe(address))
    except RealignError as error:
        return NodeLine(
            name=host.name, address=host.target, standing="missing", node_id=entry.node_id, detail=str(error)
        )


async def _discover(seconds: float, home: ClusterHome) -> list[NodeLine]:
    found = await find_nodes(seconds)
    return [_judged_line(judged) for judged in await asyncio.gather(*(judge(node, home) for node in found))]


def _judged_line(judged: JudgedNode) -> NodeLine:
    node = judged.node
    if judged.described is not None:
        return _line(node.name, node.address, judged.standing, judged.described)
    return NodeLine(
        name=node.name, address=node.address, standing=judged.standing, node_id=node.node_id, detail=judged.detail
    )


def _line(name: str, address: str, standing: str, described: Described) -> NodeLine:
    info, health = described.info, described.health
    holder = f"{info.holder.coordinator}, run {info.holder.run_id}" if info.HasField("holder") else ""
    return NodeLine(
        name=name,
        address=address,
        standing=standing,
        node_id=info.node_id,
        chip=info.device.chip,
        backend=info.device.backend,
        gpu_cores=info.device.gpu_cores,
        cpu_cores=info.device.cpu_cores,
        memory_bytes=health.memory_total_bytes,
        memory_available_bytes=health.memory_available_bytes,
        disk_free_bytes=health.disk_free_bytes,
        load_1m=health.load_1m,
        thermal_pressure=health.thermal_pressure,
        worker=WorkerState.Name(health.worker).removeprefix("WORKER_").lower(),
        held_by=holder,
        versions=f"{info.versions.project}, mlx {info.versions.mlx}, mlx-lm {info.versions.mlx_lm}",
    )


def _show(lines: list[NodeLine], hostfile: Path | None) -> None:
    if not lines:
        typer.echo("nothing found: daemons advertise themselves only while they run; realign-launch --hostfile FILE up")
        return
    width = max(len(line.name) for line in lines)
    for line in lines:
        typer.echo(f"{line.name:{width}}  {line.address:21}  {line.standing}")
        if line.chip:
            cores = f"{line.gpu_cores} GPU cores" if line.gpu_cores else f"{line.cpu_cores} CPU cores"
            memory = f"{line.memory_available_bytes / 1e9:.0f} of {line.memory_bytes / 1e9:.0f} GB free"
            typer.echo(f"{'':{width}}  {line.chip}, {cores}, {memory}, disk {line.disk_free_bytes / 1e9:.0f} GB free")
            state = f"worker {line.worker}" + (f", held by {line.held_by}" if line.held_by else ", free")
            typer.echo(
                f"{'':{width}}  {state}, load {line.load_1m:.1f}, thermal {line.thermal_pressure}; {line.versions}"
            )
        for text in naming_hostfile(line.detail, hostfile).splitlines():
            typer.echo(f"{'':{width}}  {text}")
    if hostfile is None and any(line.standing == "not enrolled" for line in lines):
        typer.echo("nodes that are not enrolled were found, not verified: what they say of themselves may be anything")
