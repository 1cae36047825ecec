"""Which strategy a world asks for, made with the model that this rank holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import mlx.core as mx
import mlx.nn as nn

from realign_cluster.domain.section_limits import SectionName
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import WorldPlan
from realign_cluster.training.adapters import attach
from realign_cluster.training.parallel.base import Strategy
from realign_cluster.training.parallel.data import DataParallel
from realign_cluster.training.parallel.fully_sharded import FullySharded
from realign_cluster.training.parallel.pipeline import Pipeline
from realign_cluster.training.parallel.sharded_model import ShardedModel
from realign_cluster.training.parallel.stages import Stage
from realign_cluster.training.parallel.tensor import TensorParallel
from realign_cluster.training.setup import checkpoint_blocks


def make_strategy(
    world: WorldPlan,
    model: nn.Module,
    job: TrainJob,
    group: mx.distributed.Group | None,
    entering: Callable[[SectionName], None],
) -> Strategy:
    """Attaches what is trained. `entering` hears which section begins, or that it goes on. Raises UsageError."""
    match world.parallel:
        case "single" | "data":
            adapters = attach(model, job.adapter, job.fine_tune, job.seed)
            if job.grad_checkpoint:
                checkpoint_blocks(model)
            return DataParallel(model, group, dropout=adapters.dropout, entering=entering)
        case "tensor":
            assert group is not None
            sharded = ShardedModel(
                model, job.adapter, job.fine_tune, job.seed, group, progress=lambda: entering("load")
            )
            if job.grad_checkpoint:
                checkpoint_blocks(model)
            return TensorParallel(sharded, entering=entering)
        case "pipeline":
            assert group is not None
            adapters = attach(model, job.adapter, job.fine_tune, job.seed)
            if job.grad_checkpoint:
                checkpoint_blocks(model)
            stage = Stage(model, world.layers, group.rank(), progress=lambda: entering("load"))
            return Pipeline(stage, group, dropout=adapters.dropout, entering=entering)
        case "sharded":
            assert group is not None
            adapters = attach(model, job.adapter, job.fine_tune, job.seed)
            return FullySharded(model, group, dropout=adapters.dropout, entering=entering)  # always checkpoints
        case _:
            assert_never(world.parallel)
