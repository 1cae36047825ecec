"""What each method minimises: from the log-probabilities of a micro-batch's targets to a loss and its metrics.

The definitions are metrics.md's. Every sum is divided by the count of its own unit in the step's whole global batch,
known before the backward pass: so gradients of micro-batches and ranks are simply added, however rows are spread. Must
not know models, ranks or steps.

With L(x) = -log sigmoid(x), a preference method compares two scores, of the chosen and of the rejected completion:

    dpo     L(margin)                                           beta (log p - log p of the reference)
    cdpo    (1 - e) L(margin) + e L(-margin)                    the same
    robust  ((1 - e) L(margin) - e L(-margin)) / (1 - 2 e)      the same
    ipo     (margin - 1 / (2 beta))^2                           (log p - log p of the reference) / tokens
    orpo    lambda L(margin), and the chosen completions' NLL   log-odds of the mean log p; no reference, no beta
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import mlx.core as mx

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import Method, TrainJob
from realign_cluster.training.parallel.base import MicroBatch, Objective

SFT_METRICS = ("loss_sum", "tokens")
PREFERENCE_METRICS = (
    "loss_sum",  # of the pairs' terms; orpo's with its weight
    "pairs",
    "accurate_pairs",  # chosen scored above rejected
    "margin_sum",
    "chosen_score_sum",
    "rejected_score_sum",
    "chosen_nll_sum",
    "chosen_tokens",
)
CERTAIN = -1e-6  # mean log-probability above which log-odds, infinite at 0, are cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCounts:
    """Of a step's rows on all ranks. `tokens`: completion tokens; of a preference method, those of the chosen ones."""

    tokens: int
    pairs: int


def metric_names(method: Method) -> tuple[str, ...]:
    """Of an objective's metrics vector, in order. All are sums over sequences or pairs."""
    return SFT_METRICS if method == "sft" else PREFERENCE_METRICS


def make_objective(job: TrainJob, counts: GlobalCounts, beta_factor: float = 1.0) -> Objective:
    """The method's loss, scaled by `counts`, for one step. `beta_factor` scales beta where the method has one.

    Sequences of length 0 are padding: neither they nor targets that they own change anything. Raises UsageError for
    numbers that the method's loss is not defined for.
    """
    tokens, pairs = max(1, counts.tokens), max(1, counts.pairs)
    if job.method == "sft":
        return lambda values, batch: _sft(values, batch, tokens)
    score_of, loss_of = _comparison(job, beta_factor)
    odds = job.method == "orpo"

    def preference(values: mx.array, batch: MicroBatch) -> tuple[mx.array, mx.array]:
        real = _real_pairs(batch)
        sums, lengths = _sums(values, batch), mx.maximum(batch.lengths, 1)
        scores = score_of(sums, lengths, batch.reference)
        chosen, rejected = (mx.where(real, scores[start::2], 0.0) for start in (0, 1))
        margin = chosen - rejected
        loss = mx.where(real, loss_of(margin), 0.0).sum()
        nll = -mx.where(real, sums[0::2], 0.0).sum()
        metrics = mx.stack(
            [
                loss,
                real.sum().astype(mx.float32),
                (margin > 0).sum().astype(mx.float32),
                margin.sum(),
                chosen.sum(),
                rejected.sum(),
                nll,
                mx.where(real, batch.lengths[0::2], 0).sum().astype(mx.float32),
            ]
        )
        return loss / pairs + (nll / tokens if odds else 0.0), metrics

    return preference


def mean_metrics(method: Method, summed: Sequence[float]) -> dict[str, float]:
    """What is reported of a metrics vector summed over micro-batches and ranks: "loss" and means, each with its count.

    A mean over nothing is left out, its count is there and 0.
    """
    sums = dict(zip(metric_names(method), map(float, summed), strict=True))
    if method == "sft":
        return _means({"loss": ("loss_sum", "tokens")}, sums)
    found = _means(
        {
            "loss": ("loss_sum", "pairs"),
            "accuracy": ("accurate_pairs", "pairs"),
            "margin": ("margin_sum", "pairs"),
            "chosen_score": ("chosen_score_sum", "pairs"),
            "rejected_score": ("rejected_score_sum", "pairs"),
            "chosen_nll": ("chosen_nll_sum", "chosen_tokens"),
        },
        sums,
    )
    if method == "orpo" and "loss" in found:
        found["odds_loss"] = found["loss"]
        found["loss"] += found["chosen_nll"]
    return found


def _means(names: dict[str, tuple[str, str]], sums: dict[str, float]) -> dict[str, float]:
    means = {name: sums[top] / sums[bottom] for name, (top, bottom) in names.items() if sums[bottom]}
    return means | {bottom: sums[bottom] for _, bottom in names.values()}


def _sft(values: mx.array, batch: MicroBatch, tokens: int) -> tuple[mx.array, mx.array]:
    loss = -mx.where(batch.lengths > 0, _sums(values, batch), 0.0).sum()
    return loss / tokens, mx.stack([loss, batch.lengths.sum().astype(mx.float32)])


def _sums(values: mx.array, batch: MicroBatch) -> mx.array:
    """(S,) float32: log-probability of each sequence's completion."""
    return mx.zeros(batch.sequences).at[batch.owners].add(values)


def _real_pairs(batch: MicroBatch) -> mx.array:
    """(S / 2,) bool: both completions have tokens."""
    return (batch.lengths[0::2] > 0) & (batch.lengths[1::2] > 0)


# (S,) sums, (S,) lengths of at least 1, (S,) reference -> (S,) scores; (P,) margins -> (P,) losses
Score = Callable[[mx.array, mx.array, mx.array | None], mx.array]
PairLoss = Callable[[mx.array], mx.array]


def _comparison(job: TrainJob, beta_factor: float) -> tuple[Score, PairLoss]:
    beta, smoothing = job.loss.beta * beta_factor, job.loss.label_smoothing
    if beta <= 0:
        raise UsageError(f"beta {beta} compares nothing", "a beta above 0")
    if not 0 <= smoothing < 0.5:
        raise UsageError(f"label smoothing {smoothing} is no chance of a wrong label", "at least 0 and below 0.5")

    def reward(sums: mx.array, lengths: mx.array, reference: mx.array | None) -> mx.array:
        return beta * (sums - _given(reference))

    def both_ways(margin: mx.array) -> tuple[mx.array, mx.array]:
        return (1 - smoothing) * _negative_log_sigmoid(margin), smoothing * _negative_log_sigmoid(-margin)

    match job.method:
        case "dpo":
            return reward, _negative_log_sigmoid
        case "cdpo":
            return reward, lambda margin: mx.add(*both_ways(margin))
        case "robust":
            return reward, lambda margin: mx.subtract(*both_ways(margin)) / (1 - 2 * smoothing)
        case "ipo":
            return (
                lambda sums, lengths, reference: (sums - _given(reference)) / lengths,
                lambda margin: mx.square(margin - 1 / (2 * beta)),
            )
        case "orpo":
            return (
                lambda sums, lengths, reference: _log_odds(sums / lengths),
                lambda margin: job.loss.orpo_weight * _negative_log_sigmoid(margin),
            )
        case "sft":
            raise AssertionError("sft compares nothing")
        case _:
            assert_never(job.method)


def _given(reference: mx.array | None) -> mx.array:
    assert reference is not None, "a method with a reference needs its log-probabilities in every micro-batch"
    return reference


def _negative_log_sigmoid(x: mx.array) -> mx.array:
    return mx.logaddexp(mx.zeros_like(x), -x)


def _log_odds(mean: mx.array) -> mx.array:
    """log(p / (1 - p)) of p = exp(mean). 1 - p by expm1: near p = 1 nothing is left of it otherwise."""
    mean = mx.minimum(mean, CERTAIN)
    return mean - mx.log(-mx.expm1(mean))
