"""A training run as its ledger tells it: steps that count, steps that were lost, measurements, generations of ranks.

Reads only, once; report, summary, metrics.jsonl and tracked curves are made from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from realign_cluster.coordinator.train_generations import Course, GenerationReader, GenerationRecord
from realign_cluster.domain.rank_report import BENCHMARK, Diverged, Ended, Evaluated, Kept, NotKept, StepDone
from realign_cluster.domain.standing import Judged, best_of
from realign_cluster.store.train_ledger import EventRecord, Measurement, Sitting, StepRecord, TrainLedgerReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the ranks of one generation say of a step. `wall` is when the last of them reported it."""

    step: int
    generation: int
    wall: float
    loss: float
    metrics: dict[str, float]
    tokens: int
    seconds: float  # of the slowest rank
    gradient_norm: float
    learning_rate: float
    ranks: dict[str, StepDone]  # by node


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something for the report's timeline: wall clock, words."""

    wall: float
    text: str
    trouble: bool


@dataclass(slots=True, kw_only=True)
class TrainHistory:
    """Steps count that led to the run as it stands. Those after the state that a later generation began from are lost,
    and done again; so is what was measured after them.
    """

    times: list[Sitting]
    steps: list[Step] = field(default_factory=list)
    lost: list[Step] = field(default_factory=list)
    generations: list[GenerationRecord] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    divergences: list[Diverged] = field(default_factory=list)
    divergences_lost: list[Diverged] = field(default_factory=list)
    kept: list[tuple[str, Kept]] = field(default_factory=list)  # node, state
    stored: list[int] = field(default_factory=list)  # checkpoints that came into the run folder, by step
    peaks: dict[str, int] = field(
        default_factory=dict
    )  # bytes that MLX had at most, by node; only a rank that ends says so

    @property
    def begun(self) -> float | None:
        return self.times[0].opened_at if self.times else None

    @property
    def sittings(self) -> int:
        return len(self.times)

    @property
    def seconds(self) -> float:
        """Of all sittings."""
        return sum(sitting.last_at - sitting.opened_at for sitting in self.times)

    def elapsed(self, wall: float) -> float:
        """Seconds of sittings before that moment: nights in which nothing ran are left out."""
        return sum(max(0.0, min(wall, sitting.last_at) - sitting.opened_at) for sitting in self.times)

    @property
    def steps_lost(self) -> int:
        return len(self.lost)

    @property
    def tokens_per_second(self) -> float | None:
        """Over the steps themselves, without loading and recovery."""
        seconds = sum(step.seconds for step in self.steps)
        return sum(step.tokens for step in self.steps) / seconds if seconds else None

    def validation(self) -> list[tuple[int, float]]:
        """(step, loss), ascending; step 0 is before training."""
        return [(each.step, each.metrics["loss"]) for each in self.evaluations if "loss" in each.metrics]

    def validation_summary(self) -> dict[str, Any] | None:
        measured = self.validation()
        if not measured:
            return None
        best = best_of(Judged(step=step, loss=loss) for step, loss in measured)
        best_step, lowest = (best.step, best.loss) if best is not None else measured[0]
        return {"first": measured[0][1], "last": measured[-1][1], "best": lowest, "best_step": best_step}

    def benchmarks(self) -> dict[str, list[tuple[int, float]]]:
        """(step, result) by name."""
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for each in self.evaluations:
            for name, value in each.metrics.items():
                if name.startswith(BENCHMARK):
                    found[name.removeprefix(BENCHMARK)].append((each.step, value))
        return dict(sorted(found.items()))

    def benchmark_summary(self) -> dict[str, dict[str, float]]:
        """By name: what it was before training, and what it is now."""
        return {name: {"first": found[0][1], "last": found[-1][1]} for name, found in self.benchmarks().items()}

    def nodes_summary(self) -> dict[str, dict[str, Any]]:
        tokens, busy = _done(self.steps)
        total = sum(tokens.values())
        return {
            node: {
                "tokens": tokens[node],
                "share": tokens[node] / total if total else None,
                "busy_seconds": busy[node],
                "tokens_per_second": tokens[node] / busy[node] if busy[node] else None,
            }
            for node in sorted(tokens)
        }

    def speeds(self) -> dict[str, tuple[float, float]]:
        """By node: tokens per second of its own forward and backward passes through the whole model, and busy seconds.
        Parts of a model say nothing of a node's own speed.
        """
        whole = {each.number for each in self.generations if each.parallel in ("single", "data")}
        tokens, busy = _done(step for step in self.steps if step.generation in whole)
        return {node: (tokens[node] / busy[node], busy[node]) for node in sorted(tokens) if tokens[node] and busy[node]}

    def metric_lines(self) -> Iterator[dict[str, Any]]:
        """A benchmark keeps its name, "benchmark/NAME"."""
        evaluations = {each.step: each for each in self.evaluations}
        divergences = {each.step: each for each in self.divergences}
        for step in self.steps:
            line: dict[str, Any] = {
                "step": step.step,
                "loss": step.loss,
                **step.metrics,
                "gradient_norm": step.gradient_norm,
                "learning_rate": step.learning_rate,
                "tokens": step.tokens,
                "seconds": step.seconds,
                "generation": step.generation,
            }
            if (evaluated := evaluations.get(step.step)) is not None:
                line |= {
                    name if name.startswith(BENCHMARK) else f"validation_{name}": value
                    for name, value in evaluated.metrics.items()
                }
            if (diverged := divergences.get(step.step)) is not None:
                line["kl"] = diverged.kl
            yield line


def read_train_history(ledger: TrainLedgerReader) -> TrainHistory:
    history = TrainHistory(times=ledger.sittings())
    generations = GenerationReader()
    for event in ledger.events():
        generations.take(event)
        history.incidents += _incidents(event)
        if event.body["event"]["kind"] == "CheckpointStored":
            history.stored.append(event.body["event"]["step"])
    history.generations = generations.records()
    course = Course(history.generations)
    steps = _steps(ledger.steps())
    history.steps = [step for step in steps if course.has(step.step, step.generation)]
    history.lost = [step for step in steps if not course.has(step.step, step.generation)]
    history.evaluations, _ = _measured(ledger.measurements("evaluated"), Evaluated, course)
    history.divergences, history.divergences_lost = _measured(ledger.measurements("divergence"), Diverged, course)
    history.kept = [(each.node, Kept.model_validate(each.body)) for each in ledger.measurements("kept")]
    for each in ledger.measurements("not_kept"):
        said = NotKept.model_validate(each.body)
        text = f"{each.node} could not keep the {said.kind} of step {said.step}: {said.reason}"
        history.incidents.append(Incident(wall=each.wall, text=text, trouble=True))
    history.incidents.sort(key=lambda incident: incident.wall)
    for each in ledger.measurements("ended"):
        peak = Ended.model_validate(each.body).peak_bytes
        history.peaks[each.node] = max(peak, history.peaks.get(each.node, 0))
    return history


def _done(steps: Iterable[Step]) -> tuple[dict[str, int], dict[str, float]]:
    """By node: tokens that it computed, and seconds that it took for them."""
    tokens: dict[str, int] = defaultdict(int)
    busy: dict[str, float] = defaultdict(float)
    for step in steps:
        for node, done in step.ranks.items():
            tokens[node] += done.own_tokens
            busy[node] += done.compute_seconds
    return tokens, busy


def _steps(records: Iterator[StepRecord]) -> list[Step]:
    """By step, then generation: one for every time that it was done."""
    return [_step(list(reports)) for _, reports in groupby(records, key=lambda each: (each.step, each.generation))]


def _step(reports: list[StepRecord]) -> Step:
    ranks = {record.node: StepDone.model_validate(record.body) for record in reports}
    first = next(iter(ranks.values()))
    return Step(
        step=first.step,
        generation=reports[0].generation,
        wall=max(record.wall for record in reports),
        loss=first.loss,
        metrics=first.metrics,
        tokens=first.tokens,
        seconds=max(rank.seconds for rank in ranks.values()),
        gradient_norm=first.gradient_norm,
        learning_rate=first.learning_rate,
        ranks=ranks,
    )


def _measured(measurements: Iterator[Measurement], model: Any, course: Course) -> tuple[list[Any], list[Any]]:
    """Those that count, and those that were lost; one for a step and generation: every rank says the same."""
    found = {(each.step, each.generation): model.model_validate(each.body) for each in measurements}
    counting = {key: each for key, each in sorted(found.items()) if course.has(*key)}
    return list(counting.values()), [each for key, each in sorted(found.items()) if key not in counting]


def _incidents(event: EventRecord) -> Iterator[Incident]:
    body = event.body["event"]
    if body["kind"] == "NodeLost":
        words = "left" if body["clean"] else "is lost"
        yield Incident(wall=event.wall, text=f"{body['node']} {words}: {body['reason']}", trouble=not body["clean"])
    elif body["kind"] == "Opened" and event.epoch > 1:
        yield Incident(wall=event.wall, text=f"sitting {event.epoch} begins", trouble=False)
    for command in event.body["commands"]:
        match command["kind"]:
            case "NoteLine":
                yield Incident(wall=event.wall, text=command["text"], trouble=command["level"] == "warning")
            case "ShiftShares":
                shown = " : ".join(f"{share:.1%}" for share in command["shares"])
                yield Incident(wall=event.wall, text=f"shares {shown}: {command['reason']}", trouble=False)
            case "Quarantine":
                text = f"{command['node']} is set aside: {command['reason']}"
                yield Incident(wall=event.wall, text=text, trouble=True)
            case "Finish":
                text = f"{command['state']}: {command['reason']}"
                yield Incident(wall=event.wall, text=text, trouble=command["state"] != "complete")
