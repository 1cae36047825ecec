"""What runs here, without importing any of it: MLX belongs to worker processes only."""

from __future__ import annotations

import functools
import platform
from importlib import metadata

from realign_cluster import __version__
from realign_cluster.rpc.pb.common_pb2 import Versions

# Of proto/*.proto and of the worker pipe; raised with every change that an older peer would misread.
PROTOCOL_VERSION = 3


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _platform() -> str:
    """ "macOS-26.2-arm64", "Linux-6.1-x86_64"."""
    if platform.system() == "Darwin":
        return f"macOS-{platform.mac_ver()[0]}-{platform.machine()}"
    release = ".".join(platform.release().split("-")[0].split(".")[:2])
    return f"{platform.system()}-{release}-{platform.machine()}"


@functools.cache
def _local() -> Versions:
    return Versions(
        project=__version__,
        protocol=PROTOCOL_VERSION,
        mlx=_installed("mlx"),
        mlx_lm=_installed("mlx-lm"),
        python=platform.python_version(),
        platform=_platform(),
    )


def local_versions() -> Versions:
    """A fresh message: the caller may change it."""
    versions = Versions()
    versions.CopyFrom(_local())
    return versions
