"""A cluster of real daemons with a coordinator's home and hostfile, and `realign` run on it as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.home import ClusterHome, NodeRequest
from realign_cluster.node.enrolment import install_certificate, request_signature
from realign_cluster.node.identity import load_or_create_identity, local_machine
from realign_cluster.store.ledger import Ledger
from realign_cluster.store.ledger_reader import LedgerReader
from tests.cluster_kit import DaemonProcess, wait_until

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"


class CurateCluster:
    """Daemons are killed at the end; what they were given is under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.realign_home = folder / "home"
        self.home = ClusterHome(self.realign_home / "cluster")
        self.daemons: dict[str, DaemonProcess] = {}
        self.processes: list[subprocess.Popen[str]] = []
        self.environment = {**os.environ, "REALIGN_HOME": str(self.realign_home)}

    def start(self, name: str, **options: Any) -> DaemonProcess:
        daemon = DaemonProcess(self.folder / name, name, **options)
        identity = load_or_create_identity(daemon.folder, local_machine(), name)
        asked = request_signature(daemon.folder, identity)
        signed = self.home.sign_node(NodeRequest(node_id=identity.node_id, name=name, request_pem=asked.request_pem))
        install_certificate(daemon.folder, identity, signed.certificate_pem, signed.authority_pem)
        self.daemons[name] = daemon
        return daemon.start()

    def hostfile(self, *names: str, limits: Mapping[str, str] | None = None) -> Path:
        hosts = [
            {
                "ssh": "127.0.0.1",
                "ips": ["127.0.0.1"],
                "realign": {
                    "name": name,
                    "port": self.daemons[name].port,
                    "state": str(self.daemons[name].folder.root),
                    **({"memory_limit": limits[name]} if limits and name in limits else {}),
                },
            }
            for name in (names or self.daemons)
        ]
        path = self.folder / f"hosts-{'-'.join(names) or 'all'}.json"
        path.write_text(json.dumps({"backend": "ring", "envs": [], "hosts": hosts}, indent=1))
        return path

    def command(self, rows: Path, out: Path, *more: str, hosts: Path | None = None) -> list[str]:
        return [
            *(sys.executable, "-m", "realign_cluster.cli.main", "curate", str(rows), "--out", str(out)),
            *("--hostfile", str(hosts or self.hostfile()), *more),
        ]

    def run(
        self, command: Sequence[str], timeout: float = 120.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """To its end; standard output and error apart."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=self.environment | environment, check=False
        )

    def spawn(self, command: Sequence[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for daemon in self.daemons.values():
            if daemon.process is not None and daemon.running:
                for pid in daemon.worker_pids():
                    os.kill(pid, signal.SIGCONT)
            daemon.kill()


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def output_bytes(run: Path) -> dict[str, bytes]:
    """Everything that byte identity covers."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("output", "dropped", "failed")
        for path in sorted((run / folder).rglob("*"))
        if path.is_file()
    }


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def ledger(run: Path) -> LedgerReader:
    return Ledger.read_only(run / "ledger.sqlite")


def committed_units(run: Path) -> int:
    if not (run / "ledger.sqlite").exists():
        return 0
    reader = ledger(run)
    try:
        return sum(node.units for node in reader.nodes_summary())
    finally:
        reader.close()


__all__ = [
    "TINY_MODEL",
    "CurateCluster",
    "committed_units",
    "ledger",
    "output_bytes",
    "summary",
    "wait_until",
    "write_rows",
]
