"""One node's training step against mlx_lm's own LoRA trainer: same weights, rows, shapes and optimizer, in one process.

    python benchmarks/train_one_node.py [--hidden 256] [--blocks 4] [--vocabulary 8192] [--rows 8] [--tokens 128] ...

A llama of that size with random weights learns random rows, of which the second half is the completion. Both sides
take turns and start from the same adapters; the first step of a turn, which compiles, is not counted. The figure is the
median over the turns of the ratio of tokens per second, by the clock and by processor time. Losses are compared step by
step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from scoring_speed import preload_blas

RATE = 1e-4


def make_model(options: argparse.Namespace) -> Any:
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=options.hidden,
            num_hidden_layers=options.blocks,
            intermediate_size=options.hidden * 11 // 4,
            num_attention_heads=options.hidden // 64,
            num_key_value_heads=max(1, options.hidden // 128),
            rms_norm_eps=1e-5,
            vocab_size=options.vocabulary,
            tie_word_embeddings=False,
        )
    )
    mx.eval(model.parameters())
    return model


def make_rows(options: argparse.Namespace) -> Any:
    """(steps + 1, rows, tokens + 1) int32: the first step compiles."""
    import numpy as np

    return np.random.default_rng(1).integers(
        0, options.vocabulary, (options.steps + 1, options.rows, options.tokens + 1), dtype=np.int32
    )


class Timer:
    """Marks the end of every step; the first mark starts the watch."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []

    def mark(self, loss: float) -> None:
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.losses.append(loss)

    def seconds(self) -> tuple[float, float]:
        """By the clock and of the processor, for all steps after the first."""
        return self.wall[-1] - self.wall[0], self.processor[-1] - self.processor[0]


def train_theirs(model: Any, adapters: Any, rows: Any, options: argparse.Namespace) -> Timer:
    import mlx.core as mx
    import mlx.optimizers
    from mlx.utils import tree_unflatten
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    timer = Timer()

    class Listen(TrainingCallback):
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            timer.mark(info["train_loss"])

    def batches(**_: Any) -> Any:
        for step in rows:
            spans = mx.array([[options.tokens // 2, options.tokens]] * options.rows)
            yield mx.array(step), spans

    model.freeze()
    linear_to_lora_layers(model, options.blocks, {"rank": 8, "scale": 20.0, "dropout": 0.0})
    model.update(tree_unflatten(list(adapters.items())))
    optimizer = mlx.optimizers.AdamW(RATE, weight_decay=0.01, bias_correction=True)
    settings = TrainingArgs(iters=len(rows), steps_per_report=1, steps_per_save=10**9, adapter_file="/dev/null")
    train(
        model, optimizer, list(range(options.rows)), None, settings, iterate_batches=batches, training_callback=Listen()
    )
    return timer


def train_ours(model: Any, rows: Any, options: argparse.Namespace) -> tuple[Timer, Any]:
    """Also the adapters that it began with."""
    import math

    import mlx.core as mx
    import numpy as np

    from realign_cluster.domain.job import ModelSpec
    from realign_cluster.domain.training import AdapterSettings, OptimizerSettings, TrainJob
    from realign_cluster.training.adapters import attach
    from realign_cluster.training.objectives import GlobalCounts, make_objective, mean_metrics
    from realign_cluster.training.optimizer import MasterOptimizer
    from realign_cluster.training.parallel.base import MicroBatch
    from realign_cluster.training.parallel.data import DataParallel

    spec = ModelSpec(name="made", hash="0" * 32)
    job = TrainJob(
        model=spec, data=spec, steps=len(rows), global_batch=options.rows,
        adapter=AdapterSettings(layers=options.blocks), optimizer=OptimizerSettings(clip_norm=None),
    )  # fmt: skip
    attached = attach(model, job.adapter, "lora", 0)
    strategy = DataParallel(model, dropout=attached.dropout)
    optimizer = MasterOptimizer(job.optimizer, strategy.parameters())
    began = dict(strategy.parameters())
    timer = Timer()
    half, width = options.tokens // 2, options.tokens
    places = np.concatenate([np.arange(half - 1, width) + row * width for row in range(options.rows)])
    counts = GlobalCounts(tokens=len(places), pairs=options.rows)
    for step in rows:
        batch = MicroBatch(
            tokens=mx.array(step[:, :-1]),
            positions=mx.array(places.astype(np.int32)),
            targets=mx.array(step[:, half:].reshape(-1)),
            owners=mx.array(np.repeat(np.arange(options.rows, dtype=np.int32), len(places) // options.rows)),
            lengths=mx.array(np.full(options.rows, len(places) // options.rows, dtype=np.int32)),
            sequences=options.rows,
        )
        sums = strategy.gradients([batch], make_objective(job, counts), 2)
        norm = math.sqrt(float(np.array(strategy.norm_squared(sums.gradients))))
        optimizer.step(sums.gradients, norm=norm, learning_rate=RATE)
        strategy.update(optimizer.weights)
        timer.mark(mean_metrics("sft", np.array(sums.metrics).tolist())["loss"])
    return timer, began


def main() -> None:
    preload_blas()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 256), ("blocks", 4), ("vocabulary", 8192), ("rows", 8), ("tokens", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = make_rows(options)
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "mlx_lm": []}
    difference = 0.0
    for _ in range(options.repeats):
        ours, began = train_ours(make_model(options), rows, options)
        theirs = train_theirs(make_model(options), began, rows, options)
        found["ours"].append(ours.seconds())
        found["mlx_lm"].append(theirs.seconds())
        difference = max(difference, *(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)))
    tokens = options.steps * options.rows * options.tokens
    made = f"llama, {options.blocks} blocks of {options.hidden}, {options.vocabulary} tokens"
    print(f"{made}; steps of {options.rows} rows of {options.tokens} tokens; {options.repeats} turns")
    print(f"largest difference of the losses: {difference:.1e}")
    for name, seconds in found.items():
        wall, processor = (statistics.median(each) for each in zip(*seconds, strict=True))
        print(f"{name:8} {tokens / wall:9,.0f} tokens/s   {tokens / processor:9,.0f} tokens per second of processor")
    for at, what in enumerate(("by the clock", "by processor time")):
        ratios = sorted(theirs[at] / ours[at] for ours, theirs in zip(found["ours"], found["mlx_lm"], strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"ours is {statistics.median(ratios):.2f} times mlx_lm's trainer {what} ({spread})")


if __name__ == "__main__":
    main()
