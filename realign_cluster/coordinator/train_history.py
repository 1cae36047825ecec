"""A training run as its ledger tells it: the steps that count, generations and why they ended, measurements.

Reads only, once; report, summary and metrics.jsonl are made from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from realign_cluster.domain.rank_report import Diverged, Ended, Evaluated, Kept, StepDone
from realign_cluster.store.train_ledger import EventRecord, StepRecord, TrainLedgerReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step as it counts: of the newest generation that did it. `wall` is when its last rank reported it."""

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


@dataclass(slots=True, kw_only=True)
class GenerationRecord:
    """One generation of ranks. Times are wall clock; None where the ledger does not say."""

    number: int
    nodes: tuple[str, ...]
    parallel: str
    shares: tuple[float, ...]
    start_step: int
    started: float
    joined: float | None = None  # all ranks
    first_step: float | None = None
    last_step: int = 0
    ended: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Something for the report's timeline: wall clock, words."""

    wall: float
    text: str
    trouble: bool


@dataclass(slots=True, kw_only=True)
class TrainHistory:
    begun: float | None
    seconds: float  # of all sittings
    sittings: int
    steps: list[Step] = field(default_factory=list)
    steps_lost: int = 0  # done, and then done again
    generations: list[GenerationRecord] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    divergences: list[Diverged] = field(default_factory=list)
    kept: list[tuple[str, Kept]] = field(default_factory=list)
    ends: dict[str, Ended] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        """Over the steps themselves, without loading and recovery."""
        seconds = sum(step.seconds for step in self.steps)
        return sum(step.tokens for step in self.steps) / seconds if seconds else None

    def validation_summary(self) -> dict[str, Any] | None:
        measured = [(each.step, each.metrics["loss"]) for each in self.evaluations if "loss" in each.metrics]
        if not measured:
            return None
        best_step, best = min(measured[1:] or measured, key=lambda found: found[1])  # the first is before training
        return {"first": measured[0][1], "last": measured[-1][1], "best": best, "best_step": best_step}

    def benchmark_summary(self) -> dict[str, dict[str, float]]:
        """By name: what it was before training, and what it is now."""
        names = {name for each in self.evaluations for name in each.metrics if name.startswith("benchmark/")}
        found = {}
        for name in sorted(names):
            values = [each.metrics[name] for each in self.evaluations if name in each.metrics]
            found[name.removeprefix("benchmark/")] = {"first": values[0], "last": values[-1]}
        return found

    def nodes_summary(self) -> dict[str, dict[str, Any]]:
        tokens: dict[str, int] = defaultdict(int)
        busy: dict[str, float] = defaultdict(float)
        for step in self.steps:
            for node, done in step.ranks.items():
                tokens[node] += done.own_tokens
                busy[node] += done.compute_seconds
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

    def metric_lines(self) -> Iterator[dict[str, Any]]:
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
                line |= {f"validation_{name}": value for name, value in evaluated.metrics.items()}
            if (diverged := divergences.get(step.step)) is not None:
                line["kl"] = diverged.kl
            yield line


def read_train_history(ledger: TrainLedgerReader) -> TrainHistory:
    sittings = ledger.sittings()
    history = TrainHistory(
        begun=sittings[0].opened_at if sittings else None,
        seconds=sum(sitting.last_at - sitting.opened_at for sitting in sittings),
        sittings=len(sittings),
    )
    by_generation: dict[int, GenerationRecord] = {}
    for event in ledger.events():
        _read_event(event, history, by_generation)
    history.generations = [by_generation[number] for number in sorted(by_generation)]
    records = list(ledger.steps())
    history.steps = list(_steps(records))
    done = {(record.step, record.generation) for record in records}
    history.steps_lost = len(done) - len(history.steps)
    for record in records:
        if (generation := by_generation.get(record.generation)) is not None:
            generation.first_step = min(generation.first_step or record.wall, record.wall)
            generation.last_step = max(generation.last_step, record.step)
    counted = {step.step: step.generation for step in history.steps}
    history.evaluations = _measured(ledger, "evaluated", Evaluated, counted)
    history.divergences = _measured(ledger, "divergence", Diverged, counted)
    history.kept = [(each.node, Kept.model_validate(each.body)) for each in ledger.measurements("kept")]
    history.ends = {each.node: Ended.model_validate(each.body) for each in ledger.measurements("ended")}
    return history


def _steps(records: list[StepRecord]) -> Iterator[Step]:
    """Of each step, what the newest generation that did it says."""
    newest: dict[int, list[StepRecord]] = {}
    for record in records:
        others = newest.setdefault(record.step, [])
        if others and others[0].generation < record.generation:
            others.clear()
        others.append(record)
    for step, found in sorted(newest.items()):
        ranks = {record.node: StepDone.model_validate(record.body) for record in found}
        first = next(iter(ranks.values()))
        yield Step(
            step=step,
            generation=found[0].generation,
            wall=max(record.wall for record in found),
            loss=first.loss,
            metrics=first.metrics,
            tokens=first.tokens,
            seconds=max(rank.seconds for rank in ranks.values()),
            gradient_norm=first.gradient_norm,
            learning_rate=first.learning_rate,
            ranks=ranks,
        )


def _measured(ledger: TrainLedgerReader, kind: str, model: Any, counted: dict[int, int]) -> list[Any]:
    """One a step: every rank says the same, and a step that was done again is measured again."""
    found = {
        each.step: model.model_validate(each.body)
        for each in ledger.measurements(kind)
        if each.step == 0 or counted.get(each.step) == each.generation
    }
    return [found[step] for step in sorted(found)]


def _read_event(event: EventRecord, history: TrainHistory, generations: dict[int, GenerationRecord]) -> None:
    body = event.body["event"]
    match body["kind"]:
        case "RankExited" | "RankFailed" | "StartFailed" if (
            record := generations.get(body["generation"])
        ) is not None and not record.why:
            record.why = f"{body['node']}: {body.get('message') or body.get('reason')}"
            record.ended = event.wall
        case "RankJoined" if (record := generations.get(body["generation"])) is not None:
            record.joined = event.wall
        case "NodeLost":
            words = "left" if body["clean"] else "is lost"
            text = f"{body['node']} {words}: {body['reason']}"
            history.incidents.append(Incident(wall=event.wall, text=text, trouble=not body["clean"]))
        case "RankExited" | "RankFailed":
            pass
    for command in event.body["commands"]:
        match command["kind"]:
            case "StartRank":
                spec = command["spec"]
                generations.setdefault(
                    spec["generation"],
                    GenerationRecord(
                        number=spec["generation"],
                        nodes=tuple(spec["world"]["nodes"]),
                        parallel=spec["world"]["parallel"],
                        shares=tuple(spec["world"]["shares"]),
                        start_step=spec["start_step"],
                        started=event.wall,
                    ),
                )
            case "NoteLine":
                trouble = command["level"] == "warning"
                history.incidents.append(Incident(wall=event.wall, text=command["text"], trouble=trouble))
            case "KillRank":
                record = generations.get(command["generation"])
                if record is not None and not record.why:
                    record.why, record.ended = command["reason"], event.wall
            case "ShiftShares":
                shown = " : ".join(f"{share:.1%}" for share in command["shares"])
                history.incidents.append(
                    Incident(wall=event.wall, text=f"shares {shown}: {command['reason']}", trouble=False)
                )
            case "Quarantine":
                text = f"{command['node']} is set aside: {command['reason']}"
                history.incidents.append(Incident(wall=event.wall, text=text, trouble=True))
            case "Finish":
                text = f"{command['state']}: {command['reason']}"
                history.incidents.append(Incident(wall=event.wall, text=text, trouble=command["state"] != "complete"))
