"""What tests of the strategy "sharded" have each rank do, and the same with the whole model on one."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import load_model

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import AdapterSettings, FineTune, Method, OptimizerSettings, TrainJob
from realign_cluster.training.adapters import attach
from realign_cluster.training.objectives import GlobalCounts, make_objective, metric_names
from realign_cluster.training.optimizer import MasterOptimizer
from realign_cluster.training.parallel import spread as spread_module
from realign_cluster.training.parallel.base import MicroBatch, Objective, Strategy
from realign_cluster.training.parallel.data import DataParallel
from realign_cluster.training.parallel.fully_sharded import FullySharded
from realign_cluster.training.parallel.spread import SpreadParameters
from realign_cluster.training.pieces import cut, gather
from tests.training.tensor_ranks import build, moved

SETTINGS = AdapterSettings(rank=4, scale=4.0, dropout=0.2, layers=-1)
SPEC = ModelSpec(name="none", hash="none")
Shares = Sequence[Sequence[int]]


def micro_batch(seed: int, lengths: Sequence[int], vocabulary: int, *, packed: bool = False) -> MicroBatch:
    """Rows of those lengths, padded to the longest or packed into one; the second half of each is the completion."""
    tokens = mx.random.randint(1, vocabulary, (sum(lengths),), key=mx.random.key(seed)).tolist()
    width = sum(lengths) if packed else max(lengths)
    rows: list[list[int]] = [[]] if packed else []
    positions, targets, owners, segments = [], [], [], []
    for owner, length in enumerate(lengths):
        own, tokens = tokens[:length], tokens[length:]
        start = len(rows[0]) if packed else owner * width
        for at in range(length // 2, length):
            positions.append(start + at - 1)
            targets.append(own[at])
            owners.append(owner)
        segments += [owner] * length
        if packed:
            rows[0] += own
        else:
            rows.append(own + [0] * (width - length))
    shape = (len(rows), width)
    return MicroBatch(
        tokens=mx.array(rows, dtype=mx.int32),
        positions=mx.array(positions, dtype=mx.int32),
        targets=mx.array(targets, dtype=mx.int32),
        owners=mx.array(owners, dtype=mx.int32),
        lengths=mx.array([length - length // 2 for length in lengths], dtype=mx.int32),
        sequences=len(lengths),
        segments=mx.array([segments], dtype=mx.int32) if packed else None,
        keys=mx.random.randint(0, 2**31, shape, key=mx.random.key(seed + 1)).astype(mx.uint32),
        reference=mx.random.uniform(-60, -20, (len(lengths),), key=mx.random.key(seed + 2)),
    )


def micro_batches(vocabulary: int) -> list[MicroBatch]:
    return [
        micro_batch(1, (12, 30), vocabulary),
        micro_batch(2, (9, 17, 25, 5), vocabulary, packed=True),
        micro_batch(3, (40, 6), vocabulary),
        micro_batch(4, (8, 8, 21, 13), vocabulary),
    ]


def objective_of(method: Method, batches: Sequence[MicroBatch]) -> tuple[Objective, int]:
    lengths = [batch.lengths.tolist() for batch in batches]
    counts = GlobalCounts(tokens=sum(map(sum, lengths)), pairs=sum(map(len, lengths)) // 2)
    job = TrainJob(method=method, model=SPEC, data=SPEC, steps=1, global_batch=1)
    return make_objective(job, counts), len(metric_names(method))


def open_model(source: str, bits: int | None) -> nn.Module:
    """A model folder, lazily, or one of the made models by name."""
    if not Path(source).is_dir():
        return build(source, bits)
    model, _ = load_model(Path(source), lazy=True)
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    return model


def strategy_of(model: nn.Module, kind: FineTune, group: mx.distributed.Group | None) -> Strategy:
    dropout = attach(model, SETTINGS, kind, 7).dropout
    return DataParallel(model, dropout=dropout) if group is None else FullySharded(model, group, dropout=dropout)


def move(strategy: Strategy, kind: FineTune, group: mx.distributed.Group | None) -> None:
    """Adapters off their initial values."""
    pieces, parameters = strategy.pieces(), strategy.parameters()
    whole = parameters if group is None else gather(parameters, pieces, group)
    strategy.update({name: cut(moved(name, value, kind), pieces[name]) for name, value in whole.items()})


def answers(strategy: Strategy, own: Sequence[int], method: Method, vocabulary: int) -> Iterator[tuple[str, Any]]:
    """What a strategy says of the micro-batches `own`, its gradients under their names."""
    everything = micro_batches(vocabulary)
    objective, metrics = objective_of(method, everything)
    batches = [everything[index] for index in own]
    sums = strategy.gradients(batches, objective, metrics)
    yield "metrics", sums.metrics
    yield "norm", strategy.norm_squared(sums.gradients)
    yield "losses", strategy.losses(batches, objective, metrics)
    for index, value in zip(own, strategy.log_probabilities(batches), strict=True):
        yield f"base {index}", value
    for name, value in sums.gradients.items():
        yield f"of {name}", value


def train(strategy: Strategy, own: Sequence[int], method: Method, vocabulary: int, steps: int) -> None:
    everything = micro_batches(vocabulary)
    objective, metrics = objective_of(method, everything)
    optimizer = MasterOptimizer(OptimizerSettings(clip_norm=0.5), strategy.parameters())
    for _ in range(steps):
        sums = strategy.gradients([everything[index] for index in own], objective, metrics)
        norm = math.sqrt(float(np.array(strategy.norm_squared(sums.gradients))))
        optimizer.step(sums.gradients, norm=norm, learning_rate=1e-3)
        strategy.update(optimizer.weights)


def compare(group: mx.distributed.Group, cases: Sequence[dict[str, Any]], shares: Shares) -> dict[str, mx.array]:
    """Each case's answers, its gradients put together, and its parameters after some steps."""
    found = {}
    for number, case in enumerate(cases):
        model = open_model(case["source"], case["bits"])
        strategy = strategy_of(model, case["kind"], group)
        move(strategy, case["kind"], group)
        own = shares[group.rank()]
        said = dict(answers(strategy, own, case["method"], case["vocabulary"]))
        gradients = {name: said.pop(f"of {name}") for name in strategy.parameters()}
        assert isinstance(strategy, FullySharded)
        with strategy.callable_model():
            said["logits"] = model(micro_batches(case["vocabulary"])[0].tokens)
            mx.eval(said["logits"])
        found |= {f"{number} {key}": value for key, value in said.items()}
        whole = gather(gradients, strategy.pieces(), group)
        found |= {f"{number} of {name}": value for name, value in whole.items()}
        if case["steps"]:
            train(strategy, own, case["method"], case["vocabulary"], case["steps"])
            whole = gather(strategy.parameters(), strategy.pieces(), group)
            found |= {f"{number} trained {name}": value for name, value in whole.items()}
    return found


def batches_seen(group: mx.distributed.Group) -> dict[str, mx.array]:
    """How many micro-batches an objective hears of that knows its own ones only: one of rank 0, two of rank 1."""
    strategy = strategy_of(open_model("llama", None), "lora", group)
    own = micro_batches(256)[group.rank() : 2 * group.rank() + 1]
    number = {id(batch): mx.array([1.0]) for batch in own}
    return {"seen": strategy.losses(own, lambda values, batch: (mx.zeros(()), number[id(batch)]), 1)}


PEAKS = ("loaded", "kept", "stepped")


def peaks(group: mx.distributed.Group, source: str) -> dict[str, float]:
    """Bytes by kind, whole and sharded: at most while a model was opened, kept of it, at most in one gradient."""
    batch = micro_batch(5, (16, 16), 2048)
    objective, metrics = objective_of("sft", [batch])
    found = {}
    kinds: tuple[FineTune, ...] = ("lora", "full")
    for kind in kinds:
        for held, of in (("whole", None), ("shard", group)):
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            model = open_model(source, None)
            strategy = strategy_of(model, kind, of)
            mx.eval(model.parameters())
            sizes = [mx.get_peak_memory(), mx.get_active_memory()]
            mx.clear_cache()
            mx.reset_peak_memory()
            mx.eval(strategy.gradients([batch], objective, metrics).gradients)
            sizes.append(mx.get_peak_memory())
            found |= {f"{kind} {held} {name}": size - before for name, size in zip(PEAKS, sizes, strict=True)}
            del model, strategy
            gc.collect()  # classes made for a model refer to it and to themselves
    return found


def spread(group: mx.distributed.Group) -> dict[str, mx.array]:
    """Awkward shapes and dtypes there and back in small buckets: what is gathered, sums of what differs by rank."""
    spread_module.BUCKET_BYTES = 200
    parameters = SpreadParameters(awkward_model(), group)
    whole = parameters.gather(parameters.own)
    floating = {name: value for name, value in whole.items() if value.dtype == mx.float32}
    sums = parameters.reduce({name: value * (group.rank() + 1) for name, value in floating.items()})
    found = {f"whole {name}": value.astype(mx.float32) for name, value in whole.items()}
    found |= {f"rows {name}": mx.array(value.shape[0] if value.ndim else 1) for name, value in parameters.own.items()}
    return found | {f"sum {name}": value for name, value in gather(sums, parameters.pieces, group).items()}


def awkward_model() -> nn.Module:
    model = nn.Module()
    model.even = mx.arange(24, dtype=mx.float32).reshape(6, 4)
    model.uneven = mx.arange(35, dtype=mx.float32).reshape(7, 5)
    model.deep = mx.arange(40, dtype=mx.float32).reshape(5, 2, 2, 2)
    model.single = mx.array([3.0])
    model.scalar = mx.array(4.0)
    model.half = mx.arange(10).astype(mx.bfloat16).reshape(5, 2)
    model.packed = mx.arange(12, dtype=mx.uint32).reshape(4, 3)
    model.large = mx.random.normal((51, 3), key=mx.random.key(0))
    return model
