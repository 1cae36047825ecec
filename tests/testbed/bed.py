"""The test bed as tests use it: hosts that are separate in all that matters here, and the faults they can have."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
COORDINATOR = "coordinator"
SECONDS = 120.0


def testbed_script() -> Path | None:
    """testbed.py: where REALIGN_TESTBED says, else beside the repository."""
    folder = Path(os.environ.get("REALIGN_TESTBED") or ROOT.parent / "shared" / "testbed")
    script = folder / "testbed.py"
    return script if script.exists() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    status: int
    out: str
    err: str

    def ok(self) -> Done:
        """Itself, if it succeeded; else the test fails with what it said."""
        assert self.status == 0, f"exit status {self.status}\n{self.out}\n{self.err}"
        return self


@dataclass(slots=True)
class Bed:
    """One bed that is up. Every command of a host runs as a process of ours, which can be signalled."""

    script: Path
    name: str
    state: Path
    hosts: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """$TESTBED_DATA: each host's own disk, at one path everywhere. Not to be used from outside."""
        return self.state / "data"

    def disk(self, host: str) -> Path:
        """A host's own disk, seen from outside."""
        return self.state / host / "disk"

    def address(self, host: str) -> str:
        hosts: dict[str, dict[str, str]] = json.loads((self.state / "state.json").read_text())
        return hosts[host]["ip"]

    def verb(self, *words: str) -> str:
        """A verb of testbed.py, such as ("link", "a", "--loss", "10")."""
        command = [sys.executable, str(self.script), "--name", self.name, "--state", str(self.state), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return done.stdout

    def command(self, host: str, command: Sequence[object]) -> list[str]:
        bed = [sys.executable, str(self.script), "--name", self.name, "--state", str(self.state)]
        return [*bed, "exec", host, "--", *(str(word) for word in command)]

    def start(
        self, host: str, command: Sequence[object], env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Run a command there and go on; its pid is the command's own."""
        process = subprocess.Popen(
            self.command(host, command),
            env={**os.environ, **self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def exec(
        self, host: str, command: Sequence[object], *, env: Mapping[str, str] | None = None, seconds: float = SECONDS
    ) -> Done:
        """Run a command there to its end."""
        process = self.start(host, command, env)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{command} on {host} took longer than {seconds} s\n{out}\n{err}") from None
        return Done(status=process.returncode, out=out, err=err)

    def python(self, host: str, module: str, *arguments: object, seconds: float = SECONDS) -> Done:
        """One of our commands on a host, such as bed.python("coordinator", "realign_cluster.cli.main", "nodes")."""
        return self.exec(host, [sys.executable, "-m", module, *arguments], seconds=seconds)

    def hostfile(self, *hosts: str, **own: object) -> Path:
        """A hostfile of daemons on these hosts, over ssh, each with its state on its own disk."""
        entries = [
            {
                "ssh": host,
                "ips": [self.address(host)],
                "realign": {"python": sys.executable, "state": str(self.data / "node"), **own},
            }
            for host in hosts
        ]
        path = self.state / f"hosts-{'-'.join(hosts)}.json"
        path.write_text(json.dumps(entries, indent=2))
        return path

    def cut(self, *hosts: str) -> None:
        """Pull their cables: silence both ways, no reset."""
        self.verb("cut", *hosts)

    def heal(self, *hosts: str) -> None:
        """Undo cut, partition, isolate and link; of all hosts when none is named."""
        self.verb("heal", *(hosts or ("all",)))

    def kill(self, host: str) -> None:
        """SIGKILL everything on it, sshd too."""
        self.verb("kill", host)

    def boot(self, host: str) -> None:
        self.verb("boot", host)

    def pause(self, host: str) -> None:
        """Freeze every process; the kernel still accepts connections."""
        self.verb("pause", host)

    def resume(self, host: str) -> None:
        self.verb("resume", host)

    def slow(self, host: str, percent: float | None) -> None:
        """Limit it to `percent` of one CPU; None lifts the limit."""
        self.verb("slow", host, "off" if percent is None else str(percent))

    def fill(self, host: str) -> None:
        """Fill its disk."""
        self.verb("fill", host)

    def unfill(self, host: str) -> None:
        self.verb("unfill", host)

    def make_whole(self) -> None:
        """Every host up, reachable, unlimited, with an empty disk and nothing running: what each test begins with."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self._started.clear()
        self.heal()
        for host in (COORDINATOR, *self.hosts):
            with contextlib.suppress(AssertionError):
                self.resume(host)
            self.unfill(host)
            self.kill(host)
            self.boot(host)
            self.exec(
                host, ["sh", "-c", 'find "$TESTBED_DATA" -mindepth 1 -not -path "$TESTBED_DATA/tmp" -delete']
            ).ok()
        for host in self.hosts:
            self.slow(host, None)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.verb("down")
