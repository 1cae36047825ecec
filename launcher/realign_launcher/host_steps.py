"""One host's way up, down, or through an inspection: check, install, enrol, start, wait until it serves.

Each step either passes or raises a RealignError that names the host, the reason and the fix. What was started is
remembered, so that whoever asked can stop exactly that. Knows nothing of other hosts.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from realign_cluster.coordinator.describe import Described, describe
from realign_cluster.coordinator.home import RENEW_DAYS, ClusterHome, NodeRequest
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.domain.errors import NodesMissing, RealignError
from realign_cluster.domain.hostfile import Host
from realign_cluster.domain.ids import NodeId, NodeName
from realign_cluster.domain.skew import skew
from realign_cluster.rpc.certificates import CertificateError, fingerprint, parse_certificate
from realign_cluster.rpc.channel import PeerRefused
from realign_cluster.rpc.versions import local_versions
from realign_launcher import commands
from realign_launcher.progress import Progress
from realign_launcher.shells import Finished, Shell
from realign_launcher.wheel import Wheel

OLDEST_PYTHON = (3, 11)
SERVE_SECONDS = 20.0
START_SECONDS = 90.0  # a first start imports from a cold disk
STOP_SECONDS = 60.0  # the daemon's own exit time, and a little
INSTALL_SECONDS = 1800.0  # pip may have MLX to fetch
_POLL_SECONDS = 0.2
_NAME_PYTHON = '"realign": {"python": "/path/to/python3"}'
_WILL_PASS = ("not-listening", "timeout")


class DaemonStatus(BaseModel):
    """What `realignd status --json` says of a state folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: Literal["running", "silent", "stopped"]  # silent: there is a process, which does not answer
    pid: int | None = None
    port: int | None = None
    node_id: str | None = None
    trouble: str = ""
    held_by: dict[str, Any] | None = None  # the run that has it
    last_log: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        return self.state != "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A host's daemon and the certificate in its state folder."""

    status: DaemonStatus
    certificate_pem: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPython:
    path: str  # as it was asked for, so that ~ stays the host's
    version: str
    packages: dict[str, str]  # empty string: not installed

    @property
    def new_enough(self) -> bool:
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) >= OLDEST_PYTHON

    @property
    def has_project(self) -> bool:
        return bool(self.packages.get("realign-cluster"))


@dataclass(slots=True)
class Venv:
    """A machine's private environment, which its nodes share."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    updated: bool = False  # by this launch


class HostSteps:
    """The steps for one host. `started` and `start_asked` tell whether its daemon is ours to stop."""

    def __init__(
        self,
        host: Host,
        shell: Shell,
        home: ClusterHome,
        progress: Progress,
        *,
        pythons: tuple[str, ...],
        installs: bool,
        hostfile: str,
        venv: Venv,
    ) -> None:
        self.host = host
        self.start_asked = False
        self._shell = shell
        self._home = home
        self._progress = progress
        self._pythons = pythons
        self.installs = installs
        self._hostfile = hostfile
        self._venv = venv
        self._python = pythons[0]

    async def up(self, wheel: Wheel | None) -> Described:
        """All steps until the daemon serves this cluster. Raises RealignError."""
        await self._choose_python(wheel)
        found = await self._look()
        ran_before = found.status.running
        status = await self._restart_if_updated(await self._enrol_if_needed(found))
        node_id = status.node_id
        if status.running:
            if status.port != self.host.port:
                raise self._wrong(
                    f"its daemon (pid {status.pid}) serves on port {status.port}, the hostfile says {self.host.port}",
                    f"correct the port, or restart it: realign-launch --hostfile {self._hostfile} down, then up",
                )
            self._progress.step(self.host.name, f"daemon runs already, pid {status.pid}")
        else:
            node_id = await self._start()
            if ran_before:
                self.start_asked = False  # it was there before us, and stays
        if not node_id:
            raise self._wrong("its daemon does not say which node it is", "see: realignd status --json there")
        described = await self._wait_until_it_serves(node_id)
        self._home.record_address(node_id, self.host.target)
        for item in skew(local_versions(), described.info.versions):
            self._progress.step(self.host.name, item.text(self.host.name), "yellow")
        self._progress.good(self.host.name, f"serves on {self.host.target} as {node_id}")
        return described

    async def status(self) -> tuple[DaemonStatus, Described | None, str]:
        """What the host says of its daemon, what the daemon says itself, and why it does not. Raises RealignError."""
        await self._choose_python(None)
        status = (await self._look()).status
        if not status.running or not status.node_id:
            return status, None, f"not running; {status.trouble}" if status.trouble else "not running"
        try:
            return status, await describe(self._address(status.node_id)), ""
        except RealignError as error:
            return status, None, str(error)

    async def down(self) -> bool:
        """Stop the daemon. False when none ran. Raises RealignError."""
        await self._choose_python(None)
        if not (await self._look()).status.running:
            self._progress.step(self.host.name, "no daemon runs")
            return False
        await self.stop()
        return True

    async def stop(self) -> None:
        finished = await self._shell.run(commands.stop(self.host, self._python), seconds=STOP_SECONDS)
        if finished.status:
            raise self._failed("its daemon was not stopped", finished)
        self._progress.step(self.host.name, "stopped")

    async def _choose_python(self, wheel: Wheel | None) -> None:
        finished = await self._shell.run(commands.check(self._pythons))
        found = _pythons_in(finished, self._pythons)
        if not found:
            raise self._wrong(
                f"no Python at {' or '.join(self._pythons)}: {finished.complaint()}",
                f"install Python 3.11 or later there, or name it in {self._hostfile}: {_NAME_PYTHON}",
            )
        recent = [python for python in found if python.new_enough]
        if not recent:
            raise self._wrong(
                f"{found[-1].path} is Python {found[-1].version}, 3.11 or later is needed",
                f"install a newer one there and name it in {self._hostfile}: {_NAME_PYTHON}",
            )
        if wheel is not None and self.installs:
            base = next((python for python in recent if python.path != commands.VENV_PYTHON), recent[0])
            await self._install(base.path, wheel)
            return
        for python in recent:
            if python.has_project:
                self._python = python.path
                versions = ", ".join(f"{name} {version or 'missing'}" for name, version in python.packages.items())
                self._progress.step(self.host.name, f"Python {python.version}, {versions}")
                return
        raise self._wrong(
            f"realign-cluster is not installed for {recent[0].path} (Python {recent[0].version})",
            f"realign-launch --hostfile {self._hostfile} --install up",
        )

    async def _install(self, base: str, wheel: Wheel) -> None:
        self._python = commands.VENV_PYTHON
        async with self._venv.lock:
            before = await self._shell.run(commands.installed_wheel())
            if wheel.digest in before.output.split():
                self._progress.step(self.host.name, f"{wheel.name} is installed already")
                return
            self._progress.step(
                self.host.name, f"installing {wheel.name} ({len(wheel.data) / 1e6:.1f} MB) into {commands.VENV}"
            )
            copied = await self._shell.run(commands.copy_wheel(wheel.name), stdin=wheel.data, seconds=INSTALL_SECONDS)
            if copied.status:
                raise self._failed("the wheel was not copied", copied)
            installed = await self._shell.run(commands.install(base, wheel.name, wheel.digest), seconds=INSTALL_SECONDS)
            if installed.status:
                raise self._failed(
                    "the wheel was not installed",
                    installed,
                    "see what pip says; the host needs whatever pip there fetches from",
                )
            self._venv.updated = True

    async def _restart_if_updated(self, status: DaemonStatus) -> DaemonStatus:
        """A daemon that ran through an update still is the old code."""
        if not (self._venv.updated and status.running):
            return status
        if status.held_by is not None:
            holder = status.held_by.get("coordinator", "a run")
            self._progress.step(
                self.host.name, f"its daemon is held by {holder}: it takes the update when restarted", "yellow"
            )
            return status
        await self.stop()
        return status.model_copy(update={"state": "stopped"})

    async def _look(self) -> Found:
        finished = await self._shell.run(commands.status(self.host, self._python))
        try:
            status = DaemonStatus.model_validate(finished.json())
        except ValidationError:
            raise self._failed(f"realignd status failed for {self.host.state}", finished) from None
        begin = finished.output.find("-----BEGIN CERTIFICATE-----")
        return Found(status=status, certificate_pem=finished.output[begin:].encode() if begin >= 0 else None)

    async def _enrol_if_needed(self, found: Found) -> DaemonStatus:
        status = found.status
        why = self._why_enrol(found)
        if not why:
            return status
        if status.running:
            await self.stop()
        self._progress.step(self.host.name, f"enrolling: {why}")
        asked = await self._shell.run(commands.request(self.host, self._python))
        if asked.status:
            raise self._failed("it made no signing request", asked)
        reply = asked.json()
        signed = self._home.sign_node(
            NodeRequest(
                node_id=str(reply.get("node_id", "")),
                name=self.host.name,
                request_pem=str(reply.get("request_pem", "")).encode(),
            ),
            address=self.host.target,
        )
        answer = {"certificate_pem": signed.certificate_pem.decode(), "authority_pem": signed.authority_pem.decode()}
        enrolled = await self._shell.run(commands.enrol(self.host, self._python), stdin=json.dumps(answer).encode())
        if enrolled.status:
            raise self._failed("it did not take its certificate", enrolled)
        return status.model_copy(update={"state": "stopped", "node_id": str(reply["node_id"])})

    def _why_enrol(self, found: Found) -> str:
        """Empty when its certificate will do. Raises RealignError when it must not be enrolled."""
        status = found.status
        if found.certificate_pem is None:
            return "it has no certificate"
        try:
            certificate = parse_certificate(found.certificate_pem)
        except CertificateError:
            return "its certificate is damaged"
        standing = self._home.standing(fingerprint(found.certificate_pem))
        if standing == "revoked":
            raise self._wrong(
                f"node {status.node_id} was revoked",
                "take it out of the hostfile; or admit it: realign cluster join-code, then there realignd join CODE",
            )
        if standing == "unknown":
            if status.running:
                raise self._wrong(
                    f"a daemon of another cluster runs in {self.host.state} (pid {status.pid})",
                    'give this cluster a state folder and a port of its own ("realign": {"state": ..., "port": ...}), '
                    "or stop that one there: realignd stop",
                )
            return "its certificate is of another cluster"
        days = (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).total_seconds() / 86_400
        # A running daemon is not interrupted for a certificate that is good for another day.
        if days < (1 if status.running else RENEW_DAYS):
            return "its certificate has expired" if days < 0 else f"its certificate expires in {days:.0f} days"
        return ""

    async def _start(self) -> str:
        self._progress.step(self.host.name, f"starting realignd on port {self.host.port}")
        self.start_asked = True
        finished = await self._shell.run(commands.start(self.host, self._python), seconds=START_SECONDS)
        if finished.status:
            self.start_asked = False
            raise self._failed("realignd did not start", finished)
        return str(finished.json().get("node_id", ""))

    async def _wait_until_it_serves(self, node_id: str) -> Described:
        give_up = time.monotonic() + SERVE_SECONDS
        while True:
            try:
                return await describe(self._address(node_id))
            except PeerRefused as error:
                if error.reason not in _WILL_PASS or time.monotonic() > give_up:
                    raise self._wrong(error.message, error.fix) from None
            await asyncio.sleep(_POLL_SECONDS)

    def _address(self, node_id: str) -> NodeAddress:
        return NodeAddress(
            name=NodeName(self.host.name),
            node_id=NodeId(node_id),
            address=self.host.target,
            bundle=self._home.bundle(),
            home=self._home,
        )

    def _wrong(self, message: str, fix: str) -> NodesMissing:
        return NodesMissing(f"{self.host.name}: {message}", fix)

    def _failed(self, what: str, finished: Finished, fix: str = "") -> NodesMissing:
        """The host's own words already say the fix where it is one of our commands that failed."""
        return NodesMissing(f"{self.host.name}: {what}: {finished.complaint().removeprefix('realignd: ')}", fix)


def _pythons_in(finished: Finished, asked: tuple[str, ...]) -> list[FoundPython]:
    """One line of JSON per Python that is there, each with the index of its path in `asked`."""
    found: list[FoundPython] = []
    for line in finished.output.splitlines():
        if not line.startswith("{"):
            continue
        try:
            said: dict[str, Any] = json.loads(line)
            found.append(FoundPython(path=asked[said["index"]], version=said["python"], packages=said["packages"]))
        except (ValueError, KeyError, IndexError, TypeError):
            continue
    return found
