"""One daemon from lock to goodbye: puts the parts together, serves, and ends in order on SIGTERM.

Serves before it knows everything: what MLX sees of the device is asked in the background, and `Describe` waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import structlog

from realign_cluster.domain.errors import RealignError
from realign_cluster.node.advertise import Advertiser
from realign_cluster.node.enrolment import enrolled_bundle
from realign_cluster.node.identity import Identity, load_or_create_identity, local_machine
from realign_cluster.node.lock import DaemonLock
from realign_cluster.node.logs import OutputLog, configure_logging
from realign_cluster.node.models import ModelStore
from realign_cluster.node.probe import HealthSampler, full_device, quick_device
from realign_cluster.node.service import NodeService
from realign_cluster.node.serving import Serving
from realign_cluster.node.spool import Spool
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.node.states import StateStore
from realign_cluster.node.workplace import Workplace
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.channel import SERVER_OPTIONS, own_certificate_days, server_credentials
from realign_cluster.rpc.pb.common_pb2 import NodeInfo
from realign_cluster.rpc.pb.node_pb2_grpc import add_NodeServicer_to_server
from realign_cluster.rpc.private_files import write_private
from realign_cluster.rpc.versions import local_versions

log = structlog.get_logger()

EXIT_SECONDS = 15.0  # below launchd's ExitTimeOut and systemd's TimeoutStopSec (install.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """`exit_seconds`: how long the unit in hand may take once the daemon is told to stop."""

    state: Path
    host: str
    port: int
    name: str | None
    cores: int
    advertise: bool = True
    exit_seconds: float = EXIT_SECONDS
    log_to_stderr: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonFacts:
    """daemon.json, and what `run --detach` prints."""

    node_id: str
    name: str
    host: str
    port: int
    pid: int
    fingerprint: str
    started: float  # Unix time


async def serve(options: DaemonOptions, ready: Callable[[DaemonFacts], None]) -> None:
    """Serves until SIGTERM or SIGINT. `ready` is called once calls are answered. Raises RealignError."""
    folder = StateFolder.at(options.state)
    configure_logging(folder.daemon_log, to_stderr=options.log_to_stderr)
    identity = load_or_create_identity(folder, local_machine(), options.name)
    bundle = enrolled_bundle(folder, identity)
    days = own_certificate_days(bundle)
    if days < 0:
        raise RealignError(
            f"the certificate of {identity.name} expired {-days:.0f} days ago",
            "enrol it again: realign-launch --hostfile FILE up, or realignd join CODE",
        )
    with DaemonLock(folder.lock):
        check_port(options.host, options.port)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            serving = _put_together(options, folder, identity, bundle, stack)
            server, port = await _listen(options, serving, stack)
            facts = DaemonFacts(
                node_id=identity.node_id,
                name=identity.name,
                host=options.host,
                port=port,
                pid=os.getpid(),
                fingerprint=bundle.fingerprint,
                started=time.time(),
            )
            write_private(folder.daemon, json.dumps(asdict(facts)).encode() + b"\n")
            stack.callback(folder.daemon.unlink, missing_ok=True)
            log.info("serving", port=port, node=identity.node_id, name=identity.name, certificate_days=int(days))
            _stay_awake()
            advertiser = Advertiser(await _advertised(facts), port, options.host) if options.advertise else None
            if advertiser is not None:
                advertiser.start()
            ready(facts)
            await stop.wait()
            log.info("stopping")
            goodbye = asyncio.create_task(advertiser.close()) if advertiser is not None else None
            await serving.workplace.finish(options.exit_seconds)
            await server.stop(grace=1.0)
            if goodbye is not None:
                await goodbye
        log.info("stopped")


def _put_together(
    options: DaemonOptions,
    folder: StateFolder,
    identity: Identity,
    bundle: CertificateBundle,
    stack: contextlib.AsyncExitStack,
) -> Serving:
    """The parts that serve, and their background tasks, which end with the stack."""
    output = OutputLog(folder.worker_log)
    stack.callback(output.close)
    models = ModelStore(folder.models)
    workplace = Workplace(
        node_name=identity.name,
        models=models,
        spool=Spool(folder.spool),
        states=StateStore(folder.training),
        bundle=bundle,
        output=output,
        cores=options.cores,
        clock=time.monotonic,
    )
    health = HealthSampler(folder.root)
    device = asyncio.ensure_future(full_device(folder.device))
    tasks = [device, asyncio.create_task(workplace.keep_house()), asyncio.create_task(health.watch())]
    stack.push_async_callback(_cancel, tasks)
    return Serving(
        node_id=identity.node_id,
        name=identity.name,
        folder=folder,
        bundle=bundle,
        workplace=workplace,
        models=models,
        health=health,
        device=device,
        versions=local_versions(),
        pid=os.getpid(),
        started_at=time.monotonic(),
    )


async def _listen(
    options: DaemonOptions, serving: Serving, stack: contextlib.AsyncExitStack
) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    stack.push_async_callback(server.stop, None)  # also one that never started: otherwise the process does not end
    add_NodeServicer_to_server(NodeService(serving), server)  # type: ignore[no-untyped-call]
    address = f"[{options.host}]:{options.port}" if ":" in options.host else f"{options.host}:{options.port}"
    try:
        port = server.add_secure_port(address, server_credentials(serving.bundle))
    except RuntimeError as error:
        raise RealignError(f"cannot listen on {address}: {error}", "choose another --port") from error
    await server.start()
    return server, port


async def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _advertised(facts: DaemonFacts) -> NodeInfo:
    return NodeInfo(
        node_id=facts.node_id,
        name=facts.name,
        versions=local_versions(),
        device=await quick_device(),
        certificate_fingerprint=facts.fingerprint,
    )


def _stay_awake() -> None:
    """A Mac that falls asleep leaves the cluster. The system's own tool keeps it awake while this process lives."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            subprocess.Popen(["caffeinate", "-ims", "-w", str(os.getpid())], start_new_session=True)


def check_port(host: str, port: int) -> None:
    """Raises RealignError with the reason that gRPC would not give. Port 0 is always free."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise RealignError(
                    f"port {port} on {host} is in use{_used_by(port)}",
                    "stop that program, or choose another: --port N (hostfile: realign.port)",
                ) from error
            if error.errno == errno.EACCES:
                raise RealignError(f"port {port} needs root", "choose one above 1023: --port N") from error
            raise RealignError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                "give an address of this machine: --host ADDRESS, or 0.0.0.0 for all",
            ) from error


def _used_by(port: int) -> str:
    """ " by pid 123 (python)" where the system tells."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr
            if connection.status == psutil.CONN_LISTEN and here and here.port == port and connection.pid:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
