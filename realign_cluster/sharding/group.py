"""Joining a group of ranks by MLX's own backends: the environment it reads, and a strict init.

MLX reads its environment when a group is made, caches the group, and never replaces it: a process joins once. Must not
know what the ranks are for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from realign_cluster.domain import jaccl
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import WorldPlan

Group = mx.distributed.Group

FIXES = {
    "ring": "reinstall MLX: python -m pip install --force-reinstall mlx",
    "jaccl": "it needs macOS 26.2, Thunderbolt 5 and RDMA enabled: realign doctor --hostfile FILE; or --backend ring",
    "mpi": "its library has to be Open MPI's: brew install open-mpi (Debian: sudo apt-get install openmpi-bin)",
}


class NoBackend(RealignError):
    """MLX on this machine cannot join ranks in this way."""


class WorldMismatch(Exception):
    """Ranks that would do different things: another world, another job, or other versions."""


def free_port() -> int:
    """A port that nobody listened on a moment ago, on any interface."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def describe_group(world: WorldPlan, rank: int, addresses: Sequence[str], file: Path) -> None:
    """Puts into the environment what MLX makes a ring or a jaccl group from. What that names is written to `file`.

    `addresses` are "ip:port" in rank order. Raises WorldMismatch for fewer or more of them than ranks, and for a jaccl
    world without devices.
    """
    if len(addresses) != world.size:
        raise WorldMismatch(f"the plan has {world.size} ranks, the addresses are those of {len(addresses)}")
    forget_group()
    if world.backend == "ring":
        file.write_text(json.dumps([[address] for address in addresses]))
        os.environ.update({"MLX_RANK": str(rank), "MLX_HOSTFILE": str(file)})
        return
    if world.rdma is None:
        raise WorldMismatch("the plan joins the ranks by jaccl and names no devices")
    file.write_text(json.dumps(jaccl.device_matrix(world.rdma)))
    os.environ.update(jaccl.jaccl_environment(world.rdma, rank, str(file), addresses[0]))


def forget_group() -> None:
    """Takes out of the environment what jaccl would find there of another group."""
    for names in jaccl.VARIABLES:
        for name in names:
            os.environ.pop(name, None)


def make_group(world: WorldPlan, rank: int) -> Group:
    """The group that the environment describes. Keeps Python's lock while it waits for the others.

    Raises RuntimeError when it cannot be made, NoBackend when it never can be on this machine, WorldMismatch when it is
    another one.
    """
    if not mx.distributed.is_available(world.backend):
        raise NoBackend(f"MLX has no backend {world.backend} on this node", FIXES[world.backend])
    group = mx.distributed.init(strict=True, backend=world.backend)
    if group.size() != world.size or group.rank() != rank:
        raise WorldMismatch(
            f"rank {rank} of {world.size} was expected, the group says {group.rank()} of {group.size()}"
        )
    return group
