"""A group of nodes that hold one scoring model between them, and which share of it each has.

The last rank leads: to the scheduler it is the group. Pure. Who is in a group is for `group_plan`, when its workers
join and are replaced for `group_life`.
"""

from __future__ import annotations

from typing import Literal

from realign_cluster.domain.job import Strict
from realign_cluster.domain.memory import ModelFacts, Share
from realign_cluster.domain.world import WorldPlan

Sharding = Literal["auto", "none", "pipeline", "tensor"]  # auto: as a pipeline or tensor, where no node holds the model


class Place(Strict):
    """What a worker is told of the group that it is part of. A worker serves one sitting: its group ends with it.

    `batch_tokens` is the largest batch that every rank has the memory for.
    """

    sitting: int
    rank: int
    world: WorldPlan
    batch_tokens: int

    @property
    def leads(self) -> bool:
        return self.rank == self.world.size - 1


def share_of(model: ModelFacts, world: WorldPlan, rank: int) -> Share:
    """Of a model whose architecture could be read. Blocks are taken to be alike; embedding and head are never cut."""
    shape = model.architecture
    if shape is None:
        raise ValueError(f"the shares of {model.name} cannot be told from its config")
    total = model.parameters.total
    matrix = shape.vocabulary * shape.hidden
    blocks = max(0, total - matrix * (1 if shape.tied else 2)) / total
    leads = rank == world.size - 1
    if world.parallel == "tensor":
        return Share(weights=1 - blocks + blocks / world.size, cache=1 / world.size, head=leads)
    start, end = world.layers[rank]
    held = (end - start) / shape.layers
    ends = (rank == 0) + leads  # a tied embedding is at both ends
    return Share(weights=blocks * held + ends * matrix / total, cache=held, head=leads)
