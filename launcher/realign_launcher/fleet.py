"""All hosts of a hostfile at once: up, down, status, and what a dry run prints.

One host's failure never holds up another.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from realign_cluster.coordinator.describe import Described
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.hostfile import Host, Hostfile
from realign_launcher import commands
from realign_launcher.host_steps import DaemonStatus, HostSteps, Venv
from realign_launcher.progress import Progress
from realign_launcher.shells import Shell, names_of_this_machine, shell_for
from realign_launcher.wheel import build_wheel

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one host. `error` is None when all went well."""

    host: Host
    error: RealignError | None = None
    started: bool = False  # by us, so ours to stop
    stopped: bool = False
    status: DaemonStatus | None = None
    described: Described | None = None

    def as_event(self) -> dict[str, Any]:
        event: dict[str, Any] = {
            "event": "host",
            "name": self.host.name,
            "ssh": self.host.ssh,
            "address": self.host.target,
            "serving": self.described is not None,
            "started": self.started,
            "stopped": self.stopped,
        }
        if self.described is not None:
            event |= {"node_id": self.described.info.node_id, "pid": self.described.info.pid}
        if self.status is not None:
            event |= {"running": self.status.running, "last_log": list(self.status.last_log)}
        if self.error is not None:
            event |= {"error": self.error.message, "fix": self.error.fix}
        return event


class Fleet:
    """The hosts of one file, and which of their daemons we started."""

    def __init__(self, hostfile: Hostfile, home: ClusterHome, progress: Progress) -> None:
        own_names = names_of_this_machine()
        venvs: dict[str, Venv] = {}
        progress.widen([host.name for host in hostfile.hosts])
        self._progress = progress
        self._home = home
        self._steps = [
            HostSteps(
                host,
                shell_for(host, own_names),
                home,
                progress,
                pythons=pythons_for(host, own_names),
                installs=installs_on(host, own_names),
                hostfile=hostfile.name,
                venv=venvs.setdefault("" if host.is_local(own_names) else host.ssh, Venv()),
            )
            for host in hostfile.hosts
        ]

    async def up(self, *, install: bool) -> list[Outcome]:
        """Every host until it serves, in parallel; a host that does not is in the outcomes with its error."""
        self._home.ensure_authority()
        wheel = None
        if install and any(steps.installs for steps in self._steps):
            with tempfile.TemporaryDirectory(prefix="realign-wheel-") as folder:
                wheel = await asyncio.to_thread(build_wheel, Path(folder))

        async def one(steps: HostSteps) -> Outcome:
            described = await steps.up(wheel)
            return Outcome(host=steps.host, started=steps.start_asked, described=described)

        return await self._each(one)

    async def status(self) -> list[Outcome]:
        async def one(steps: HostSteps) -> Outcome:
            status, described, why = await steps.status()
            error = None if described else RealignError(f"{steps.host.name}: {why}", _UP)
            return Outcome(host=steps.host, status=status, described=described, error=error)

        return await self._each(one)

    async def down(self) -> list[Outcome]:
        async def one(steps: HostSteps) -> Outcome:
            return Outcome(host=steps.host, stopped=await steps.down())

        return await self._each(one)

    async def stop_started(self) -> list[Outcome]:
        """Stop the daemons that `up` started, also those it was about to when it was interrupted."""

        async def one(steps: HostSteps) -> Outcome:
            if not steps.start_asked:
                return Outcome(host=steps.host)
            await steps.stop()
            steps.start_asked = False
            return Outcome(host=steps.host, stopped=True)

        return await self._each(one)

    async def _each(self, one: Callable[[HostSteps], Awaitable[Outcome]]) -> list[Outcome]:
        async def guarded(steps: HostSteps) -> Outcome:
            try:
                return await one(steps)
            except RealignError as error:
                self._progress.bad(steps.host.name, str(error).removeprefix(f"{steps.host.name}: "))
                return Outcome(host=steps.host, error=error, started=steps.start_asked)

        return list(await asyncio.gather(*(guarded(steps) for steps in self._steps)))


_SOME_WHEEL = "realign_cluster-VERSION-py3-none-any.whl"
_UP = "realign-launch --hostfile FILE up"


def pythons_for(host: Host, own_names: frozenset[str]) -> tuple[str, ...]:
    """Where to look for a Python with the project, in order."""
    if host.python:
        return tuple(dict.fromkeys((host.python, commands.VENV_PYTHON)))
    if host.is_local(own_names):
        return (sys.executable,)
    return (commands.VENV_PYTHON, commands.DEFAULT_PYTHON)


def installs_on(host: Host, own_names: frozenset[str]) -> bool:
    """Whether `--install` has anything to do: the launcher's own Python runs this very code already."""
    return host.python is not None or not host.is_local(own_names)


def dry_run(hostfile: Hostfile, verb: str, *, install: bool, keep: bool) -> list[str]:
    """The lines of `--dry-run`: every command that `verb` may run on a host, in order, and when. Touches nothing."""
    own_names = names_of_this_machine()
    lines: list[str] = []
    for host in hostfile.hosts:
        installing = install and installs_on(host, own_names)
        shell = shell_for(host, own_names)
        pythons = pythons_for(host, own_names)
        lines.append(f"# {host.name}: {'this machine' if host.is_local(own_names) else host.ssh}, {host.target}")
        for when, script in _scripts(host, pythons, verb, install=installing, keep=keep):
            lines += [f"# {when}", _one_line(shell, script)]
        lines.append("")
    return lines


def _scripts(host: Host, pythons: tuple[str, ...], verb: str, *, install: bool, keep: bool) -> list[tuple[str, str]]:
    python = commands.VENV_PYTHON if install else pythons[0]
    scripts = [("check Python and versions", commands.check(pythons))]
    if len(pythons) > 1 and not install:
        scripts = [(f"check Python and versions; {pythons[0]} below is the first that has the project", scripts[0][1])]
    status = ("see whether its daemon runs and which certificate it has", commands.status(host, python))
    stop = commands.stop(host, python)
    if verb == "status":
        return [*scripts, status]
    if verb == "down":
        return [*scripts, status, ("if it runs", stop)]
    if install:
        base = next((p for p in pythons if p != commands.VENV_PYTHON), pythons[0])
        scripts += [
            ("see which wheel is installed", commands.installed_wheel()),
            (
                "if another: copy the wheel (standard input)",
                commands.copy_wheel("realign_cluster-VERSION-py3-none-any.whl"),
            ),
            ("and install it", commands.install(base, _SOME_WHEEL, "SHA256")),
        ]
    scripts += [
        status,
        ("if its certificate is missing, of another cluster or about to expire", commands.request(host, python)),
        ("then, with the signed certificate on standard input", commands.enrol(host, python)),
        ("if it does not run", commands.start(host, python)),
    ]
    if verb != "up" and not keep:
        scripts.append((f"after {verb}, if it was started here", stop))
    return scripts


def _one_line(shell: Shell, script: str) -> str:
    return shlex.join(shell.command(script))
