"""Joining the group of a generation: the backend's environment, a strict init, and a check that all ranks mean the
same.

MLX reads its environment when a group is made, caches the group, and never replaces it: a process joins once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from pathlib import Path

import mlx.core as mx
import numpy as np

from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import Go, RankSpec

Group = mx.distributed.Group


class WorldMismatch(Exception):
    """Ranks that would train different things: another world, another job, or other versions."""


def world_identity(job: TrainJob, spec: RankSpec, versions: dict[str, str]) -> str:
    """Hex of what must be equal on all ranks: everything but the rank itself and the node's own limits."""
    own = {"memory_limit_bytes"}
    content = {
        "job": job.model_dump(mode="json", exclude=own),
        "spec": spec.model_dump(mode="json", exclude={"rank", "limits"}),
        "versions": {name: versions[name] for name in ("mlx", "mlx_lm", "project")},
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def free_port() -> int:
    """A port that nobody listened on a moment ago, on any interface."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def join(spec: RankSpec, go: Go, folder: Path) -> Group:
    """The group of this generation. Raises RuntimeError when it cannot be made, WorldMismatch when it is another
    one.
    """
    os.environ["MLX_RANK"] = str(spec.rank)
    if spec.world.backend == "ring":
        hostfile = folder / f"ring-{spec.generation}.{spec.rank}.json"
        hostfile.write_text(json.dumps([[address] for address in go.addresses]))
        os.environ["MLX_HOSTFILE"] = str(hostfile)
    else:
        os.environ["MLX_JACCL_COORDINATOR"] = go.addresses[0]
    group = mx.distributed.init(strict=True, backend=spec.world.backend)
    if group.size() != spec.world.size or group.rank() != spec.rank:
        raise WorldMismatch(
            f"rank {spec.rank} of {spec.world.size} was expected, the group says {group.rank()} of {group.size()}"
        )
    return group


def check_world(group: Group, identity: str) -> None:
    """Raises WorldMismatch unless all ranks have the same identity."""
    own = mx.array(np.frombuffer(bytes.fromhex(identity), dtype=np.uint8).astype(np.int32))[None]
    everybody = np.array(mx.distributed.all_gather(own, group=group, stream=mx.cpu))
    different = [rank for rank in range(group.size()) if (everybody[rank] != everybody[0]).any()]
    if different:
        raise WorldMismatch(
            f"ranks {', '.join(map(str, different))} were started for another job or with other versions than rank 0"
        )
