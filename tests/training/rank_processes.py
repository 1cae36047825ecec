"""Ranks of a ring as real processes: each joins the group, calls a function of a test module, gives back its arrays."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from realign_cluster.node.blas import find_openblas

ROOT = Path(__file__).parents[2]
SECONDS = 60.0

Arrays = Mapping[str, Any]


def run_ranks(function: Callable[..., Arrays], ranks: int, folder: Path, **arguments: Any) -> list[dict[str, Any]]:
    """What `function(group, **arguments)` gave back on each rank, NumPy arrays by name.

    `function` is at the top of a module under tests; `arguments` are JSON. Raises AssertionError with what a failed
    rank wrote to standard error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
    (folder / "arguments.json").write_text(json.dumps(arguments))
    name = f"{function.__module__}:{function.__qualname__}"
    processes = [_start(name, rank, folder) for rank in range(ranks)]
    try:
        codes = [process.wait(timeout=SECONDS) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"a rank took more than {SECONDS} s\n{_errors(folder, ranks)}") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(codes):
        raise AssertionError(f"ranks ended with {codes}\n{_errors(folder, ranks)}")
    return [_read(folder / f"rank-{rank}.npz") for rank in range(ranks)]


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback interface that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _start(name: str, rank: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "MLX_RANK": str(rank),
        "MLX_HOSTFILE": str(folder / "hosts.json"),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    if (library := find_openblas()) is not None:
        environment["LD_PRELOAD"] = str(library)
    with (folder / f"rank-{rank}.stderr").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, name, str(folder)], env=environment, stderr=errors, cwd=ROOT
        )


def _errors(folder: Path, ranks: int) -> str:
    return "\n".join(f"rank {rank}: {(folder / f'rank-{rank}.stderr').read_text()}" for rank in range(ranks))


def _read(file: Path) -> dict[str, Any]:
    with np.load(file) as arrays:
        return dict(arrays)


def _main(name: str, folder: Path) -> None:
    import mlx.core as mx

    module, function = name.split(":")
    group = mx.distributed.init(strict=True, backend="ring")
    found = getattr(importlib.import_module(module), function)(
        group, **json.loads((folder / "arguments.json").read_text())
    )
    np.savez(folder / f"rank-{group.rank()}.npz", **{name: np.array(value) for name, value in found.items()})


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
