"""Runs a script on a host: here, or over ssh with the user's own keys, agent and configuration.

Never a password, never a terminal: a host that would ask is a host that refused. What ssh says when it fails becomes a
reason and what puts it right.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from realign_cluster.domain.errors import NodesMissing
from realign_cluster.domain.hostfile import Host

CONNECT_SECONDS = 5
SSH_OPTIONS = (
    "-o",
    "BatchMode=yes",
    "-o",
    f"ConnectTimeout={CONNECT_SECONDS}",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=3",
    "-T",
)
_SSH_FAILED = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a script said. `status` is its exit status."""

    status: int
    output: str
    errors: str

    def json(self) -> dict[str, Any]:
        """The last line of output that is a JSON object (a login shell may print before it). {} without one."""
        for line in reversed(self.output.splitlines()):
            if line.startswith("{"):
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    return value
        return {}

    def complaint(self) -> str:
        """The end of what it said on standard error, for a message."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return "\n".join(lines[-6:]) or f"exit status {self.status} without a word"


class Shell(Protocol):
    """Runs scripts on one host."""

    def command(self, script: str) -> list[str]:
        """What is executed here for `script` to run there."""
        ...

    async def run(self, script: str, *, stdin: bytes = b"", seconds: float = 60) -> Finished:
        """Run `script`. Raises Unreachable when the host cannot be reached or does not answer in time."""
        ...


class Unreachable(NodesMissing):
    """A host that cannot be talked to: its message says why, its fix what to do."""


class LocalShell:
    """This machine."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def command(self, script: str) -> list[str]:
        return ["/bin/sh", "-c", script]

    async def run(self, script: str, *, stdin: bytes = b"", seconds: float = 60) -> Finished:
        return await _execute(self._host, self.command(script), stdin, seconds)


class RemoteShell:
    """A host over ssh."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def command(self, script: str) -> list[str]:
        return ["ssh", *SSH_OPTIONS, "--", self._host.ssh, f"exec /bin/sh -c {shlex.quote(script)}"]

    async def run(self, script: str, *, stdin: bytes = b"", seconds: float = 60) -> Finished:
        finished = await _execute(self._host, self.command(script), stdin, seconds)
        if finished.status == _SSH_FAILED:
            reason, fix = diagnose(self._host.ssh, finished.errors)
            raise Unreachable(f"{self._host.name}: {reason}", fix)
        return finished


def shell_for(host: Host, own_names: frozenset[str]) -> Shell:
    return LocalShell(host) if host.is_local(own_names) else RemoteShell(host)


def names_of_this_machine() -> frozenset[str]:
    """What a hostfile may call this machine, in lower case, so that no ssh is needed for it."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return frozenset({name, short, f"{short}.local"})


def diagnose(target: str, errors: str) -> tuple[str, str]:
    """Why ssh failed, in a phrase, and what puts it right; from what it printed."""
    name = shlex.quote(target)
    for pattern, reason, fix in _DIAGNOSES:
        if re.search(pattern, errors, re.IGNORECASE):
            return reason.format(target=target), fix.format(name=name)
    said = " ".join(errors.split())[-300:] or "no word of why"
    return f"ssh to {target} failed: {said}", f"try: ssh {name} true"


_DIAGNOSES = (
    (
        r"could not resolve hostname|name or service not known|nodename nor servname",
        "unknown host: ssh cannot resolve {target}",
        'correct "ssh" in the hostfile, or add the name to ~/.ssh/config or /etc/hosts; try: ssh {name} true',
    ),
    (
        r"host key verification failed|remote host identification has changed",
        "ssh does not know the host key of {target}, or it changed",
        "look at it once by hand: ssh {name} true (and ssh-keygen -R {name} if the machine was reinstalled)",
    ),
    (
        r"permission denied|no supported authentication|too many authentication failures",
        "{target} refuses the login: no key of yours is accepted",
        "ssh-copy-id {name}, or ssh-add the key; realign-launch never sends passwords",
    ),
    (
        r"connection refused",
        "{target} is up but serves no ssh",
        "on it: System Settings > General > Sharing > Remote Login (Linux: install and start openssh-server)",
    ),
    (
        r"timed out|no route to host|network is unreachable|host is down",
        "{target} does not answer: off, asleep or not connected",
        "wake it or check its cable, then try: ssh {name} true",
    ),
    (
        r"connection (closed|reset)|broken pipe",
        "{target} closed the connection",
        "look at its sshd's log, then try: ssh {name} true",
    ),
)


async def _execute(host: Host, command: list[str], stdin: bytes, seconds: float) -> Finished:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is ours to handle: what runs must not die half way
        )
    except FileNotFoundError:
        raise Unreachable(f"{host.name}: there is no {command[0]} here", "install an OpenSSH client") from None
    try:
        output, errors = await asyncio.wait_for(process.communicate(stdin), seconds)
    except TimeoutError:
        raise Unreachable(
            f"{host.name}: no answer from {host.ssh} in {seconds:.0f} s",
            f"see whether it is asleep or overloaded: ssh {shlex.quote(host.ssh)} uptime",
        ) from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return Finished(
        status=process.returncode if process.returncode is not None else -1,
        output=output.decode(errors="replace"),
        errors=errors.decode(errors="replace"),
    )
