"""Real daemons as real processes for tests: an authority, enrolled state folders, `realignd run` over mTLS.

    with TestCluster(tmp_path) as cluster:
        alpha = cluster.start("alpha", cores=1)
        alpha.address, alpha.node_id, alpha.kill()

What a daemon logged is shown when it does not start.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from realign_cluster.domain.ids import NodeId
from realign_cluster.node.enrolment import install_certificate, request_signature
from realign_cluster.node.identity import load_or_create_identity, local_machine
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.rpc.certificates import Authority, CertificateBundle, Role

START_SECONDS = 60.0


class DaemonProcess:
    """One `realignd run`. `facts` (node_id, name, host, port, pid, fingerprint, started) are set while it serves."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        cores: int = 1,
        port: int = 0,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        module: str = "realign_cluster.cli.realignd",
    ) -> None:
        self.folder = StateFolder.at(folder)
        self.name = name
        self.facts: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._port = port
        self._command = [
            *(sys.executable, "-m", module, "run", "--state", str(folder), "--name", name),
            *("--host", "127.0.0.1", "--cores", str(cores), *arguments),
        ]
        if "--advertise" in self._command:
            self._command.remove("--advertise")
        else:
            self._command.append("--no-advertise")
        self._environment = {**os.environ, **(environment or {})}

    @property
    def node_id(self) -> NodeId:
        return NodeId(self.facts["node_id"])

    @property
    def port(self) -> int:
        return int(self.facts["port"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return int(self.facts["pid"])

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def enrol(self, authority: Authority) -> None:
        identity = load_or_create_identity(self.folder, local_machine(), self.name)
        asked = request_signature(self.folder, identity)
        certificate = authority.sign(asked.request_pem, role=Role.NODE, id=identity.node_id)
        install_certificate(self.folder, identity, certificate, authority.certificate_pem)

    def start(self, *, same_port: bool = True) -> DaemonProcess:
        """Waits until it serves. A restart takes the port it had, as a daemon with a fixed port would."""
        assert not self.running, "it runs already"
        port = int(self.facts["port"]) if same_port and self.facts else self._port
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb") as answers, (self.folder.root / "test-stderr").open("ab") as errors:
            try:
                self.process = subprocess.Popen(
                    [*self._command, "--port", str(port), "--ready-fd", str(write_end)],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(write_end,),
                    env=self._environment,
                )
            finally:
                os.close(write_end)
            ready, _, _ = select.select([answers], [], [], START_SECONDS)
            line = answers.readline() if ready else b""
        answer = json.loads(line) if line else {"error": "it said nothing"}
        if "error" in answer:
            self.kill()
            raise AssertionError(f"{self.name} did not start: {answer}\n{self.log_text()[-3000:]}")
        self.facts = answer
        return self

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        if self.running:
            self.process.terminate()
        return self.process.wait(timeout)

    def kill(self) -> None:
        """kill -9, and reaped."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    def worker_pids(self) -> list[int]:
        """Living children of the daemon that are workers (not short-lived probes)."""
        return children_that_run("realign_cluster.scoring.worker", self.pid)

    def rank_pids(self) -> list[int]:
        """Living children of the daemon that train."""
        return children_that_run("realign_cluster.training.worker", self.pid)

    def log_text(self) -> str:
        texts = []
        for path in (self.folder.root / "test-stderr", self.folder.daemon_log, self.folder.worker_log):
            if path.exists():
                texts.append(f"--- {path.name}\n{path.read_text(errors='replace')}")
        return "\n".join(texts)


class TestCluster:
    """An authority, a coordinator's certificate, and daemons that are killed at the end."""

    __test__ = False  # not a test class, whatever its name says

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "authority")
        self.coordinator: CertificateBundle = self.authority.issue("coordinator-1", Role.COORDINATOR)
        self.daemons: list[DaemonProcess] = []

    def daemon(self, name: str, **options: Any) -> DaemonProcess:
        """Enrolled, not started. Options as of DaemonProcess."""
        daemon = DaemonProcess(self.folder / name, name, **options)
        daemon.enrol(self.authority)
        self.daemons.append(daemon)
        return daemon

    def start(self, name: str, **options: Any) -> DaemonProcess:
        return self.daemon(name, **options).start()

    def __enter__(self) -> TestCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for daemon in self.daemons:
            daemon.kill()


def children_that_run(module: str, parent: int) -> list[int]:
    """Process numbers."""
    import psutil

    found = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.Error):
                if module in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
    return found


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "it") -> Any:
    """The condition's first true value. Raises AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.02)
    return value
