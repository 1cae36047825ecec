"""Reads what macOS and Linux commands print about the machine. Pure: text in, facts out, or ValueError."""

from __future__ import annotations

import json
import re

# OSThermalPressureLevel, as `notifyutil -g com.apple.system.thermalpressurelevel` counts it.
THERMAL_LEVELS = ("nominal", "moderate", "heavy", "trapping", "sleeping")


def parse_gpu_cores(text: str) -> int:
    """From `system_profiler SPDisplaysDataType -json`; 0 where no display adapter names its cores."""
    try:
        adapters = json.loads(text)["SPDisplaysDataType"]
        return max((int(adapter["sppci_cores"]) for adapter in adapters if "sppci_cores" in adapter), default=0)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not what system_profiler prints for displays: {error}") from error


def parse_thermal_pressure(text: str) -> str:
    """From `notifyutil -g com.apple.system.thermalpressurelevel`."""
    match = re.fullmatch(r"com\.apple\.system\.thermalpressurelevel (\d+)", text.strip())
    if match is None:
        raise ValueError(f"not what notifyutil prints: {text[:80]!r}")
    level = int(match[1])
    return THERMAL_LEVELS[level] if level < len(THERMAL_LEVELS) else "unknown"


def parse_cpu_model(text: str) -> str:
    """From /proc/cpuinfo, empty where it names none (some ARM kernels)."""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def parse_memory_cgroups(text: str) -> list[str]:
    """From /proc/self/cgroup: files under /sys/fs/cgroup that may limit this process's memory, innermost first."""
    files: list[str] = []
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        parts = [part for part in path.split("/") if part]
        levels = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
        if number == "0" and not controllers:
            files += [f"{level}/memory.max".lstrip("/") for level in levels]
        elif "memory" in controllers.split(","):
            files += [f"memory/{level}/memory.limit_in_bytes".replace("//", "/") for level in levels]
    return files
