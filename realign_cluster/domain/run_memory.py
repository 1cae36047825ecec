"""What recovery has to know of a run as a whole: what was asked, and what outlives the coordinator.

Pure data: `domain.recovery` changes it, the ledger keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.training import KlAction
from realign_cluster.domain.world import WorldPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is, as far as recovery has to know. Equal in all sittings."""

    steps: int
    nodes: tuple[NodeName, ...]  # those that are expected to take part
    reproducible: bool = False  # the same world again, or none
    wait_seconds: float | None = None  # for the same world; None: as long as the policy says
    least_nodes: int | None = None  # as many go on once the rest of the same world stayed away; None: none do
    snapshot_every: int = 1
    kl_budget: float | None = None  # nats per completion token
    kl_action: KlAction = "soften"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBack:
    """States of up to `generation` after `step` are of a course that was given up."""

    generation: int
    step: int

    def gives_up(self, generation: int, step: int) -> bool:
        """Whether what that generation came to after `step` steps is of that course."""
        return generation <= self.generation and step > self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMemory:
    """What of a run outlives its coordinator. The last one that was remembered is what the next sitting opens with."""

    generation: int = 0  # the highest ever started
    world: WorldPlan | None = None  # of that generation
    nodes: tuple[NodeName, ...] = ()  # all that ever had a rank: they may hold states
    any_state: bool = False  # a part of one was seen: the run does not begin at step 0 again while a whole may be left
    learning_rate_factor: float = 1.0
    beta_factor: float = 1.0
    go_backs: tuple[GoBack, ...] = ()
    best_step: int = 0  # the one with the lowest validation loss; 0: none was measured since training began
    best_loss: float | None = None
    within_budget_step: int = 0  # the last one whose KL was measured to be within budget
    complete_step: int | None = None  # all ranks ended there with equal weights; its checkpoint is still to be stored
