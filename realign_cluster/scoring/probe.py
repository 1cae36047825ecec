"""Says what MLX sees of this machine, as one JSON object on standard output: a short-lived child of the daemon.

The daemon must not import MLX itself, so it asks here: {"backend", "device", "memory_bytes", "working_set_bytes",
"blas_core_type", "mlx"}, or {"error"}.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata


def describe_device() -> dict[str, object]:
    import mlx.core as mx

    from realign_cluster.scoring.device import backend, find_blas

    info = mx.device_info()
    return {
        "mlx": metadata.version("mlx"),
        "backend": backend(),
        "device": str(info.get("device_name", "")),
        "memory_bytes": int(info.get("memory_size", 0) or info.get("total_memory", 0)),
        "working_set_bytes": int(info.get("max_recommended_working_set_size", 0)),
        "blas_core_type": find_blas().core_type,
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
