"""Says what MLX sees of this machine, as one JSON object on standard output: a short-lived child of the daemon.

The daemon must not import MLX itself, so it asks here: {"backend", "device", "memory_bytes", "working_set_bytes",
"blas_core_type", "mlx"}, or {"error"}.
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from importlib import metadata


def blas_core_type() -> str:
    """The kernel family OpenBLAS chose in this process, empty when it is not loaded."""
    try:
        corename = ctypes.CDLL(None).openblas_get_corename
    except (AttributeError, OSError):
        return ""
    corename.restype = ctypes.c_char_p
    name = corename()
    return name.decode() if name else ""


def describe_device() -> dict[str, object]:
    import mlx.core as mx

    if mx.metal.is_available():
        backend = "metal"
    elif getattr(mx, "cuda", None) is not None and mx.cuda.is_available():
        backend = "cuda"
    else:
        backend = "cpu"
    info = mx.device_info()
    return {
        "mlx": metadata.version("mlx"),
        "backend": backend,
        "device": str(info.get("device_name", "")),
        "memory_bytes": int(info.get("memory_size", 0) or info.get("total_memory", 0)),
        "working_set_bytes": int(info.get("max_recommended_working_set_size", 0)),
        "blas_core_type": blas_core_type() if platform.system() == "Linux" else "",
    }


def main() -> int:
    try:
        print(json.dumps(describe_device()))
    except Exception as error:  # noqa: BLE001 - process border: whatever MLX raises here, the daemon reports it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
