"""How fast nodes train: their speed at forward passes, and how many of those a training step is worth.

A step's cost is counted in token equivalents of one forward pass, as scoring's is, so that one measurement serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from realign_cluster.domain.memory import ModelFacts
from realign_cluster.domain.plan_facts import NodeFacts, NodeSpeed, StaleCalibration, WorkFacts
from realign_cluster.domain.planner import node_speeds
from realign_cluster.domain.prior import throughput
from realign_cluster.domain.report import Calibration
from realign_cluster.domain.train_shapes import FLOAT32_BYTES, adapter_work, end_parameters, trained
from realign_cluster.domain.train_work import TrainWork
from realign_cluster.domain.training import TrainSettings

DORA_PASSES = 0.3  # building each adapted weight to measure its rows, assumed
UPDATE_PASSES = 10  # over the float32 of what is trained: gradients, weights and moments, read and written


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Forward passes that parts of the model are worth in a step, forward and backward. A frozen block below all that
    is trained only goes forward.
    """

    trained_block: float
    frozen_block: float
    ends: float
    lowest: int  # first block with a backward pass
    blocks: int

    @property
    def whole(self) -> float:
        """Of the whole model, its blocks being nearly all of it."""
        return (self.lowest * self.frozen_block + (self.blocks - self.lowest) * self.trained_block) / self.blocks


def passes(model: ModelFacts, settings: TrainSettings) -> Passes:
    """One forward, one backward through the activations, and one for gradients of the weights that are trained."""
    found = trained(model, settings)
    full = settings.fine_tune == "full"
    again = 1.0 if settings.grad_checkpoint else 0.0
    adapters = 0.0
    if not full and model.architecture is not None:
        in_block = max(1.0, (model.parameters.active - end_parameters(model)) / found.blocks)
        adapters = 3 * adapter_work(model.architecture, settings) / in_block  # forward, and backward to both sides
    if settings.fine_tune == "dora":
        adapters += DORA_PASSES
    return Passes(
        trained_block=(3.0 if full else 2.0) + adapters + again,
        frozen_block=1.0,
        ends=3.0 if full else 2.0,
        lowest=found.lowest,
        blocks=found.blocks,
    )


def forward_speeds(
    nodes: Sequence[NodeFacts],
    model: ModelFacts,
    work: TrainWork,
    training: Mapping[str, Calibration],
    forward: Mapping[str, Calibration],
    stale: Mapping[str, StaleCalibration],
) -> dict[str, NodeSpeed]:
    """Token equivalents of one forward pass per second, by node; calibrations are in the same unit, also those of
    training (what was done a second, in tokens, times what a token of a step is worth). What was measured in training
    goes before what was measured in scoring with this model, and both before priors.
    """
    facts = WorkFacts(
        kinds=("loglik",),
        rows=work.rows,
        cost=work.rows * work.row_cost,
        batch_tokens=work.micro_batch(work.settings.global_batch).tokens,
    )
    return node_speeds(nodes, model, facts, {**forward, **training}, stale)


def update_seconds(node: NodeFacts, parameters: int) -> float:
    """Of the optimizer over `parameters` float32 weights: it is bound by memory."""
    return parameters * FLOAT32_BYTES * UPDATE_PASSES / (throughput(node.device).gigabytes_per_second * 1e9)
