"""A daemon seen from outside: started detached, asked how it is, stopped. Goes by the state folder, never by names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from realign_cluster.domain.errors import RealignError
from realign_cluster.node.enrolment import enrolled_bundle
from realign_cluster.node.identity import load_identity, local_machine
from realign_cluster.node.lock import lock_holder
from realign_cluster.node.logs import tail
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.rpc.channel import open_channel, own_certificate_days
from realign_cluster.rpc.pb import common_pb2
from realign_cluster.rpc.pb.common_pb2 import WorkerState
from realign_cluster.rpc.pb.node_pb2 import DescribeRequest, HealthRequest
from realign_cluster.rpc.pb.node_pb2_grpc import NodeStub

START_SECONDS = 60.0
ASK_SECONDS = 10.0
READY_FD_OPTION = "--ready-fd"


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonStatus:
    """What `realignd status` shows. `info` and `health` are unset when it does not run or does not answer."""

    state: str  # running, stopped, silent
    folder: Path
    facts: dict[str, Any]
    enrolled: bool
    certificate_days: float | None
    trouble: str
    info: common_pb2.NodeInfo | None
    health: common_pb2.Health | None
    last_log: list[str]

    def as_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "state": self.state,
            "folder": str(self.folder),
            "enrolled": self.enrolled,
            "certificate_days": self.certificate_days,
            "trouble": self.trouble,
            **{
                key: self.facts.get(key) for key in ("node_id", "name", "host", "port", "pid", "fingerprint", "started")
            },
            "held_by": None,
            "worker": None,
            "last_log": self.last_log,
        }
        if self.info is not None:
            answer["uptime_seconds"] = self.info.uptime_seconds
            answer["models"] = list(self.info.models)
            if self.info.HasField("holder"):
                holder = self.info.holder
                answer["held_by"] = {
                    "run_id": holder.run_id,
                    "coordinator": holder.coordinator,
                    "epoch": holder.epoch,
                    "idle_seconds": holder.idle_seconds,
                }
        if self.health is not None:
            answer["worker"] = WorkerState.Name(self.health.worker).removeprefix("WORKER_").lower()
            answer["spooled_results"] = self.health.spooled_results
            answer["disk_free_bytes"] = self.health.disk_free_bytes
        return answer


def start_detached(arguments: list[str], folder: StateFolder) -> dict[str, Any]:
    """Starts `realignd run ARGUMENTS` in a session of its own and waits until it serves. Raises RealignError."""
    read_end, write_end = os.pipe()
    with folder.crash_log.open("wb") as crash_log, os.fdopen(read_end, "rb") as answers:
        try:
            command = [sys.executable, "-m", "realign_cluster.cli.realignd", "run", *arguments]
            process = subprocess.Popen(
                [*command, READY_FD_OPTION, str(write_end)],
                stdin=subprocess.DEVNULL,
                stdout=crash_log,
                stderr=crash_log,
                pass_fds=(write_end,),
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        line = _first_line(answers.fileno(), START_SECONDS)
    if line is None:
        process.kill()
        process.wait()
        raise RealignError(f"the daemon did not serve within {START_SECONDS:g} s", f"see its log: {folder.daemon_log}")
    if not line:
        code = process.wait()
        last = tail(folder.crash_log, 2000).decode(errors="replace").strip()
        raise RealignError(
            f"the daemon ended with exit status {code} before it served: {last or 'it said nothing'}",
            f"see its log: {folder.daemon_log}",
        )
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        process.wait()
        raise RealignError(answer["error"], answer.get("fix", ""))
    return answer


def _first_line(descriptor: int, seconds: float) -> bytes | None:
    """b"" when the other end closed without one, None when it took too long."""
    deadline = time.monotonic() + seconds
    data = b""
    while b"\n" not in data:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, 65536)
        if not part:
            return b""
        data += part
    return data


def read_facts(folder: StateFolder) -> dict[str, Any]:
    try:
        facts = json.loads(folder.daemon.read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def stop_daemon(folder: StateFolder, timeout: float) -> int | None:
    """SIGTERM to the process that holds the folder's lock, until it is gone. Returns its pid, None if none ran.

    Raises RealignError when it does not go in time.
    """
    pid = lock_holder(folder.lock)
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while lock_holder(folder.lock) == pid:
        if time.monotonic() > deadline:
            raise RealignError(
                f"the daemon with pid {pid} did not stop within {timeout:g} s", f"kill -9 {pid}   (results are kept)"
            )
        time.sleep(0.05)
    return pid


async def daemon_status(folder: StateFolder, log_lines: int = 5) -> DaemonStatus:
    """Asks the daemon itself, with the node's own certificate, when one runs here."""
    facts = read_facts(folder)
    pid = lock_holder(folder.lock)
    trouble, days, info, health = "", None, None, None
    identity = None
    try:
        identity = load_identity(folder, local_machine())
        if identity is None:
            trouble = "this state folder has no identity yet"
        else:
            facts = {"node_id": identity.node_id, "name": identity.name, **facts}
            bundle = enrolled_bundle(folder, identity)
            days = own_certificate_days(bundle)
            if pid is not None and "port" in facts:
                info, health = await _ask(facts, bundle, identity.node_id)
    except RealignError as error:
        trouble = str(error)
    except grpc.aio.AioRpcError as error:
        trouble = f"it does not answer: {error.details()}"
    state = "stopped" if pid is None else "running" if info is not None else "silent"
    if pid is not None:
        facts["pid"] = pid
    else:
        facts = {key: value for key, value in facts.items() if key in ("node_id", "name")}
    lines = tail(folder.daemon_log, 8192).decode(errors="replace").splitlines()[-log_lines:] if log_lines else []
    return DaemonStatus(
        state=state,
        folder=folder.root,
        facts=facts,
        enrolled=days is not None,
        certificate_days=days,
        trouble=trouble,
        info=info,
        health=health,
        last_log=lines,
    )


async def _ask(facts: dict[str, Any], bundle: Any, node_id: str) -> tuple[common_pb2.NodeInfo, common_pb2.Health]:
    host = str(facts.get("host", "127.0.0.1"))
    address = f"{'127.0.0.1' if host == '0.0.0.0' else host}:{facts['port']}"
    async with open_channel(address, bundle, node_id) as channel:
        stub: Any = NodeStub(channel)  # type: ignore[no-untyped-call]
        info, health = await asyncio.gather(
            stub.Describe(DescribeRequest(), timeout=ASK_SECONDS),
            stub.CheckHealth(HealthRequest(), timeout=ASK_SECONDS),
        )
        return info, health
