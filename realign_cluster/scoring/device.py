"""What this process computes on: backend, matrix library, memory limits, thermal state. Decides nothing."""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import psutil

from realign_cluster.domain.memory import MemoryLimit, memory_limit

CPU_CACHE_BYTES = 256 * 2**20  # of freed buffers that MLX may keep for reuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Blas:
    name: str  # "openblas", "accelerate", "bundled"
    core_type: str  # kernel family that OpenBLAS chose; "" elsewhere
    threads: int


def backend() -> str:
    """One of "metal", "cuda" or "cpu"."""
    if mx.default_device() == mx.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def device_name() -> str:
    return str(mx.device_info().get("device_name") or platform.processor() or platform.machine())


def find_blas() -> Blas:
    """The matrix library that MLX's CPU backend calls: symbols of OpenBLAS are there if it was preloaded."""
    if sys.platform == "darwin":
        return Blas(name="accelerate", core_type="", threads=psutil.cpu_count() or 1)
    library = ctypes.CDLL(None)
    try:
        library.openblas_get_corename.restype = ctypes.c_char_p
        core_type = library.openblas_get_corename().decode()
        return Blas(name="openblas", core_type=core_type, threads=int(library.openblas_get_num_threads()))
    except AttributeError:
        return Blas(name="bundled", core_type="", threads=1)


def set_blas_threads(threads: int) -> None:
    """Only OpenBLAS can be told; the others are left alone."""
    if sys.platform != "darwin" and find_blas().name == "openblas":
        ctypes.CDLL(None).openblas_set_num_threads(int(threads))


def find_memory_limit(asked: int | None) -> MemoryLimit:
    """What a model may occupy here: the job's limit, the device's working set, or what this process's control group
    and machine have free.
    """
    memory = psutil.virtual_memory()
    kind = backend()
    working_set = int(mx.device_info().get("max_recommended_working_set_size", 0)) if kind == "metal" else 0
    total, available = int(memory.total), int(memory.available)
    group = control_group_limit()
    if group is not None and group < total:
        total, available = group, min(available, group)
    return memory_limit(
        backend=kind,
        memory_bytes=total,
        working_set_bytes=working_set,
        available_bytes=available if kind == "cpu" else None,
        hostfile_limit_bytes=asked,
    )


def control_group_limit() -> int | None:
    """Bytes that the control groups of this process allow; None without a limit, or where there are none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place == root.parent:
                break
            found.extend(_limit_in(place / name))
    return min(found, default=None)


def _limit_in(file: Path) -> list[int]:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() and int(text) < 2**60 else []


def apply_memory_limits(limit: MemoryLimit) -> None:
    """On Metal wire up to the limit, so that weights are never paged out between batches; keep a bounded cache of
    buffers.
    """
    if backend() == "metal":
        recommended = int(mx.device_info().get("max_recommended_working_set_size", limit.bytes))
        mx.set_wired_limit(min(limit.bytes, recommended))
        mx.set_cache_limit(max(limit.bytes // 8, CPU_CACHE_BYTES))
    elif backend() == "cuda":
        mx.set_cache_limit(max(limit.bytes // 8, CPU_CACHE_BYTES))
    else:
        mx.set_cache_limit(CPU_CACHE_BYTES)


def thermal_state() -> str:
    """One of "nominal", "moderate", "heavy", "trapping" or "sleeping" on macOS (no root needed), else "unknown"."""
    if sys.platform != "darwin":
        return "unknown"
    try:
        said = subprocess.run(
            ["/usr/bin/notifyutil", "-g", "com.apple.system.thermalpressurelevel"],
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    level = re.search(r"(\d+)\s*$", said.strip())
    names = {"0": "nominal", "1": "moderate", "2": "heavy", "3": "trapping", "4": "sleeping"}
    return names.get(level.group(1), "unknown") if level else "unknown"
