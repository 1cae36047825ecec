"""What tests of the memory plan have each rank do: a step of its part of a made llama model, with MLX's peak noted.

An older state is still held, as by a thread that writes it for longer than a step. The model is far smaller than real
ones but its arrays are megabytes, so that sizes decide, and not how many arrays there are.
"""

from __future__ import annotations

import gc
import math
from typing import Any

import mlx.core as mx
import numpy as np

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import WorldPlan
from realign_cluster.training.objectives import GlobalCounts, make_objective, metric_names
from realign_cluster.training.optimizer import MasterOptimizer
from realign_cluster.training.parallel.choose import make_strategy
from tests.training.memory_process import made_batch, made_model


def measured(group: mx.distributed.Group, *, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """(runs, 3) bytes: the peaks of loading, with a reference's log-probabilities, of the gradients, of the update."""
    found = []
    for run in runs:
        found.append(_measure(group, **run))
        gc.collect()
        assert mx.get_active_memory() < 1 << 20, "the next measurement would begin with the last one's arrays"
    return {"peaks": np.array(found)}


def _measure(
    group: mx.distributed.Group,
    *,
    config: dict[str, Any],
    world: dict[str, Any],
    settings: dict[str, Any],
    sequences: int,
    length: int,
    targets: int,
    batches: int,
) -> tuple[int, int, int]:
    nothing = ModelSpec(name="made", hash="made")
    job = TrainJob(model=nothing, data=nothing, steps=2, global_batch=sequences * batches, **settings)
    model = made_model(config)
    mx.clear_cache()
    mx.reset_peak_memory()
    strategy = make_strategy(WorldPlan(**world), model, job, group, lambda section: None)
    optimizer = MasterOptimizer(job.optimizer, strategy.parameters())
    strategy.update(optimizer.weights)
    mx.eval(model.parameters(), optimizer.state())
    made = [made_batch(job, config["vocab_size"], sequences, length, targets) for _ in range(batches)]
    if job.needs_reference:
        strategy.log_probabilities(made)
    loading = mx.get_peak_memory()
    objective = make_objective(job, GlobalCounts(tokens=sequences * targets * batches, pairs=sequences * batches))
    no_change = {name: mx.zeros(value.shape) for name, value in optimizer.weights.items()}
    optimizer.step(no_change, norm=0.0, learning_rate=1e-4)
    being_written = optimizer.state()
    optimizer.step(no_change, norm=0.0, learning_rate=1e-4)
    strategy.update(optimizer.weights)
    mx.eval(model.parameters())
    del no_change
    mx.clear_cache()
    mx.reset_peak_memory()
    sums = strategy.gradients(made, objective, len(metric_names(job.method)))
    norm = math.sqrt(float(strategy.norm_squared(sums.gradients).item()))
    gradients = mx.get_peak_memory()
    mx.reset_peak_memory()
    optimizer.step(sums.gradients, norm=norm, learning_rate=1e-4)
    strategy.update(optimizer.weights)
    mx.eval(model.parameters())
    del being_written
    return loading, gradients, mx.get_peak_memory()
