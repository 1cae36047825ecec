"""This machine: Python, packages, BLAS, disk, memory, SQLite, environment. Imports no MLX."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import psutil

from realign_cluster.cli.checks.finding import Finding, fail, ok, warn
from realign_cluster.domain.hostfile import Host
from realign_cluster.node.blas import INSTALL_HINT, find_openblas
from realign_cluster.node.environment import ENVIRONMENT_EFFECTS, effect_of
from realign_cluster.node.probe import memory_limit_bytes
from realign_cluster.rpc.versions import local_versions
from realign_cluster.store.connection import version_warning
from realign_cluster.store.space import RESERVE_BYTES, free_bytes

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
LITTLE_DISK_BYTES = 5 * 2**30
LITTLE_MEMORY_BYTES = 2 * 2**30
REQUIRED = ("mlx", "mlx-lm", "grpcio", "protobuf", "zeroconf", "tokenizers", "pyarrow")
PREFIXES_LOOKED_AT = ("MLX_", "METAL_", "MTL_", "OPENBLAS_", "OMP_", "VECLIB_", "TOKENIZERS_", "REALIGN_")
RISKY = {"MLX_METAL_FAST_SYNCH": "unset it, here and in hostfiles, unless collectives over RDMA need it"}


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> list[Finding]:
    shown = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return [
            fail("python", f"Python {shown} is too old: 3.11 to 3.13 are supported", "install Python 3.12; make setup")
        ]
    if version[:2] > NEWEST_PYTHON:
        return [
            warn(
                "python", f"Python {shown} is newer than what is tested (3.11 to 3.13)", "make PYTHON=python3.13 setup"
            )
        ]
    return [ok("python", f"Python {shown}, {sys.executable}")]


def check_packages() -> list[Finding]:
    versions = local_versions()
    found = [ok("versions", f"realign-cluster {versions.project}, protocol {versions.protocol}, {versions.platform}")]
    missing = [name for name in REQUIRED if _version(name) is None]
    if missing:
        install = f"{sys.executable} -m pip install realign-cluster"
        found.append(fail("versions", f"not installed here: {', '.join(missing)}", install))
    else:
        found.append(ok("versions", ", ".join(f"{name} {_version(name)}" for name in REQUIRED)))
    return [*found, *check_backends()]


def check_backends(system: str = platform.system()) -> list[Finding]:
    """On Linux mlx-cpu and mlx-cuda bring the same file: says whose is in effect."""
    if system != "Linux":
        return []
    backends = [name for name in ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13") if _version(name) is not None]
    if not backends:
        return [fail("versions", "mlx has no backend on this machine", f"{sys.executable} -m pip install 'mlx[cpu]'")]
    if len(backends) == 1:
        return [ok("versions", f"mlx computes with {backends[0]}")]
    owner = next((name for name in backends if _owns_library(name)), None)
    others = ", ".join(name for name in backends if name != owner)
    wanted = next((name for name in backends if name.startswith("mlx-cuda")), backends[0])
    reinstall = f"{sys.executable} -m pip install --force-reinstall --no-deps {wanted}"
    if owner == wanted:
        return [ok("versions", f"mlx computes with {owner} ({others} is installed too and not used)")]
    return [warn("versions", f"mlx/lib/libmlx.so is that of {owner or 'no package here'}, not of {wanted}", reinstall)]


def check_blas(system: str = platform.system()) -> list[Finding]:
    if system == "Darwin":
        return [ok("blas", "Accelerate")]
    library = find_openblas()
    if library is None:
        text = "no OpenBLAS: workers use the one-threaded reference BLAS of mlx's Linux wheel, 6 to 17 times slower"
        return [warn("blas", text, INSTALL_HINT)]
    return [ok("blas", f"workers are given {library} (the wheel's own BLAS is the slow reference one)")]


def check_disk(*folders: Path) -> list[Finding]:
    found = []
    for folder in folders:
        free = free_bytes(folder)
        text = f"{_gib(free)} free for {folder}"
        if free < 4 * RESERVE_BYTES:
            found.append(fail("disk", text, f"free some room: runs stop below {RESERVE_BYTES // 2**20} MiB"))
        elif free < LITTLE_DISK_BYTES:
            found.append(warn("disk", text, "free some room: models, spools and ledgers need it"))
        else:
            found.append(ok("disk", text))
    return found


def check_memory() -> list[Finding]:
    limit = memory_limit_bytes()
    available = min(int(psutil.virtual_memory().available), limit)
    text = f"{_gib(available)} available of {_gib(limit)}"
    if available < LITTLE_MEMORY_BYTES:
        return [warn("memory", text, "end other programs, or choose a smaller model")]
    return [ok("memory", text)]


def check_sqlite() -> list[Finding]:
    warning = version_warning()
    if warning is None:
        return [ok("sqlite", f"SQLite {sqlite3.sqlite_version}")]
    return [warn("sqlite", warning, "nothing to do: one process writes a ledger; a newer Python brings a newer SQLite")]


def check_environment(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Every variable that is set and bears on a run, with what it really does."""
    found = [
        _variable(f"{name}={environment[name]}", name, environment[name])
        for name in sorted(environment)
        if name in ENVIRONMENT_EFFECTS or name.startswith(PREFIXES_LOOKED_AT)
    ]
    if not found:
        found.append(ok("environment", "none of the variables that MLX, tokenizers, BLAS or realign read is set"))
    return found


def check_hostfile_environment(hosts: Sequence[Host]) -> list[Finding]:
    """What the hostfile sets for workers, with what it really does."""
    found = []
    for name, value in sorted({(name, value) for host in hosts for name, value in host.env.items()}):
        told = [host.name for host in hosts if host.env.get(name) == value]
        where = "all hosts" if len(told) == len(hosts) else ", ".join(told)
        found.append(_variable(f"{name}={value} in the hostfile, for {where}", name, value))
    return found


def _variable(shown: str, name: str, value: str) -> Finding:
    text = f"{shown}: {_effect(name)}"
    if name in RISKY and value not in ("", "0"):
        return warn("environment", text, RISKY[name])
    return ok("environment", text)


def _effect(name: str) -> str:
    if name == "REALIGN_HOME":
        return "where the cluster's home and the default state folder are, instead of ~/.realign"
    return effect_of(name)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _owns_library(distribution: str) -> bool:
    """Whether the libmlx.so that lies there is the one this distribution brought."""
    for file in metadata.files(distribution) or ():
        if file.name == "libmlx.so":
            path = Path(str(file.locate()))
            return path.exists() and path.stat().st_size == file.size
    return False


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
