"""One user's account on this machine: a home folder, hostfiles of daemons here, and our commands as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines; anything else on it fails the test."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True, slots=True)
class Station:
    """One user's account: a home folder, and commands that run in it."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home), "REALIGN_HOME": str(self.home / ".realign")}

    def command(self, module: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", module, *(str(a) for a in arguments)]

    def start(self, module: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(module, *arguments),
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, module: str, *arguments: object) -> Said:
        with self.start(module, *arguments) as process:
            try:
                out, err = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Said(status=process.returncode, out=out, err=err)

    def launch(self, *arguments: object) -> Said:
        return self.run("realign_launcher.main", *arguments)

    def realign(self, *arguments: object) -> Said:
        return self.run("realign_cluster.cli.main", *arguments)

    def realignd(self, *arguments: object) -> Said:
        return self.run("realign_cluster.cli.realignd", *arguments)

    def hostfile(self, *names: str, file: str = "hosts.json", **own: Any) -> Path:
        """A hostfile of daemons on this machine, each with a free port and a state folder in the home."""
        ports = free_ports(len(names))
        hosts = [
            {
                "ssh": "127.0.0.1",
                "ips": ["127.0.0.1"],
                "realign": {"name": name, "port": port, "state": str(self.home / "nodes" / name), **own},
            }
            for name, port in zip(names, ports, strict=True)
        ]
        path = self.home / file
        path.write_text(json.dumps({"hosts": hosts}, indent=2))
        return path

    def daemons(self) -> dict[str, int]:
        """Name and pid of every daemon of this home that is alive."""
        alive: dict[str, int] = {}
        for path in self.home.glob("nodes/*/daemon.json"):
            pid = int(json.loads(path.read_text())["pid"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                alive[path.parent.name] = pid
        return alive


def wait_for(path: Path, seconds: float = 30) -> None:
    """Until `path` exists."""
    give_up = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < give_up, f"{path} did not appear"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
