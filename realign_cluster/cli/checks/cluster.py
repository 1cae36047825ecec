"""The cluster as seen from here: certificates, ports, what mDNS hears, each node of a hostfile with its versions."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from realign_cluster.cli.checks.finding import Finding, fail, ok, warn
from realign_cluster.coordinator.describe import Described, describe
from realign_cluster.coordinator.discovery import find_nodes, judge
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.hostfile import Host, Hostfile
from realign_cluster.domain.ids import NodeId, NodeName
from realign_cluster.domain.skew import skew, skew_between
from realign_cluster.rpc.certificates import CertificateBundle, parse_certificate
from realign_cluster.rpc.versions import local_versions

SOON_DAYS = 14
LISTEN_SECONDS = 2.0
MDNS_PORT = 5353
LITTLE_NODE_DISK_BYTES = 5 * 2**30


def check_certificates(home: ClusterHome, node_state: Path) -> list[Finding]:
    """Expiry and permissions of the authority, the coordinator's, this machine's node's and the enrolled nodes' own."""
    found: list[Finding] = []
    if home.exists:
        folder = home.folder
        found += _certificate_file(
            "authority",
            folder / "authority" / "ca.crt",
            "make a new cluster: realign cluster init in a new REALIGN_HOME",
        )
        found += _certificate_file(
            "coordinator", folder / "coordinator" / "coordinator.crt", "realign nodes --discover   (it is renewed)"
        )
        found += _private(folder / "authority" / "ca.key", folder / "coordinator" / "coordinator.key")
        try:
            found += _enrolled(home)
        except RealignError as error:
            found.append(fail("certificates", error.message, error.fix))
    else:
        text = f"no cluster yet in {home.folder}"
        found.append(warn("certificates", text, "realign-launch --hostfile FILE up   (or: realign cluster init)"))
    if (node_state / "node.crt").exists():
        rejoin = "realign-launch --hostfile FILE up   (or: realignd join CODE)"
        found += _certificate_file(f"node in {node_state}", node_state / "node.crt", rejoin)
        found += _private(node_state / "node.key")
        try:
            CertificateBundle.load(node_state)
        except RealignError as error:
            found.append(fail("certificates", f"{node_state}: {error.message}", error.fix))
        except FileNotFoundError as error:
            found.append(fail("certificates", f"{error.filename} is missing", rejoin))
    return found


def check_ports(hosts: tuple[Host, ...], default_port: int) -> list[Finding]:
    """Each port that a daemon of this machine is to serve on: free, or whose it is."""
    names = frozenset({socket.gethostname().lower(), socket.gethostname().split(".")[0].lower()})
    local = [(host.name, host.port) for host in hosts if host.is_local(names)]
    return [_port(name, port) for name, port in local or ([] if hosts else [("realignd", default_port)])]


async def check_mdns(home: ClusterHome) -> list[Finding]:
    """Who advertises itself; hearing nobody is worth a warning, as a hostfile needs no mDNS."""
    try:
        nodes = await find_nodes(LISTEN_SECONDS)
    except RealignError as error:
        return [warn("mdns", error.message, error.fix)]
    if not nodes:
        text = f"no realignd was heard within {LISTEN_SECONDS:.0f} s"
        fix = (
            f"start one (realignd run), and see that UDP {MDNS_PORT} passes the firewall; hostfiles work without mDNS; "
            "macOS: System Settings > Privacy & Security > Local Network"
        )
        return [warn("mdns", text, fix)]
    judged = await asyncio.gather(*(judge(node, home) for node in nodes))
    return [
        ok("mdns", f"heard {one.node.name} at {one.node.address}: {one.standing}")
        if one.standing == "enrolled"
        else warn("mdns", f"heard {one.node.name} at {one.node.address}: {one.standing}", one.detail)
        for one in judged
    ]


async def check_nodes(hostfile: Hostfile, home: ClusterHome) -> list[Finding]:
    """Each node of the hostfile: reachable, of the same versions, with room."""
    answers = await asyncio.gather(*(_ask(host, home) for host in hostfile.hosts))
    found: list[Finding] = []
    described: dict[str, Described] = {}
    for host, answer in zip(hostfile.hosts, answers, strict=True):
        if isinstance(answer, Finding):
            found.append(answer)
        else:
            described[host.name] = answer
            found += _node_findings(host, answer)
    for line in skew_between({name: one.info.versions for name, one in described.items()}):
        found.append(warn("skew", f"the nodes differ: {line}", "realign-launch --hostfile FILE --install up"))
    return found


def _node_findings(host: Host, answer: Described) -> list[Finding]:
    info, health = answer.info, answer.health
    device = f"{info.device.chip}, {info.device.backend or 'no MLX backend'}"
    found = [ok("nodes", f"{host.name} at {host.target} serves: {device}, mlx {info.versions.mlx}")]
    if not info.device.backend:
        found.append(fail("nodes", f"{host.name}: MLX does not load there", f"on {host.name}: realign doctor"))
    for item in skew(local_versions(), info.versions):
        text = f"{host.name} has {item.what} {item.found or 'none'}, here it is {item.expected or 'none'}"
        found.append(fail("skew", text, item.fix) if item.severity == "refused" else warn("skew", text, item.fix))
    if health.disk_free_bytes < LITTLE_NODE_DISK_BYTES:
        text = f"{host.name}: {health.disk_free_bytes / 2**30:.1f} GiB free on its disk"
        found.append(warn("nodes", text, f"free some room on {host.name}: models and spooled results need it"))
    if health.thermal_pressure not in ("", "unknown", "nominal"):
        text = f"{host.name}: thermal pressure is {health.thermal_pressure}"
        found.append(warn("nodes", text, "let it cool down: it computes slower and calibrates low"))
    if info.HasField("holder"):
        found.append(ok("nodes", f"{host.name} is held by {info.holder.coordinator}, run {info.holder.run_id}"))
    return found


async def _ask(host: Host, home: ClusterHome) -> Described | Finding:
    entry = home.find(host.name, host.target) if home.exists else None
    if entry is None:
        return fail("nodes", f"{host.name} at {host.target} is not enrolled", "realign-launch --hostfile FILE up")
    address = NodeAddress(
        name=NodeName(host.name), node_id=NodeId(entry.node_id), address=host.target, bundle=home.bundle(), home=home
    )
    try:
        return await describe(address)
    except RealignError as error:
        return fail("nodes", error.message, error.fix)


def _enrolled(home: ClusterHome) -> list[Finding]:
    nodes = [node for node in home.nodes() if node.revoked is None]
    found = []
    for node in nodes:
        days = (node.expires - datetime.now(UTC)).days
        if days < SOON_DAYS:
            text = f"the certificate of {node.name} {_expires(days)}"
            found.append((fail if days < 0 else warn)("certificates", text, "realign-launch --hostfile FILE up"))
    names = ", ".join(sorted({node.name for node in nodes}))
    return [ok("certificates", f"{len(nodes)} enrolled: {names}" if nodes else "no node is enrolled yet"), *found]


def _certificate_file(what: str, path: Path, fix: str) -> list[Finding]:
    try:
        certificate = parse_certificate(path.read_bytes())
    except FileNotFoundError:
        return [fail("certificates", f"{path} is missing", fix)]
    except PermissionError:
        return [fail("certificates", f"{path} cannot be read by this user", f"sudo chown $USER {path}")]
    except RealignError as error:
        return [fail("certificates", f"{path}: {error.message}", fix)]
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    text = f"the certificate of the {what} {_expires(days)}"
    if days >= SOON_DAYS:
        return [ok("certificates", text)]
    return [(fail if days < 0 else warn)("certificates", text, fix)]


def _expires(days: int) -> str:
    return f"expired {-days} days ago" if days < 0 else f"expires in {days} days"


def _private(*keys: Path) -> list[Finding]:
    """Keys that others than their owner can read are no secret any more."""
    return [
        fail("certificates", f"{key} can be read by others (mode {key.stat().st_mode & 0o777:o})", f"chmod 600 {key}")
        for key in keys
        if key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077
    ]


def _port(name: str, port: int, owner: Callable[[int], str] | None = None) -> Finding:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except PermissionError:
            return fail("ports", f"port {port} ({name}) may not be used by this user", "choose one above 1024")
        except OSError:
            who = (owner or _listener)(port)
            if "realignd" in who:
                return ok("ports", f"port {port} ({name}): {who} serves")
            fix = f'choose another: "port" in the hostfile, or realignd run --port N; or end it: lsof -iTCP:{port}'
            return fail("ports", f"port {port} ({name}) is in use by {who}", fix)
    return ok("ports", f"port {port} ({name}) is free")


def _listener(port: int) -> str:
    """The process that listens on `port`: another user's cannot be named without root."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "a process that cannot be named without root"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", 0) == port and connection.pid:
            try:
                process = psutil.Process(connection.pid)
                line = process.cmdline()
            except psutil.Error:
                return f"pid {connection.pid}"
            daemon = any("realignd" in part for part in line)
            return f"{'realignd' if daemon else process.name()} (pid {connection.pid})"
    return "another process"
