"""What tests of the strategy "data" have each rank do: its rows of a global batch, by its share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from realign_cluster.domain.training import TrainJob
from realign_cluster.training.adapters import attach
from realign_cluster.training.context import Division
from realign_cluster.training.examples import Examples
from realign_cluster.training.micro_batches import micro_batches
from realign_cluster.training.objectives import GlobalCounts, make_objective, metric_names
from realign_cluster.training.parallel import data as data_module
from realign_cluster.training.parallel.data import DataParallel
from tests.fixtures.models import TINY_MODEL
from tests.training.rank_driver import replicas, single
from tests.training.sharded_ranks import SETTINGS, SPEC, move
from tests.training.test_micro_batches import examples_of

Case = Mapping[str, Any]  # shares, kind, method, overlap: whether sums begin before the backward pass is over
ROWS = 12
LONGEST = 64


def mixed_rows(per_row: int) -> Examples:
    """From three tokens to LONGEST, the second half of each learned."""
    drawn = np.random.default_rng(5)
    sizes = drawn.integers(3, LONGEST, ROWS * per_row)
    return examples_of(
        [(drawn.integers(1, 2048, size).tolist(), [(int(size) // 2, int(size))]) for size in sizes], per_row
    )


def gradients(group: mx.distributed.Group | None, case: Case) -> dict[str, Any]:
    """Sums over all ranks of a step, by name, from equal weights."""
    kind, method = case["kind"], case["method"]
    job = TrainJob(
        method=method,
        model=SPEC,
        data=SPEC,
        steps=1,
        global_batch=ROWS,
        fine_tune=kind,
        adapter=SETTINGS,
        micro_batch_tokens=256,
    )
    examples = mixed_rows(2 if job.preference else 1)
    model, _ = load_model(TINY_MODEL)
    strategy = DataParallel(model, group, dropout=attach(model, job.adapter, kind, job.seed).dropout)
    strategy._overlap = strategy._overlap or (group is not None and case["overlap"])
    move(strategy, kind, None)
    world, rank = (single(), 0) if group is None else (replicas(*case["shares"]), group.rank())
    own = Division(world, rank).own(examples, list(range(ROWS)))
    reference = np.random.default_rng(6).uniform(-90, -60, (ROWS, 2)).astype(np.float32)
    batches = micro_batches(examples, own, job, step=4, reference=reference if job.needs_reference else None)
    counts = GlobalCounts(tokens=int(examples.completion_tokens.sum()), pairs=ROWS)
    objective = make_objective(job, counts)
    sums = strategy.gradients([each.batch for each in batches], objective, len(metric_names(method)))
    return {"rows": mx.array(len(own)), "metrics": sums.metrics, **sums.gradients}


def compare(group: mx.distributed.Group, cases: Sequence[Case], bucket_bytes: int) -> dict[str, Any]:
    """The gradients of each case, summed in buckets of so many bytes."""
    data_module.BUCKET_BYTES = bucket_bytes
    return {
        f"{number} {name}": value for number, case in enumerate(cases) for name, value in gradients(group, case).items()
    }
