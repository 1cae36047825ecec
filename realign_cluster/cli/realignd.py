"""realignd: the daemon of a node, from the command line. Commands only; what they do lives in realign_cluster.node."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.hostfile_fields import DEFAULT_PORT
from realign_cluster.node.state_folder import StateFolder, default_state

app = typer.Typer(
    name="realignd",
    help="The daemon that every machine of a cluster runs. It serves over mTLS and decides nothing.",
    epilog="Example:  realignd run --name m3ultra --detach",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEFAULT_STATE = default_state()
State = Annotated[Path, typer.Option("--state", help="State folder: identity, models, spool, logs.")]
Name = Annotated[str | None, typer.Option("--name", help="What people call this node; default: the host name.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.command()
def run(
    state: State = DEFAULT_STATE,
    port: Annotated[int, typer.Option(help="Port to serve on; 0 takes a free one.", min=0, max=65535)] = DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="Address to serve on; 127.0.0.1 for this machine only.")] = "0.0.0.0",
    name: Name = None,
    cores: Annotated[int, typer.Option(help="CPU cores its worker may use; 0 means all.", min=0)] = 0,
    no_advertise: Annotated[bool, typer.Option("--no-advertise", help="Say nothing by mDNS.")] = False,
    exit_seconds: Annotated[float, typer.Option(help="What a unit in hand may take after SIGTERM.", min=0)] = 15.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log to the state folder only, not to stderr.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it in the background, print its facts when it serves.")
    ] = False,
    ready_fd: Annotated[int, typer.Option("--ready-fd", hidden=True)] = -1,
) -> None:
    """Serve until told to stop.

    Example: realignd run --name m3ultra --port 47100 --detach
    """
    if detach:
        from realign_cluster.node.control import start_detached

        arguments = ["--state", str(state), "--port", str(port), "--host", host, "--cores", str(cores)]
        arguments += ["--exit-seconds", str(exit_seconds)]
        arguments += ["--name", name] if name else []
        arguments += ["--no-advertise"] if no_advertise else []
        _print(start_detached(arguments, StateFolder.at(state)))
        return
    from dataclasses import asdict

    from realign_cluster.node.daemon import DaemonFacts, DaemonOptions, serve

    def ready(facts: DaemonFacts) -> None:
        if ready_fd >= 0:
            os.write(ready_fd, json.dumps(asdict(facts)).encode() + b"\n")
            os.close(ready_fd)

    options = DaemonOptions(
        state=state,
        host=host,
        port=port,
        name=name,
        cores=cores or len(_usable_cores()),
        advertise=not no_advertise,
        exit_seconds=exit_seconds,
        log_to_stderr=ready_fd < 0 and not quiet,
    )
    try:
        asyncio.run(serve(options, ready))
    except (RealignError, OSError) as error:  # OSError: the disk is full, the folder went away
        known = error if isinstance(error, RealignError) else RealignError(str(error), f"look into {state}")
        if ready_fd >= 0:
            os.write(ready_fd, json.dumps({"error": known.message, "fix": known.fix}).encode() + b"\n")
        raise known from error


@app.command()
def request(state: State = DEFAULT_STATE, name: Name = None) -> None:
    """Make a key and print the request that the cluster's authority has to sign (used by realign-launch).

    Example: realignd request --name m3ultra
    """
    from realign_cluster.node.enrolment import request_signature
    from realign_cluster.node.identity import load_or_create_identity, local_machine

    folder = StateFolder.at(state)
    asked = request_signature(folder, load_or_create_identity(folder, local_machine(), name))
    _print({"node_id": asked.node_id, "name": asked.name, "request_pem": asked.request_pem.decode()})


@app.command()
def enrol(state: State = DEFAULT_STATE) -> None:
    """Keep the certificate that answers the request: JSON {certificate_pem, authority_pem} on standard input.

    Example: realignd enrol < answer.json
    """
    from realign_cluster.node.enrolment import install_certificate
    from realign_cluster.node.identity import load_or_create_identity, local_machine

    folder = StateFolder.at(state)
    identity = load_or_create_identity(folder, local_machine())
    try:
        answer = json.loads(sys.stdin.read())
        certificate, authority = answer["certificate_pem"].encode(), answer["authority_pem"].encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "standard input is not JSON with certificate_pem and authority_pem", "see realignd request"
        ) from error
    _enrolled(folder, install_certificate(folder, identity, certificate, authority))


@app.command()
def join(
    code: Annotated[str, typer.Argument(help="From: realign cluster join-code")],
    state: State = DEFAULT_STATE,
    name: Name = None,
) -> None:
    """Join a cluster by hand, with a code that lives ten minutes.

    Example: realignd join realign1-... --name m3ultra
    """
    from realign_cluster.node.enrolment import join as join_cluster
    from realign_cluster.node.identity import load_or_create_identity, local_machine

    folder = StateFolder.at(state)
    identity = load_or_create_identity(folder, local_machine(), name)
    _enrolled(folder, asyncio.run(join_cluster(folder, identity, code)))
    at = "" if state == DEFAULT_STATE else f" --state {state}"
    print(f"{identity.name} is enrolled; start it: realignd run --detach{at}", file=sys.stderr)


@app.command()
def reset(state: State = DEFAULT_STATE) -> None:
    """Forget who this node is, so that it can be enrolled as a new one. Models and logs are kept.

    Example: realignd reset --state ~/.realign/node
    """
    from realign_cluster.node.identity import reset_identity
    from realign_cluster.node.lock import DaemonLock

    folder = StateFolder.at(state)
    with DaemonLock(folder.lock):
        gone = reset_identity(folder)
    print(f"{folder.root}: {len(gone)} files removed; enrol it again: realign-launch up, or realignd join CODE")


@app.command()
def stop(
    state: State = DEFAULT_STATE,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is gone.", min=0)] = 30.0,
) -> None:
    """Stop the daemon of this state folder: the unit in hand is finished, results are kept.

    Example: realignd stop --state ~/.realign/node
    """
    from realign_cluster.node.control import stop_daemon

    pid = stop_daemon(StateFolder.at(state), timeout)
    if pid is None:
        print(f"no daemon runs with the state folder {state}", file=sys.stderr)
    _print({"stopped": pid})


@app.command()
def status(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Say whether the daemon runs, who holds it and what it logged last. Exit 0 if it runs, else 1.

    Example: realignd status --json
    """
    from realign_cluster.node.control import daemon_status

    found = asyncio.run(daemon_status(StateFolder.at(state)))
    answer = found.as_json()
    if as_json:
        _print(answer)
    else:
        for key, value in answer.items():
            if key != "last_log" and value not in (None, ""):
                print(f"{key.replace('_', ' '):18} {value}")
        for line in found.last_log:
            print(f"  {line}")
    raise typer.Exit(0 if found.state == "running" else 1)


@app.command()
def install(
    state: Annotated[Path | None, typer.Option("--state", help="Default: .realign/node in that user's home.")] = None,
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = DEFAULT_PORT,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "0.0.0.0",
    name: Name = None,
    cores: Annotated[int, typer.Option(help="CPU cores its worker may use; 0 means all.", min=0)] = 0,
    user: Annotated[str | None, typer.Option(help="Who it runs as; default: you, also under sudo.")] = None,
    nice: Annotated[int | None, typer.Option(help="CPU priority, -20 (highest) to 20.", min=-20, max=20)] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for daemon and workers; repeatable.")] = None,
    service: Annotated[str | None, typer.Option(help="launchd or systemd; default: this machine's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit, change nothing.")] = False,
) -> None:
    """Make the daemon a service of this machine: a LaunchDaemon on macOS, a systemd unit on Linux.

    Example: sudo realignd install --name m3ultra --nice -10 --env MLX_METAL_FAST_SYNCH=1
    """
    from realign_cluster.node import install as services
    from realign_cluster.node.environment import parse_assignments

    kind = _service(service)
    owner = user or services.invoking_user()
    arguments = ["--port", str(port), "--host", host, *(["--name", name] if name else [])]
    arguments += ["--cores", str(cores)] if cores else []
    options = services.ServiceOptions(
        python=sys.executable,
        user=owner,
        state=(state or services.home_of(owner) / ".realign" / "node").expanduser().absolute(),
        arguments=tuple(arguments),
        environment=parse_assignments(env or []),
        nice=nice,
    )
    for line in services.explain(options):
        print(f"# {line}", file=sys.stderr)
    if dry_run:
        print(f"# {services.unit_path(kind)}", file=sys.stderr)
        sys.stdout.write(services.render_unit(kind, options).decode())
        return
    for command in services.install(kind, options):
        print(command)
    print(f"{services.unit_path(kind)} installed; enrol the node if it is not: realignd status --state {options.state}")


@app.command()
def uninstall(
    service: Annotated[str | None, typer.Option(help="launchd or systemd; default: this machine's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, change nothing.")] = False,
) -> None:
    """Stop the service and remove its unit. The state folder stays.

    Example: sudo realignd uninstall
    """
    from realign_cluster.node import install as services

    kind = _service(service)
    if dry_run:
        print(services.unit_path(kind))
        return
    for command in services.uninstall(kind):
        print(command)


def _service(asked: str | None) -> Literal["launchd", "systemd"]:
    if asked in ("launchd", "systemd"):
        return cast('Literal["launchd", "systemd"]', asked)
    if asked is not None:
        raise UsageError(f"--service {asked}: not a service system known here", "launchd or systemd")
    return "launchd" if sys.platform == "darwin" else "systemd"


def _enrolled(folder: StateFolder, bundle: Any) -> None:
    from realign_cluster.node.lock import lock_holder

    _print(
        {
            "node_id": bundle.identity.id,
            "fingerprint": bundle.fingerprint,
            "not_after": bundle.not_after.isoformat(),
            "restart_needed": lock_holder(folder.lock) is not None,
        }
    )


def _usable_cores() -> set[int] | range:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _print(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    try:
        app()
    except RealignError as error:
        print(f"realignd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
