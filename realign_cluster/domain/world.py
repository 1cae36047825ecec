"""A generation of ranks: who takes part, how the work is split between them, and where they start from.

A generation is never repaired. When a rank dies, a new one with a higher number, fresh ports and perhaps other nodes
takes over from a state that all its ranks can verify. Pure data; `domain.recovery` decides, `training` obeys.
"""

from __future__ import annotations

from typing import Literal

from realign_cluster.domain.job import Strict
from realign_cluster.domain.section_limits import SectionLimits
from realign_cluster.domain.training import Backend, ParallelMode

StateKind = Literal["snapshot", "checkpoint"]


class StatePart(Strict):
    """What one rank left of the state after `step` steps. Equal `layout` and `parts` belong together.

    `layout` names how the whole was cut ("whole", "tensor-2", "pipeline-2-3", "sharded-2"); a "whole" state has one
    part, which any rank may have written. `digest` is BLAKE2b-128 of the file, `bytes` its size. `generation` is the
    one that computed the state: parts of different generations are never mixed, their rounding may differ.
    """

    kind: StateKind
    step: int
    part: int
    parts: int
    layout: str
    digest: str
    bytes: int
    generation: int = 0

    @property
    def key(self) -> tuple[int, str, int, int]:
        return self.step, self.layout, self.parts, self.part

    @property
    def name(self) -> str:
        """The file's stem in a node's state folder or a run's checkpoints."""
        return f"{self.kind}-{self.step:08d}.{self.layout}.{self.part}-of-{self.parts}"


class RdmaLinks(Strict):
    """The cables of a jaccl world: `devices[i][j]` are rank i's devices towards rank j, one a cable, the k-th of both
    ends the same one; none towards itself. `ring`: only neighbours talk, over all their cables.
    """

    devices: tuple[tuple[tuple[str, ...], ...], ...]
    ring: bool = False


class WorldPlan(Strict):
    """How a job is spread: `nodes` in rank order. `shares` sum to 1; `layers` are half-open block ranges (pipeline);
    `rdma` is there where the backend is jaccl.
    """

    parallel: ParallelMode
    backend: Backend = "ring"
    nodes: tuple[str, ...]
    shares: tuple[float, ...]
    layers: tuple[tuple[int, int], ...] = ()
    rdma: RdmaLinks | None = None

    @property
    def size(self) -> int:
        return len(self.nodes)

    @property
    def layout(self) -> str:
        """Of the state that such a world leaves."""
        match self.parallel:
            case "single" | "data":
                return "whole"
            case "pipeline":
                return "pipeline-" + "-".join(str(end - start) for start, end in self.layers)
            case _:
                return f"{self.parallel}-{self.size}"

    @property
    def parts(self) -> int:
        return 1 if self.parallel in ("single", "data") else self.size


class RankSpec(Strict):
    """One rank's orders for one generation, complete but for the addresses, which `Go` brings.

    `start` is the state to load: every part of one step, present in the node's state folder; empty for a fresh start.
    `limits`: it ends itself when it is without progress for longer.
    """

    generation: int
    rank: int
    world: WorldPlan
    start_step: int = 0
    start: tuple[StatePart, ...] = ()
    snapshot_every: int = 1
    learning_rate_factor: float = 1.0  # halved when the KL budget was exceeded
    beta_factor: float = 1.0  # doubled at the same time
    schedule_start: int = 0  # steps that were done where the run went back to: a doubled beta needs a rate to act with
    limits: SectionLimits = SectionLimits()


class Go(Strict):
    """All ranks are loaded: join the group now. `addresses` are "ip:port" in rank order."""

    generation: int
    addresses: tuple[str, ...]
