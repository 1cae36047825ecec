"""`realign doctor`: looks at this machine and its cluster, and says with a command what would put each fault right."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.text import Text

from realign_cluster.cli.checks import cluster, machine, macos, rdma
from realign_cluster.cli.checks.finding import Finding, Level
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.hostfile_reader import naming_hostfile, read_hostfile
from realign_cluster.domain.hostfile import Hostfile
from realign_cluster.domain.hostfile_fields import DEFAULT_PORT
from realign_cluster.node.state_folder import default_state

MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("ok  ", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
}

EPILOG = """
Examples:

  realign doctor

  realign doctor --hostfile hostfiles/local.json --json

Exit codes: 0 nothing that fails; 1 something fails.
"""


def register(app: typer.Typer) -> None:
    app.command("doctor", epilog=EPILOG)(command)


def command(
    hostfile: Annotated[Path | None, typer.Option(help="Also look at the nodes of this hostfile.")] = None,
    mdns: Annotated[bool, typer.Option("--mdns/--no-mdns", help="Listen for nodes for two seconds.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Standard output is JSON lines only.")] = False,
) -> int:
    """Look for what would keep runs from working here; each finding with the command that fixes it."""
    parsed = read_hostfile(hostfile) if hostfile is not None else None
    found = asyncio.run(examine(parsed, ClusterHome(), default_state(), mdns=mdns))
    findings = [replace(finding, fix=naming_hostfile(finding.fix, hostfile)) for finding in found]
    counts = Counter(finding.level for finding in findings)
    if json:
        for finding in findings:
            typer.echo(orjson.dumps({"event": "finding", **asdict(finding)}).decode())
        levels = {level: counts[level] for level in MARKS}
        typer.echo(orjson.dumps({"event": "summary", **levels}).decode())
    else:
        _show(findings, counts)
    return 1 if counts["fail"] else 0


async def examine(hostfile: Hostfile | None, home: ClusterHome, node_state: Path, *, mdns: bool) -> list[Finding]:
    """Every finding, in the order in which things are needed."""
    found = [
        *machine.check_python(),
        *machine.check_packages(),
        *machine.check_blas(),
        *machine.check_memory(),
        *machine.check_disk(home.folder, Path.cwd()),
        *machine.check_sqlite(),
        *await macos.check_macos(),
        *machine.check_environment(),
        *machine.check_hostfile_environment(hostfile.hosts if hostfile is not None else ()),
        *cluster.check_certificates(home, node_state),
        *cluster.check_ports(hostfile.hosts if hostfile is not None else (), DEFAULT_PORT),
    ]
    if mdns:
        found += await cluster.check_mdns(home)
    if hostfile is not None:
        found += await cluster.check_nodes(hostfile, home)
        found += await rdma.check_rdma(hostfile)
    return found


def _show(findings: list[Finding], counts: Counter[Level]) -> None:
    console = Console(highlight=False)
    for finding in findings:
        mark, style = MARKS[finding.level]
        line = Text.assemble((mark, style), "  ", (f"{finding.topic:<14}", "dim"), finding.text)
        console.print(line, soft_wrap=True)
        if finding.fix and finding.level != "ok":
            console.print(Text.assemble((f"{'':20}fix: ", "dim"), finding.fix), soft_wrap=True)
    console.print(Text(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} that fail"))
