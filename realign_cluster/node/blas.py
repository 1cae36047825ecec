"""Which BLAS a worker computes with: on Linux MLX's wheel brings a slow one, so OpenBLAS is preloaded."""

from __future__ import annotations

import platform
from pathlib import Path

_PLACES = (
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libblas.so.3",
    "/usr/lib64/libopenblasp.so.0",
    "/usr/lib/libopenblas.so.0",
)
INSTALL_HINT = "sudo apt-get install libopenblas0-pthread"


def find_openblas(places: tuple[str, ...] = _PLACES) -> Path | None:
    """The library to preload, None where there is none or none is needed."""
    if platform.system() != "Linux":
        return None
    return next((path for path in map(Path, places) if path.exists()), None)


def blas_name() -> str:
    """ "accelerate", "openblas" or "bundled": what a worker started here will use."""
    if platform.system() == "Darwin":
        return "accelerate"
    return "openblas" if find_openblas() else "bundled"
