"""Joining the group of a generation: the backend's environment and a strict init.

MLX reads its environment when a group is made, caches the group, and never replaces it: a process joins once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from realign_cluster.domain import jaccl
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import Go, RankSpec
from realign_cluster.training.mpi import Place, take_place
from realign_cluster.training.world_check import WorldMismatch

Group = mx.distributed.Group


class NoBackend(RealignError):
    """MLX on this machine cannot join ranks in this way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """In a group, until the process ends. `place` is there over MPI."""

    group: Group
    place: Place | None = None

    def leave(self) -> None:
        """For a rank that has done its work. A collective where the backend would take an end for a failure."""
        if self.place is not None:
            self.place.leave()


def free_port() -> int:
    """A port that nobody listened on a moment ago, on any interface."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def join(spec: RankSpec, go: Go, folder: Path, lost: Callable[[str], None]) -> Membership:
    """The group of this generation. `lost` hears from a thread when the backend says that the group has ended.

    Raises RuntimeError when it cannot be made, NoBackend or NoMpi when it never can be on this machine, WorldMismatch
    when it is another one.
    """
    backend, place = spec.world.backend, None
    for names in jaccl.VARIABLES:
        for name in names:
            os.environ.pop(name, None)
    if backend == "mpi":
        place = take_place(spec.rank, go.addresses, lost)
    else:
        os.environ.update(_environment(spec, go, folder))
    if not mx.distributed.is_available(backend):
        raise NoBackend(f"MLX has no backend {backend} on this node", FIXES[backend])
    group = mx.distributed.init(strict=True, backend=backend)
    if group.size() != spec.world.size or group.rank() != spec.rank:
        raise WorldMismatch(
            f"rank {spec.rank} of {spec.world.size} was expected, the group says {group.rank()} of {group.size()}"
        )
    return Membership(group=group, place=place)


FIXES = {
    "ring": "reinstall MLX: python -m pip install --force-reinstall mlx",
    "jaccl": "it needs macOS 26.2, Thunderbolt 5 and RDMA enabled: realign doctor --hostfile FILE; or --backend ring",
    "mpi": "its library has to be Open MPI's: brew install open-mpi (Debian: sudo apt-get install openmpi-bin)",
}


def _environment(spec: RankSpec, go: Go, folder: Path) -> dict[str, str]:
    """What MLX makes a ring or a jaccl group from; the file that it names is written to `folder`."""
    file = folder / f"{spec.world.backend}-{spec.generation}.{spec.rank}.json"
    if spec.world.backend == "ring":
        file.write_text(json.dumps([[address] for address in go.addresses]))
        return {"MLX_RANK": str(spec.rank), "MLX_HOSTFILE": str(file)}
    if spec.world.rdma is None:
        raise WorldMismatch("the plan joins the ranks by jaccl and names no devices")
    file.write_text(json.dumps(jaccl.device_matrix(spec.world.rdma)))
    return jaccl.jaccl_environment(spec.world.rdma, spec.rank, str(file), go.addresses[0])
