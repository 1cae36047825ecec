"""Joining the group of a generation, by MLX's own backends or over MPI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from realign_cluster.domain.world import Go, RankSpec
from realign_cluster.sharding.group import Group, describe_group, forget_group, make_group
from realign_cluster.training.mpi import Place, take_place


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """In a group, until the process ends. `place` is there over MPI."""

    group: Group
    place: Place | None = None

    def leave(self) -> None:
        """For a rank that has done its work. A collective where the backend would take an end for a failure."""
        if self.place is not None:
            self.place.leave()


def join(spec: RankSpec, go: Go, folder: Path, lost: Callable[[str], None]) -> Membership:
    """The group of this generation. `lost` hears from a thread when the backend says that the group has ended.

    Raises RuntimeError when it cannot be made, NoBackend or NoMpi when it never can be on this machine, WorldMismatch
    when it is another one.
    """
    backend, place = spec.world.backend, None
    if backend == "mpi":
        forget_group()
        place = take_place(spec.rank, go.addresses, lost)
    else:
        file = folder / f"{backend}-{spec.generation}.{spec.rank}.json"
        describe_group(spec.world, spec.rank, go.addresses, file)
    return Membership(group=make_group(spec.world, spec.rank), place=place)
