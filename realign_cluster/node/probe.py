"""What this machine is (Device) and how it is doing (Health), without MLX: that is asked of a short-lived child.

Facts that do not change are kept in a file, so that a daemon's second start asks nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import structlog
from google.protobuf import json_format

from realign_cluster.node.blas import blas_name, find_openblas
from realign_cluster.node.machine_output import (
    parse_cpu_model,
    parse_gpu_cores,
    parse_memory_cgroups,
    parse_thermal_pressure,
)
from realign_cluster.rpc.pb.common_pb2 import Device, Health
from realign_cluster.rpc.private_files import write_private
from realign_cluster.rpc.versions import local_versions

log = structlog.get_logger()

PROBE_MODULE = "realign_cluster.scoring.probe"
PROBE_SECONDS = 60.0
_THERMAL_EVERY_SECONDS = 5.0


async def command_output(*command: str, timeout: float = 20.0, environment: dict[str, str] | None = None) -> str:
    """Standard output; empty when the command is not there, fails, or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        return ""
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return ""
    return output.decode(errors="replace") if process.returncode == 0 else ""


def memory_limit_bytes() -> int:
    """Installed memory, or less where a control group allows less."""
    total: int = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):
        for name in parse_memory_cgroups(Path("/proc/self/cgroup").read_text()):
            with contextlib.suppress(OSError, ValueError):
                total = min(total, int((Path("/sys/fs/cgroup") / name).read_text()))
    return total


async def quick_device() -> Device:
    """What is known without asking MLX: enough to be advertised."""
    device = Device(cpu_cores=os.cpu_count() or 1, memory_bytes=memory_limit_bytes(), blas=blas_name())
    if platform.system() == "Darwin":
        device.chip = (await command_output("sysctl", "-n", "machdep.cpu.brand_string")).strip()
        with contextlib.suppress(ValueError):
            device.gpu_cores = parse_gpu_cores(await command_output("system_profiler", "SPDisplaysDataType", "-json"))
    else:
        with contextlib.suppress(OSError):
            device.chip = parse_cpu_model(Path("/proc/cpuinfo").read_text())
    device.chip = device.chip or platform.processor() or platform.machine()
    return device


async def boot_session() -> str:
    """Changes when the machine restarts, not with its clock."""
    if platform.system() == "Darwin":
        return (await command_output("sysctl", "-n", "kern.bootsessionuuid")).strip()
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


async def full_device(cache: Path) -> Device:
    """With what MLX sees. Asked once per MLX version, platform and BLAS; `backend` is empty when MLX does not load."""
    device = await quick_device()
    versions = local_versions()
    key = f"{versions.mlx} {versions.platform} {device.blas} {device.memory_bytes} {device.chip}"
    if (kept := _cached(cache, key)) is not None:
        return kept
    environment = dict(os.environ)
    if library := find_openblas():
        environment["LD_PRELOAD"] = str(library)
    output = await command_output(sys.executable, "-m", PROBE_MODULE, timeout=PROBE_SECONDS, environment=environment)
    try:
        seen: dict[str, Any] = json.loads(output)
    except ValueError:
        seen = {"error": "the probe did not answer"}
    if "error" in seen:
        log.error("MLX does not load here: this node cannot score", why=seen["error"], fix="realign doctor")
        return device
    device.backend = str(seen["backend"])
    device.working_set_bytes = int(seen["working_set_bytes"]) or device.memory_bytes
    device.blas_core_type = str(seen["blas_core_type"])
    kept_text = json.dumps({"key": key, "device": json_format.MessageToDict(device)})
    with contextlib.suppress(OSError):  # a full disk: it is asked again at the next start
        write_private(cache, kept_text.encode())
    return device


def _cached(cache: Path, key: str) -> Device | None:
    try:
        kept = json.loads(cache.read_text())
        if kept["key"] != key:
            return None
        device: Device = json_format.ParseDict(kept["device"], Device())
    except (OSError, ValueError, KeyError, TypeError, json_format.ParseError):
        return None
    return device


class HealthSampler:
    """Cheap enough for every beat: what needs a process of its own is asked every few seconds, in the background."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thermal = "unknown"
        self._worker: psutil.Process | None = None
        self._total = memory_limit_bytes()

    async def watch(self) -> None:
        """Runs until cancelled."""
        while platform.system() == "Darwin":
            text = await command_output("notifyutil", "-g", "com.apple.system.thermalpressurelevel", timeout=5.0)
            try:
                self._thermal = parse_thermal_pressure(text)
            except ValueError:
                self._thermal = "unknown"
            await asyncio.sleep(_THERMAL_EVERY_SECONDS)

    def sample(self, worker_pid: int) -> Health:
        """Without `worker` and `spooled_results`, which are not the machine's."""
        memory = psutil.virtual_memory()
        health = Health(
            memory_total_bytes=self._total,
            memory_available_bytes=min(memory.available, self._total),
            thermal_pressure=self._thermal,
            load_1m=os.getloadavg()[0],
            disk_free_bytes=free_disk_bytes(self._folder),
            worker_pid=worker_pid,
            worker_rss_bytes=self._worker_memory(worker_pid),
        )
        wired = getattr(memory, "wired", None)
        if wired is not None:
            health.memory_wired_bytes = wired
        return health

    def _worker_memory(self, pid: int) -> int:
        if pid == 0:
            self._worker = None
            return 0
        try:
            if self._worker is None or self._worker.pid != pid:
                self._worker = psutil.Process(pid)
            rss: int = self._worker.memory_info().rss
        except psutil.Error:
            self._worker = None
            return 0
        return rss


def free_disk_bytes(folder: Path) -> int:
    """For this user; 0 when the folder's disk cannot be asked."""
    try:
        return int(psutil.disk_usage(str(folder)).free)
    except OSError:
        return 0
