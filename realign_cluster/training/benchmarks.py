"""Capability benchmarks on the model as it is: the log-probability of each choice, and what follows of the questions.

Spread over ranks as validation is, and known to all of them afterwards. Must not know steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import orjson

from realign_cluster.domain.rank_report import BENCHMARK
from realign_cluster.domain.training import TrainJob
from realign_cluster.store.benchmark_data import PREFIX
from realign_cluster.training.context import RankContext
from realign_cluster.training.micro_batches import RowBatch, longest, micro_batches
from realign_cluster.training.parallel.base import MicroBatch, Objective

CHUNK_ROWS = 256


def run_benchmarks(context: RankContext, step: int) -> dict[str, float]:
    """By "benchmark/NAME": accuracy, or nats per token of questions without choices. The model must be in eval mode."""
    job = context.orders.job.model_copy(update={"method": "sft", "packing": False})
    found = {}
    for name, examples in context.data.benchmarks.items():
        sums = np.concatenate(
            [
                _log_probabilities(context, name, range(at, min(at + CHUNK_ROWS, examples.rows)), job, step)
                for at in range(0, examples.rows, CHUNK_ROWS)
            ]
        )
        items, correct = _questions(context.orders.data_dir / f"{PREFIX}{name}.jsonl")
        found[f"{BENCHMARK}{name}"] = judged(sums, examples.completion_tokens, items, correct)
    return found


def judged(
    sums: npt.NDArray[np.float64],
    tokens: npt.NDArray[np.int32],
    items: npt.NDArray[np.int64],
    correct: npt.NDArray[np.bool_],
) -> float:
    """All of shape (rows,): log-probability and tokens of each choice, its question, whether it is right.

    Accuracy, ties counted as wrong, and a choice of which nothing was left within the length limit never chosen; nats
    per token where every question has one choice.
    """
    questions = np.unique(items)
    if len(questions) == len(items):
        return float(-sums.sum() / max(1, int(tokens.sum())))
    sums = np.where(tokens > 0, sums, -np.inf)
    right = 0
    for question in questions:
        here = items == question
        best = sums[here].max()
        right += bool((sums[here & correct] == best).all() and (sums[here] == best).sum() == 1)
    return right / len(questions)


def _log_probabilities(
    context: RankContext, name: str, rows: Sequence[int], job: TrainJob, step: int
) -> npt.NDArray[np.float64]:
    """(rows,): sums over the tokens of each choice, on all ranks."""
    examples = context.data.benchmarks[name]
    batches = micro_batches(examples, context.division.own(examples, rows), job)
    context.watch.enter("evaluate", step, longest(batches))
    place = {id(each.batch): _places(each, rows[0]) for each in batches}
    summed = context.strategy.losses([each.batch for each in batches], _scatter(place, len(rows)), len(rows))
    return np.array(summed).astype(np.float64)


def _places(each: RowBatch, first: int) -> mx.array:
    return mx.array([row - first for row in each.rows], dtype=mx.int32)


def _scatter(places: dict[int, mx.array], rows: int) -> Objective:
    """An objective whose metrics are the log-probability of every row."""

    def objective(values: mx.array, batch: MicroBatch) -> tuple[mx.array, mx.array]:
        sums = mx.zeros(batch.sequences).at[batch.owners].add(values)
        return mx.zeros(()), mx.zeros(rows).at[places[id(batch)]].add(sums)

    return objective


def _questions(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    with path.open("rb") as file:
        rows = [orjson.loads(line) for line in file]
    return np.array([row["item"] for row in rows]), np.array([row["correct"] for row in rows])
