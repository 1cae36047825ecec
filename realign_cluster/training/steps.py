"""The steps of one rank: batch, gradients, update, report; then what is due: evaluation, divergence, states.

Every rank walks through the same decisions in the same order, from what all of them know: collectives never cross.
Must not know how the model is spread.
"""

from __future__ import annotations

import math
import time

import mlx.core as mx
import numpy as np

from realign_cluster.domain.batch_order import rows_of_step
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.learning_rate import learning_rate
from realign_cluster.domain.rank_report import Ended, Evaluated, StepDone
from realign_cluster.domain.world import StateKind
from realign_cluster.training.agreement import Agreed, Voice, agree
from realign_cluster.training.context import RankContext
from realign_cluster.training.finite import NotFinite, require_finite
from realign_cluster.training.keeper import Keeper
from realign_cluster.training.masks import takes_segments
from realign_cluster.training.measurements import Measurements
from realign_cluster.training.micro_batches import micro_batches
from realign_cluster.training.objectives import GlobalCounts, make_objective, mean_metrics, metric_names
from realign_cluster.training.optimizer import MasterOptimizer, NotFiniteError
from realign_cluster.training.pace import SnapshotPace
from realign_cluster.training.replicas import aligned, of_first
from realign_cluster.training.state import Standing, digest_of, restore, state_of


class Training:
    """Made after all ranks have joined, with the model as it was loaded."""

    def __init__(self, context: RankContext) -> None:
        job, spec = context.orders.job, context.orders.spec
        self._context = context
        self._job = job
        if job.packing:
            _check_packing(context)
        self._measure = Measurements(context)
        self._reference = self._measure.reference() if job.needs_reference else None
        self._learned = context.data.train.rows_to_learn()
        self._optimizer = MasterOptimizer(job.optimizer, context.strategy.parameters())
        self._pieces = context.strategy.pieces()
        self._standing = Standing()
        if spec.start:
            self._standing = restore(
                context.orders.state_dir,
                spec.start,
                self._optimizer,
                self._pieces,
                lambda: context.watch.enter("load", spec.start_step),
            )
        context.strategy.update(self._optimizer.weights)
        self._keeper = Keeper(context.orders.state_dir, context.say, context.watch.written)
        self._pace = SnapshotPace(job.snapshot_every, spec.snapshot_every)

    def run(self) -> None:
        """From the state that the orders name to the last step, or until all agree to stop."""
        job, step = self._job, self._context.orders.spec.start_step
        reason = self._enough()  # the state may be the one that training ended with
        if step == 0:
            self._evaluate(0)
        while step < job.steps and not reason:
            self._one(step)
            step += 1
            best = self._evaluate(step)
            measured = job.kl is not None and step % job.kl.every == 0
            if measured:
                self._measure.divergence(step)
            agreed = self._agree()
            reason = self._enough() or ("stopped as asked" if agreed.stop else "")
            if reason or best or measured or step == job.steps or step % job.checkpoint_every == 0:
                self._align()
                self._keep("checkpoint", step)
            elif agreed.snapshot_ready and self._pace.due(step, agreed.snapshot_every):
                self._keep("snapshot", step)
            if agreed.shares_version > self._context.division.version:
                self._context.division.use(
                    agreed.shares_version, self._context.mailbox.shares_of(agreed.shares_version).shares
                )
        self._context.watch.enter("save", step)
        self._keeper.flush()
        self._context.say(
            Ended(
                step=step,
                complete=step >= job.steps or bool(self._enough()),
                reason=reason or "all steps are done",
                digest=digest_of(self._optimizer.weights),
                peak_bytes=int(mx.get_peak_memory()),
            )
        )

    # --- a step ---

    def _one(self, step: int) -> None:
        started = time.perf_counter()
        context, job, train = self._context, self._job, self._context.data.train
        places = rows_of_step(job.seed, step, len(self._learned), job.global_batch)
        rows: list[int] = self._learned[list(places)].tolist()
        tokens = sum(int(train.lengths[row]) for row in rows)
        context.watch.enter("step", step, tokens)
        own = context.division.own(train, rows)
        reference = self._reference["train"] if self._reference is not None else None
        batches = [each.batch for each in micro_batches(train, own, job, step=step, reference=reference)]
        learned = [int(train.completion_tokens[row]) for row in rows]
        counts = GlobalCounts(tokens=sum(learned), pairs=len(rows))
        objective = make_objective(job, counts, context.orders.spec.beta_factor)
        sums = context.strategy.gradients(batches, objective, len(metric_names(job.method)))
        squared = context.strategy.norm_squared(sums.gradients)
        if context.replicas is not None:  # or one may clip where another does not
            squared = of_first(squared, context.replicas)
        norm = math.sqrt(float(np.array(squared)))
        metrics = mean_metrics(job.method, np.array(sums.metrics).tolist())
        spec = context.orders.spec
        start = spec.schedule_start if job.needs_reference else 0  # without a beta only a lower rate helps
        rate = learning_rate(job.optimizer, step, job.steps, start) * spec.learning_rate_factor
        require_finite(metrics, f"step {step + 1}", step, rows)
        try:
            self._optimizer.step(sums.gradients, norm=norm, learning_rate=rate)
        except NotFiniteError as error:
            raise NotFinite(f"step {step + 1}: {error}", step, rows) from error
        context.strategy.update(self._optimizer.weights)
        seconds = time.perf_counter() - started
        context.watch.step_took(seconds, tokens)
        self._pace.step_took(seconds)
        context.say(
            StepDone(
                step=step + 1,
                loss=metrics.pop("loss"),
                metrics=metrics,
                tokens=tokens,
                rows=len(rows),
                own_tokens=sum(int(train.lengths[row]) for row in own),
                own_padded=sum(batch.tokens.size for batch in batches),
                seconds=seconds,
                compute_seconds=sums.compute_seconds,
                reduce_seconds=sums.reduce_seconds,
                gradient_norm=norm,
                learning_rate=rate,
                shares_version=context.division.version,
            )
        )

    def _agree(self) -> Agreed:
        mailbox = self._context.mailbox
        shares = mailbox.newest_shares()
        ready = not self._keeper.busy
        if ready and self._keeper.last_seconds:
            self._pace.wrote(self._keeper.last_seconds)
        return agree(
            Voice(
                stop=mailbox.stop_asked,
                shares_version=shares.version if shares is not None else 0,
                snapshot_ready=ready,
                snapshot_every=self._pace.every,
            ),
            self._context.group,
        )

    # --- what is due after a step ---

    def _enough(self) -> str:
        """Why no further step is worth it; "" as long as one may be."""
        patience = self._job.evaluation.patience
        return "early stop" if patience is not None and self._standing.worse >= patience else ""

    def _evaluate(self, step: int) -> bool:
        """Whether this is the best state so far. The model before the first step is what it is held against."""
        every = self._job.evaluation.every
        due = step in (0, self._job.steps) or (every > 0 and step % every == 0)
        if not due or not self._measure.something_to_evaluate:
            return False
        started = time.perf_counter()
        found = self._measure.evaluation(step, self._reference)
        require_finite({f"validation {name}": value for name, value in found.items()}, f"after step {step}", step)
        self._context.say(Evaluated(step=step, metrics=found, seconds=time.perf_counter() - started))
        return step > 0 and "loss" in found and self._standing.judge(found["loss"], step)

    def _align(self) -> None:
        """Every replica goes on from the same weights."""
        if self._context.replicas is None:
            return
        state = aligned(self._optimizer.state(), self._context.replicas)
        if state is not None:
            self._optimizer.restore(state)
            self._context.strategy.update(self._optimizer.weights)

    def _keep(self, kind: StateKind, step: int) -> None:
        context = self._context
        context.watch.enter("save" if kind == "checkpoint" else "snapshot", step)
        state = state_of(
            kind,
            step,
            spec=context.orders.spec,
            run=context.orders.run_id,
            config=context.config,
            optimizer=self._optimizer,
            pieces=self._pieces,
            standing=self._standing,
        )
        blocked = self._keeper.keep(state, durable=kind == "checkpoint")
        if kind == "checkpoint":
            context.watch.enter("wait", step)
            context.meet()  # who waits for one with a slow disk waits here: in the next step it would count as a hang
        self._pace.kept(step, blocked)


def _check_packing(context: RankContext) -> None:
    """Raises UsageError for a model in which packed rows would see each other."""
    with context.strategy.callable_model():
        if not takes_segments(context.model.model):
            raise UsageError(
                f"rows of {context.orders.job.model.name} cannot be packed: its positions or its state would run on"
                " from one row into the next",
                "--no-packing",
            )
