"""`realign cluster`: the authority, joining by hand, who is enrolled, who is not any more."""

from __future__ import annotations

import asyncio
import datetime
from typing import Annotated

import orjson
import typer

from realign_cluster.coordinator.enrolment import Enrolment, own_addresses
from realign_cluster.coordinator.home import ClusterHome, EnrolledNode
from realign_cluster.domain.errors import UsageError
from realign_cluster.rpc.certificates import fingerprint
from realign_cluster.rpc.join_code import VALID_SECONDS

app = typer.Typer(
    help="The cluster's certificates: create the authority, let a node join, list and revoke nodes.",
    no_args_is_help=True,
    epilog="Example:  realign cluster join-code",
)
Json = Annotated[bool, typer.Option("--json", help="Standard output is JSON lines only.")]


@app.command(epilog="Example:  realign cluster init")
def init(json: Json = False) -> None:
    """Create the cluster's authority and this coordinator's certificate. Does nothing to one that exists."""
    home = ClusterHome()
    existed = home.exists
    authority = home.ensure_authority()
    bundle = home.bundle()
    said = {
        "event": "summary",
        "home": str(home.folder),
        "created": not existed,
        "authority_fingerprint": fingerprint(authority.certificate_pem),
        "coordinator": bundle.identity.id,
        "coordinator_expires": bundle.not_after.isoformat(),
    }
    if json:
        _print_json(said)
        return
    typer.echo(f"{'using' if existed else 'created'} the authority in {home.folder}")
    typer.echo(f"coordinator {bundle.identity.id}, certificate until {bundle.not_after:%Y-%m-%d}")
    typer.echo("next: realign-launch --hostfile FILE up, or realign cluster join-code")


@app.command("join-code", epilog="Example:  realign cluster join-code --address 192.168.1.20")
def join_code(
    address: Annotated[
        str | None, typer.Option(help="This machine as the node reaches it. Default: its address.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 0,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long the code is good for.")] = VALID_SECONDS,
    json: Json = False,
) -> None:
    """Print a one-time code for `realignd join CODE` on a node, and wait until it is used or expires."""
    asyncio.run(_join_code(address or _own_address(), port, seconds, json))


@app.command(epilog="Example:  realign cluster nodes --json")
def nodes(json: Json = False) -> None:
    """List the enrolled nodes, revoked ones too."""
    home = ClusterHome()
    entries = home.nodes()
    if json:
        for entry in entries:
            _print_json({"event": "node", "standing": _standing(entry), **entry.model_dump(mode="json")})
        _print_json({"event": "summary", "home": str(home.folder), "nodes": len(entries)})
        return
    if not entries:
        typer.echo(
            f"no node is enrolled in {home.folder}; realign-launch --hostfile FILE up enrols those of a hostfile"
        )
        return
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        typer.echo(
            f"{entry.name:{width}}  {_standing(entry):8}  until {entry.expires:%Y-%m-%d}  "
            f"{entry.address or 'not seen yet':21}  {entry.node_id}"
        )


@app.command(epilog="Example:  realign cluster revoke m3ultra")
def revoke(node: Annotated[str, typer.Argument(metavar="NODE", help="Name or node id.")], json: Json = False) -> None:
    """Never trust a node's certificates again."""
    revoked = ClusterHome().revoke(node)
    for entry in revoked:
        if json:
            _print_json({"event": "node", "standing": "revoked", **entry.model_dump(mode="json")})
        else:
            typer.echo(f"revoked {entry.name} ({entry.node_id}), certificate {entry.fingerprint[:16]}...")
    if json:
        _print_json({"event": "summary", "revoked": len(revoked)})
    else:
        typer.echo("to admit it again: realign cluster join-code, then on it realignd join CODE")


async def _join_code(host: str, port: int, seconds: float, json: bool) -> None:
    async with Enrolment(ClusterHome(), host, port=port, seconds=seconds) as enrolment:
        if json:
            _print_json({"event": "code", "code": enrolment.code, "seconds": seconds})
        else:
            typer.echo(f"on the node, within {seconds / 60:.0f} minutes, once:\n\n  realignd join {enrolment.code}\n")
            typer.echo("waiting; Ctrl-C withdraws the code", err=True)
        joined = await enrolment.joined()
    if json:
        _print_json({"event": "summary", "joined": True, "node_id": joined.node_id, "name": joined.name})
    else:
        typer.echo(f"{joined.name} joined ({joined.node_id}). Start it there with: realignd run")


def _own_address() -> str:
    addresses = own_addresses()
    if not addresses:
        raise UsageError("this machine has no IPv4 address", "say how nodes reach it: --address HOST")
    return addresses[0]


def _standing(entry: EnrolledNode) -> str:
    if entry.revoked:
        return "revoked"
    return "expired" if entry.expires < datetime.datetime.now(datetime.UTC) else "enrolled"


def _print_json(value: dict[str, object]) -> None:
    typer.echo(orjson.dumps(value).decode())
