"""Trains made llama models for a step each and prints what MLX had allocated at most, with an older state still held.

    python memory_process.py '[{"config": {...}, "settings": {...}, "sequences": 4, "length": 256, ...}, ...]'

A process of its own, because MLX's peak is one number a process. It computes on the CPU, but what a GPU would compute:
kernels made for the CPU backend, which keep other things, are left out.
"""

from __future__ import annotations

import gc
import json
import math
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import _get_classes

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import TrainJob
from realign_cluster.training.adapters import attach
from realign_cluster.training.objectives import GlobalCounts, make_objective, metric_names
from realign_cluster.training.optimizer import MasterOptimizer
from realign_cluster.training.parallel.base import MicroBatch
from realign_cluster.training.parallel.data import DataParallel
from realign_cluster.training.setup import checkpoint_blocks


def made_model(config: dict[str, Any]) -> nn.Module:
    """With weights that are there, as if read from a file: making them up takes more memory than they do."""
    mx.random.seed(1)
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    model.set_dtype(getattr(mx, config["torch_dtype"]))
    if "quantization" in config:
        nn.quantize(model, **config["quantization"])
    mx.eval(model.parameters())
    model.train()
    return model


def measure(
    config: dict[str, Any], job: TrainJob, *, sequences: int, length: int, targets: int, batches: int
) -> dict[str, int]:
    """Bytes: before the step (weights, masters, moments, the older state), the peaks of its two halves, and of all that
    is done, with a reference's log-probabilities.
    """
    model = made_model(config)
    adapters = attach(model, job.adapter, job.fine_tune, job.seed)
    block, plain_call = type(model.layers[0]), type(model.layers[0]).__call__
    if job.grad_checkpoint:  # changes the class of the blocks
        checkpoint_blocks(model)
    strategy = DataParallel(model, dropout=adapters.dropout)
    optimizer = MasterOptimizer(job.optimizer, strategy.parameters())
    strategy.update(optimizer.weights)
    mx.eval(model.parameters(), optimizer.state())
    made = [made_batch(job, config["vocab_size"], sequences, length, targets) for _ in range(batches)]
    mx.reset_peak_memory()
    if job.needs_reference:
        strategy.log_probabilities(made)
    reference = int(mx.get_peak_memory())
    objective = make_objective(job, GlobalCounts(tokens=sequences * targets * batches, pairs=sequences * batches))
    nothing = {name: mx.zeros(value.shape) for name, value in optimizer.weights.items()}
    optimizer.step(nothing, norm=0.0, learning_rate=1e-4)
    being_written = optimizer.state()  # as the thread that writes snapshots holds on to it, for longer than a step
    optimizer.step(nothing, norm=0.0, learning_rate=1e-4)
    strategy.update(optimizer.weights)
    mx.eval(model.parameters())
    del nothing
    mx.clear_cache()
    found = {"before": int(mx.get_active_memory())}
    mx.reset_peak_memory()
    sums = strategy.gradients(made, objective, len(metric_names(job.method)))
    norm = math.sqrt(float(strategy.norm_squared(sums.gradients).item()))
    found["gradients"] = int(mx.get_peak_memory())
    mx.reset_peak_memory()
    optimizer.step(sums.gradients, norm=norm, learning_rate=1e-4)
    strategy.update(optimizer.weights)
    mx.eval(model.parameters())
    found["update"] = int(mx.get_peak_memory())
    del being_written
    block.__call__ = plain_call
    return found | {"peak": max(reference, found["gradients"], found["update"])}


def made_batch(job: TrainJob, vocabulary: int, sequences: int, length: int, targets: int) -> MicroBatch:
    """The last `targets` positions of each sequence have to be predicted."""
    tokens = np.random.default_rng(2).integers(0, vocabulary, (sequences, length))
    starts = np.arange(sequences)[:, None] * length
    positions = (starts + np.arange(length - 1 - targets, length - 1)).reshape(-1)
    batch = MicroBatch(
        tokens=mx.array(tokens.astype(np.int32)),
        positions=mx.array(positions.astype(np.int32)),
        targets=mx.array(tokens.reshape(-1)[positions + 1].astype(np.int32)),
        owners=mx.array(np.repeat(np.arange(sequences), targets).astype(np.int32)),
        lengths=mx.full((sequences,), targets, dtype=mx.int32),
        sequences=sequences,
        keys=mx.array(np.arange(tokens.size, dtype=np.uint32).reshape(tokens.shape)) if job.adapter.dropout else None,
        reference=mx.full((sequences,), -float(targets)) if job.needs_reference else None,
    )
    mx.eval([value for value in (batch.tokens, batch.positions, batch.targets, batch.owners) if value is not None])
    return batch


def main() -> None:
    mx.default_device = lambda: mx.gpu  # only what is asked of it, not where it is computed
    nothing = ModelSpec(name="made", hash="made")
    found = []
    for asked in json.loads(sys.argv[1]):
        job = TrainJob(model=nothing, data=nothing, steps=2, global_batch=asked["sequences"], **asked.pop("settings"))
        found.append(measure(asked.pop("config"), job, **asked))
        gc.collect()
        assert mx.get_active_memory() < 1 << 20, "the next measurement would begin with the last one's arrays"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
