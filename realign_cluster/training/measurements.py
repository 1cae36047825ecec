"""What a rank computes beside the steps: reference log-probabilities, validation, divergence from the base model.

All of it is spread over the ranks as the steps are, and known to all of them afterwards. Must not decide anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from realign_cluster.domain.rank_report import Diverged, ReferenceRows
from realign_cluster.training.benchmarks import run_benchmarks
from realign_cluster.training.context import RankContext
from realign_cluster.training.divergence import divergence
from realign_cluster.training.examples import Examples
from realign_cluster.training.finite import require_finite
from realign_cluster.training.micro_batches import longest, micro_batches
from realign_cluster.training.objectives import GlobalCounts, make_objective, mean_metrics, metric_names
from realign_cluster.training.setup import load, read_weights

CHUNK_ROWS = 256  # between two looks at the watchdog, over all ranks

Reference = npt.NDArray[np.float32]  # (rows, 2): chosen, rejected


class Measurements:
    def __init__(self, context: RankContext) -> None:
        self._context = context
        self._base: nn.Module | None = None

    def reference(self) -> dict[str, Reference]:
        """By split, (rows, 2). Taken from the coordinator as far as it has them, computed and reported where it lacks
        them. The model must be as it was loaded. Raises NotFinite.
        """
        found: dict[str, Reference] = {}
        known = self._context.mailbox.reference
        first = 0  # rows of all splits are numbered through for the coordinator
        for split, examples in self._splits():
            values = np.full((examples.rows, 2), np.nan, dtype=np.float32)
            for row in range(examples.rows):
                if first + row in known:
                    values[row] = known[first + row]
            self._compute_reference(split, examples, values, first)
            found[split] = values
            first += examples.rows
        return found

    def _compute_reference(self, split: str, examples: Examples, values: Reference, first: int) -> None:
        """Chunk by chunk, each known whole or not at all: a generation that goes on where another one ended computes
        the same shapes.
        """
        context = self._context
        done, total = 0, int(np.isnan(values[:, 0]).sum())
        for chunk in _chunks(range(examples.rows)):
            missing = [row for row in chunk if np.isnan(values[row, 0])]
            if not missing:
                continue
            new = np.zeros((len(missing), 2), dtype=np.float32)
            place = {row: at for at, row in enumerate(missing)}
            batches = micro_batches(examples, context.division.own(examples, missing), context.orders.job)
            context.watch.enter("reference", 0, longest(batches))
            sums = context.strategy.log_probabilities([each.batch for each in batches])
            for each, batch_sums in zip(batches, sums, strict=True):
                pairs = np.array(batch_sums).reshape(-1, 2)
                for at, row in enumerate(each.rows):
                    new[place[row]] = pairs[at]
            context.watch.enter("wait", 0)
            values[missing] = np.array(context.all_sum(mx.array(new)))
            for row in missing:
                what = {f"reference log-probability of {split}.jsonl:{row + 1}": float(values[row].sum())}
                require_finite(what, "before training", 0)
            done += len(missing)
            if context.orders.spec.rank == 0:
                rows = tuple((first + row, float(values[row, 0]), float(values[row, 1])) for row in missing)
                context.say(ReferenceRows(rows=rows, done=done, total=total))

    @property
    def something_to_evaluate(self) -> bool:
        return self._context.data.valid is not None or bool(self._context.data.benchmarks)

    def evaluation(self, step: int, reference: dict[str, Reference] | None) -> dict[str, float]:
        """Means over the validation rows, "loss" among them where there are some, and the benchmarks' results."""
        context = self._context
        context.model.model.eval()
        found = {} if context.data.valid is None else self._validation(context.data.valid, step, reference)
        found |= run_benchmarks(context, step)
        context.model.model.train()
        return found

    def _validation(self, valid: Examples, step: int, reference: dict[str, Reference] | None) -> dict[str, float]:
        context = self._context
        job = context.orders.job
        rows = list(range(min(valid.rows, job.evaluation.max_rows or valid.rows)))
        objective = make_objective(job, GlobalCounts(tokens=1, pairs=1), context.orders.spec.beta_factor)
        names = metric_names(job.method)
        total = mx.zeros(len(names))
        for chunk in _chunks(rows):
            given = reference["valid"] if reference is not None else None
            batches = micro_batches(valid, context.division.own(valid, chunk), job, reference=given)
            context.watch.enter("evaluate", step, longest(batches))
            total = total + context.strategy.losses([each.batch for each in batches], objective, len(names))
            mx.eval(total)
        return mean_metrics(job.method, np.array(total).tolist())

    def divergence(self, step: int) -> None:
        """KL from the base model, on the probes or, without any, on prompts of the validation rows, else of the first
        training rows. Raises NotFinite.
        """
        context = self._context
        job = context.orders.job
        assert job.kl is not None
        started = time.perf_counter()
        strategy = context.strategy
        prompts = list(enumerate(context.data.probes or _first_prompts(context, job.kl.prompts)))
        whole = context.orders.spec.world.parallel in ("single", "data")
        if whole:  # a model in parts needs all ranks for every prompt
            prompts = prompts[context.orders.spec.rank :: context.orders.spec.world.size]
        if job.fine_tune == "full" and self._base is None:
            self._base = self._load_base(step)
        with strategy.callable_model():
            total, tokens = divergence(
                context.model.model,
                self._base,
                prompts,
                new_tokens=job.kl.new_tokens,
                stop=context.model.stop_tokens,
                seed=job.seed,
                step=step,
                progress=lambda tokens: context.watch.enter("generate", step, tokens),
                agree=int if whole else context.of_first,
            )
        summed = np.array([total, tokens])
        if whole:
            context.watch.enter("wait", step)
            summed = np.array(context.all_sum(mx.array([total, float(tokens)])))
        kl = float(summed[0] / max(1.0, summed[1]))
        require_finite({"divergence": kl}, f"after step {step}", step)
        context.say(Diverged(step=step, kl=kl, tokens=int(summed[1]), seconds=time.perf_counter() - started))

    def _load_base(self, step: int) -> nn.Module:
        """The model as it was before training, read where its weights can still be waited for."""
        context = self._context

        def loads() -> None:
            context.watch.enter("load", step)

        base = load(context.orders.model_dir, context.orders.job, loads).model
        read_weights(base, loads)
        return base

    def _splits(self) -> Iterator[tuple[str, Examples]]:
        yield "train", self._context.data.train
        if self._context.data.valid is not None:
            yield "valid", self._context.data.valid


def _first_prompts(context: RankContext, most: int) -> list[list[int]]:
    """Of text, which has no prompt, the first token."""
    examples = context.data.valid or context.data.train
    rows = range(min(most, examples.rows))
    return [examples.prompt(row) or examples.ids(examples.sequences_of(row)[0])[:1].tolist() for row in rows]


def _chunks(rows: Sequence[int]) -> Iterator[list[int]]:
    """Equal on all ranks, so that all of them make the same number of collectives."""
    return (list(rows[at : at + CHUNK_ROWS]) for at in range(0, len(rows), CHUNK_ROWS))
