"""What must be equal on all ranks before they train together, and who differs in what.

Ranks that mean different things would not fail: they would train something that nobody asked for. So each says what it
was started for, and all of them refuse where one differs. Knows nothing of how the group was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.training import Backend, TrainJob
from realign_cluster.domain.world import RankSpec
from realign_cluster.sharding.group import WorldMismatch

Group = mx.distributed.Group
Statement = Mapping[str, Any]  # of one rank, JSON


def world_identity(job: TrainJob, spec: RankSpec, versions: Mapping[str, str]) -> str:
    """Hex of what must be equal on all ranks: everything but the rank itself and the node's own limits."""
    own = {"memory_limit_bytes"}
    content = {
        "job": job.model_dump(mode="json", exclude=own),
        "spec": spec.model_dump(mode="json", exclude={"rank", "limits"}),
        "versions": _pinned(versions),
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def statement_of(config: str, spec: RankSpec, versions: Mapping[str, str]) -> Statement:
    """In this order ranks are compared. `config` is the world's identity; what comes before it says in words what a
    different one comes from.
    """
    return {
        "generation": spec.generation,
        "versions": _pinned(versions),
        "shares": list(spec.world.shares),
        "start": [part.digest for part in spec.start],
        "config": config,
    }


def check_world(group: Group, backend: Backend, own: Statement) -> None:
    """Raises WorldMismatch unless all ranks say the same. A collective."""
    said = json.dumps(own).encode()
    gathered = _gather_over_mpi(said) if backend == "mpi" else _gather(group, said)
    if found := differences([json.loads(one) for one in gathered]):
        raise WorldMismatch("; ".join(found))


def differences(statements: Sequence[Statement]) -> list[str]:
    """In what ranks differ from rank 0: the first thing for each."""
    found = []
    for rank, statement in enumerate(statements):
        for name, expected in statements[0].items():
            if (value := statement.get(name)) != expected:
                if name == "config":
                    found.append(f"rank {rank} was started for another job than rank 0")
                else:
                    found.append(f"rank {rank} has {name} {_shown(value)}, rank 0 {_shown(expected)}")
                break
    return found


def _pinned(versions: Mapping[str, str]) -> dict[str, str]:
    return {name: versions[name] for name in ("mlx", "mlx_lm", "project")}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return json.dumps(value)


def _gather(group: Group, said: bytes) -> list[bytes]:
    """Of all ranks, in their order."""
    sizes = np.array(mx.distributed.all_gather(mx.array([len(said)], dtype=mx.int32), group=group, stream=mx.cpu))
    padded = np.zeros((1, int(sizes.max())), dtype=np.uint8)
    padded[0, : len(said)] = np.frombuffer(said, dtype=np.uint8)
    everybody = np.array(mx.distributed.all_gather(mx.array(padded), group=group, stream=mx.cpu))
    return [everybody[rank, :size].tobytes() for rank, size in enumerate(sizes)]


def _gather_over_mpi(said: bytes) -> list[bytes]:
    """The same by mpi4py, on the world that MLX has made: imported before it, mpi4py would make its own."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RealignError(
            "mpi4py is not installed on this node, and ranks over MPI are checked by it",
            "python -m pip install 'realign-cluster[mpi]', or train with --backend ring",
        ) from error
    world = MPI.COMM_WORLD
    sizes = np.zeros(world.size, dtype=np.int64)
    world.Allgather(np.array([len(said)], dtype=np.int64), sizes)
    padded = np.zeros(int(sizes.max()), dtype=np.uint8)
    padded[: len(said)] = np.frombuffer(said, dtype=np.uint8)
    everybody = np.zeros((world.size, padded.size), dtype=np.uint8)
    world.Allgather(padded, everybody)
    return [everybody[rank, :size].tobytes() for rank, size in enumerate(sizes)]
