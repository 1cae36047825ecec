"""What the numbers of a training run may be: every setting that cannot be meant, with what would be right.

Looks at one TrainSettings. Must not know command lines, files or models: whoever asked says where a setting came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from realign_cluster.domain.training import PREFERENCE_METHODS, TrainSettings

SMOOTHED = ("cdpo", "robust")
WITH_BETA = ("dpo", "cdpo", "robust", "ipo")
LARGEST_RATE = 1.0  # no optimizer here makes sense of more; a mistyped exponent does
LARGEST_SEED = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """`path` into TrainSettings, ("optimizer", "learning_rate"); `right` completes "it should be ..."."""

    path: tuple[str, ...]
    what: str
    right: str


def broken_limits(settings: TrainSettings) -> list[Broken]:
    """Everything that is out of range or contradicts the method, in the order of the settings."""
    return [
        *_work(settings),
        *_adapter(settings),
        *_optimizer(settings),
        *_loss(settings),
        *_kl(settings),
        *_evaluation(settings),
    ]


def _at_least(settings: TrainSettings, least: int, *names: str) -> Iterator[Broken]:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            yield Broken(path=(name,), what=f"{value} will not do", right=f"{least} or more")


def _work(settings: TrainSettings) -> Iterator[Broken]:
    yield from _at_least(settings, 1, "steps", "global_batch", "checkpoint_every", "keep_checkpoints")
    yield from _at_least(settings, 1, "snapshot_every", "micro_batch_tokens", "pad_to")
    yield from _at_least(settings, 2, "max_tokens")
    if not 0 <= settings.seed < LARGEST_SEED:
        yield Broken(path=("seed",), what=f"{settings.seed} is no seed", right="0 to 4294967295")
    if settings.packing and settings.method in PREFERENCE_METHODS:
        yield Broken(
            path=("packing",), what=f"the pairs of {settings.method} are not packed", right="false, or the method sft"
        )


def _adapter(settings: TrainSettings) -> Iterator[Broken]:
    adapter = settings.adapter
    if adapter.rank < 1:
        yield Broken(path=("adapter", "rank"), what=f"{adapter.rank} will not do", right="1 or more, such as 8")
    if not (adapter.scale > 0 and math.isfinite(adapter.scale)):
        yield Broken(path=("adapter", "scale"), what=f"{adapter.scale:g} will not do", right="above 0, such as 20")
    if not 0 <= adapter.dropout < 1:
        yield Broken(
            path=("adapter", "dropout"),
            what=f"{adapter.dropout:g} is no fraction to leave out",
            right="at least 0 and below 1",
        )
    if adapter.layers < 1 and adapter.layers != -1:
        yield Broken(
            path=("adapter", "layers"),
            what=f"{adapter.layers} is no number of blocks",
            right="1 or more, or -1 for all",
        )


def _optimizer(settings: TrainSettings) -> Iterator[Broken]:
    optimizer = settings.optimizer

    def broken(name: str, what: str, right: str) -> Broken:
        return Broken(path=("optimizer", name), what=what, right=right)

    rate = optimizer.learning_rate
    if not 0 < rate <= LARGEST_RATE:
        what = "with 0 nothing is learned" if rate == 0 else f"{rate:g} is absurd"
        yield broken("learning_rate", what, "above 0 and at most 1; 1e-5 is usual, 1e-4 for adapters")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optimizer, name) < 1:
            yield broken(name, f"{getattr(optimizer, name):g} will not do", "at least 0 and below 1")
    if not (optimizer.eps > 0 and math.isfinite(optimizer.eps)):
        yield broken("eps", f"{optimizer.eps:g} will not do", "above 0, such as 1e-8")
    if not 0 <= optimizer.weight_decay < 1:
        yield broken("weight_decay", f"{optimizer.weight_decay:g} will not do", "at least 0 and below 1")
    if optimizer.clip_norm is not None and not optimizer.clip_norm > 0:
        yield broken("clip_norm", f"{optimizer.clip_norm:g} would stop all learning", "above 0, such as 1")
    if not 0 <= optimizer.warmup_steps < max(settings.steps, 1):
        yield broken(
            "warmup_steps",
            f"{optimizer.warmup_steps} of {settings.steps} steps will not do",
            "0 or more and fewer than all steps",
        )
    if not 0 <= optimizer.final_fraction <= 1:
        yield broken("final_fraction", f"{optimizer.final_fraction:g} is no fraction", "0 to 1")


def _loss(settings: TrainSettings) -> Iterator[Broken]:
    loss, method = settings.loss, settings.method
    if method in WITH_BETA and not (loss.beta > 0 and math.isfinite(loss.beta)):
        yield Broken(path=("loss", "beta"), what=f"{loss.beta:g} will not do", right="above 0, such as 0.1")
    if not 0 <= loss.label_smoothing < 0.5:
        yield Broken(
            path=("loss", "label_smoothing"),
            what=f"{loss.label_smoothing:g} is not the probability of a wrong label",
            right="at least 0 and below 0.5",
        )
    elif loss.label_smoothing and method not in SMOOTHED:
        yield Broken(
            path=("loss", "label_smoothing"),
            what=f"{method} has no label smoothing",
            right="left out, or the method cdpo or robust",
        )
    elif not loss.label_smoothing and method in SMOOTHED:
        yield Broken(
            path=("loss", "label_smoothing"),
            what=f"{method} without label smoothing is dpo",
            right="the probability of a wrong label, such as 0.1, or the method dpo",
        )
    if method == "orpo" and not (loss.orpo_weight > 0 and math.isfinite(loss.orpo_weight)):
        yield Broken(path=("loss", "orpo_weight"), what=f"{loss.orpo_weight:g} will not do", right="above 0")


def _kl(settings: TrainSettings) -> Iterator[Broken]:
    if (kl := settings.kl) is None:
        return
    for name in ("every", "prompts", "new_tokens"):
        if getattr(kl, name) < 1:
            yield Broken(path=("kl", name), what=f"{getattr(kl, name)} will not do", right="1 or more")
    if not kl.budget > 0:
        yield Broken(path=("kl", "budget"), what=f"{kl.budget:g} nats per token will not do", right="above 0")


def _evaluation(settings: TrainSettings) -> Iterator[Broken]:
    evaluation = settings.evaluation
    if evaluation.every < 0:
        yield Broken(
            path=("evaluation", "every"),
            what=f"{evaluation.every} will not do",
            right="a number of steps, 0: at the end",
        )
    for name in ("patience", "max_rows"):
        value = getattr(evaluation, name)
        if value is not None and value < 1:
            yield Broken(path=("evaluation", name), what=f"{value} will not do", right="1 or more")
    if evaluation.patience is not None and evaluation.every == 0:
        yield Broken(
            path=("evaluation", "patience"),
            what="there is nothing to wait for when evaluation is only at the end",
            right="left out, or given with the steps between evaluations",
        )
