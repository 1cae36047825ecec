"""The parts of a training run's report that lie on steps: loss, pairs, benchmarks, divergence, rates, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.curves import Curve, Kept, Mark, curves, smoothed
from realign_cluster.coordinator.markup import legend, note, section
from realign_cluster.coordinator.train_history import TrainHistory

PAIR_METRICS = ("accuracy", "margin")
NAME_LETTERS = 70
Points = Sequence[tuple[float, float]]


def learning_sections(history: TrainHistory, request: Mapping[str, Any]) -> str:
    """What the model has learned, and how far it has moved."""
    settings = request.get("settings") or {}
    return _loss(history) + _pairs(history) + _benchmarks(history) + _divergence(history, settings.get("kl") or {})


def rate_sections(history: TrainHistory) -> str:
    """How steps went by."""
    return _rates(history) + _speed(history)


def smoothed_loss(history: TrainHistory) -> list[tuple[float, float]]:
    return smoothed([(float(step.step), step.loss) for step in history.steps])


def _loss(history: TrainHistory) -> str:
    points = [(float(step.step), step.loss) for step in history.steps]
    validation = [(float(step), loss) for step, loss in history.validation()]
    lost = [(float(step.step), step.loss) for step in history.lost]
    drawn = curves(
        [
            Curve(label="each step", points=points, style="faint"),
            Curve(label="smoothed", points=smoothed(points), style="n0"),
            Curve(label="validation", points=validation, style="n1", dots=True),
            Curve(label="lost or given up:", points=lost, style="lost", dots=True, hollow=True),
        ],
        unit="loss",
        marks=restarts(history),
        kept=_states(history),
        height=290.0,
        logarithmic=True,
        until=_last_step(history),
    )
    if not drawn:
        return ""
    entries = [("faint", "each step"), ("n0", "smoothed")]
    if validation:
        entries.append(("n1", f"validation ({number(validation[-1][1])} at the end)"))
    if lost:
        entries.append(("lost ring", "lost or given up, then done again"))
    words = "Ticks at the foot: states that were kept, long ones are checkpoints."
    if lost:
        words += " A ring is a step of a course that came to an end; where the curve goes through it, the second time"
        words += " was like the first."
    return section("Loss", legend(entries) + drawn + note(words))


def _pairs(history: TrainHistory) -> str:
    body = ""
    for metric, style in zip(PAIR_METRICS, ("n2", "n3"), strict=True):
        points = [(float(step.step), step.metrics[metric]) for step in history.steps if metric in step.metrics]
        body += _with_mean(points, metric, style, _last_step(history), height=160.0)
    return section("Chosen against rejected", body) if body else ""


def _benchmarks(history: TrainHistory) -> str:
    found = {name: [(float(step), value) for step, value in values] for name, values in history.benchmarks().items()}
    drawn = "".join(
        curves(
            [
                Curve(label=name, points=points, style=f"n{at % 8}"),
                Curve(label=name, points=points, style=f"n{at % 8}", dots=True),
            ],
            unit=f"{name}: {number(points[0][1])} before, {number(points[-1][1])} now",
            height=140.0,
            until=_last_step(history),
        )
        for at, (name, points) in enumerate(found.items())
    )
    return section("Benchmarks", drawn) if drawn else ""


def _divergence(history: TrainHistory, kl: Mapping[str, Any]) -> str:
    points = [(float(each.step), each.kl) for each in history.divergences]
    lost = [(float(each.step), each.kl) for each in history.divergences_lost]
    drawn = curves(
        [
            Curve(label="KL", points=points, style="n3"),
            Curve(label="KL", points=points, style="n3", dots=True),
            Curve(label="KL, given up,", points=lost, style="lost", dots=True, hollow=True),
        ],
        unit="nats per token",
        marks=[mark for mark in restarts(history) if not mark.trouble],
        bound=(float(kl["budget"]), f"budget {kl['budget']:g}") if "budget" in kl else None,
        height=190.0,
        until=_last_step(history),
    )
    if not drawn:
        return ""
    words = (
        "A ring is a measurement of a course that was given up: the run went back, and on more softly." if lost else ""
    )
    return section("Divergence from the base model", drawn + note(words))


def _rates(history: TrainHistory) -> str:
    norms = [(float(step.step), step.gradient_norm) for step in history.steps]
    rates = [(float(step.step), step.learning_rate) for step in history.steps]
    last = _last_step(history)
    body = _with_mean(norms, "gradient norm", "n4", last, height=150.0)
    rate = Curve(label="learning rate", points=rates, style="n5")
    body += curves([rate], unit="learning rate", height=130.0, until=last)
    return section("Gradient norm and learning rate", body) if body else ""


def _speed(history: TrainHistory) -> str:
    speeds = [(float(step.step), step.tokens / step.seconds) for step in history.steps if step.seconds > 0]
    drawn = _with_mean(speeds, "tokens/s", "n2", _last_step(history), height=150.0)
    return section("Speed", drawn + note("Tokens of a step over its seconds, by its slowest rank.")) if drawn else ""


def _with_mean(points: Points, unit: str, style: str, until: float, *, height: float) -> str:
    each = Curve(label=f"{unit}, each step", points=points, style="faint")
    mean = Curve(label=f"{unit}, smoothed", points=smoothed(points), style=style)
    return curves([each, mean], unit=unit, height=height, until=until)


def _last_step(history: TrainHistory) -> float:
    return float(max((step.step for step in (*history.steps, *history.lost)), default=0))


def restarts(history: TrainHistory) -> list[Mark]:
    """Where a generation took over from another."""
    marks = []
    for before, after in pairwise(history.generations):
        name = f"generation {after.number}"
        why = before.why if len(before.why) <= NAME_LETTERS else f"{before.why[:NAME_LETTERS].rstrip()} …"
        label = f"{name} goes on from step {after.start_step}: {before.why}"
        names = (f"{name}: {why}", name, f"{after.number}")
        marks.append(Mark(at=float(after.start_step), names=names, label=label, trouble=before.failed))
    return marks


def _states(history: TrainHistory) -> list[Kept]:
    """One a step, a checkpoint before a snapshot."""
    kinds: dict[int, str] = {}
    for _, kept in history.kept:
        if kinds.get(kept.part.step) != "checkpoint":
            kinds[kept.part.step] = kept.part.kind
    return [
        Kept(at=float(step), label=f"{kind} of step {step}", large=kind == "checkpoint")
        for step, kind in sorted(kinds.items())
    ]
