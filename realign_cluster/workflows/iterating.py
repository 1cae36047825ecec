"""Stage 6: rounds of training on what is still wrong, until one is flat or worse; the best feasible model remains."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from realign_cluster.domain.gate import Direction, Measurement, paired_with
from realign_cluster.domain.iteration import Change, change_of, judge_trend
from realign_cluster.domain.multiplicity import split_alpha
from realign_cluster.domain.retention import BenchmarkPair
from realign_cluster.workflows import training_data
from realign_cluster.workflows.bodies import checkpoints, entered_optimisation, validation
from realign_cluster.workflows.candidates import Candidate, best_feasible, keeps
from realign_cluster.workflows.cleaning import cleaned_with_general
from realign_cluster.workflows.derive import derive
from realign_cluster.workflows.evaluating import Evaluation, divergence, evaluate
from realign_cluster.workflows.jobs import ArtifactId, Ask, JobResult, ModelRef, Train
from realign_cluster.workflows.judging import threshold_of
from realign_cluster.workflows.measured import value_of
from realign_cluster.workflows.stage import Context, Outcome, StageGate
from realign_cluster.workflows.thresholds import KL_BUDGET


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """A model with what is known of it."""

    name: str
    model: ModelRef
    measurements: Mapping[str, Measurement]
    benchmarks: Mapping[str, BenchmarkPair]
    artifacts: Mapping[str, ArtifactId]


def iteration(
    context: Context, primary: str, better: Direction, limits: Sequence[StageGate]
) -> Generator[Ask, JobResult, Outcome]:
    """`primary`: the measure that rounds are compared by, `better` which way it should go. `limits`: the stage's gates
    on what a round must not cost; one that is beyond any of them is not chosen.
    """
    config = context.config.iteration
    clean = yield from cleaned_with_general(context, "practice")
    if clean.none_left:
        return Outcome(artifacts=clean.artifacts, facts={"cleaned": clean.counts}, failed=clean.none_left)
    found = yield from evaluate(context, context.state.model, "items", title="before the rounds")
    entered = yield from _standing(context, "entered", context.state.model, found)
    current, standings, changes = entered, [entered], list[Change]()
    rounds: list[dict[str, Any]] = []
    for number in range(1, config.rounds + 1):
        gaps = yield derive(
            training_data.measured_gaps, f"round {number}: gaps", inputs={"answers": current.artifacts["answers"]}
        )
        round_facts, standing = yield from _round(context, number, current, gaps.value, clean.rows)
        rounds.append(round_facts)
        if standing is None:
            break
        change = paired_with(standing.measurements[primary], current.measurements[primary])
        changes.append(change_of(change, better=better, alpha=split_alpha(context.config.alpha, config.rounds)))
        trend, why = judge_trend(changes, margin=config.flat, rounds=config.flat_rounds)
        round_facts |= {"trend": trend, "why": why, "value": value_of(standing.measurements[primary])}
        standings.append(standing)
        if trend == "worse":
            break
        current = standing
        if trend == "flat":
            break
    best = _best(context, standings, primary, better, limits)
    progress = paired_with(best.measurements[primary], entered.measurements[primary])
    if better == "at most":
        progress = replace(progress, values=tuple(-value for value in progress.values))
    return Outcome(
        model=best.model,
        artifacts={**clean.artifacts, **best.artifacts},
        measurements={**best.measurements, "progress": replace(progress, metric="progress")},
        benchmarks=best.benchmarks,
        facts={
            "rounds": rounds,
            "best": best.name,
            "rounds_trained": len(standings) - 1,
            "cleaned": clean.counts,
        },
    )


def _round(
    context: Context,
    number: int,
    current: _Standing,
    gaps: Mapping[str, Any],
    data: Mapping[str, ArtifactId],
) -> Generator[Ask, JobResult, tuple[dict[str, Any], _Standing | None]]:
    """`data`: practice questions, and general rows where there are some, as they are trained on."""
    targeted = yield derive(
        training_data.targeted_rows,
        f"round {number}: targeted data",
        inputs={"practice": data["practice"]},
        gaps=dict(gaps),
        rows=context.config.iteration.rows,
        seed=context.seed("round", number),
    )
    inputs = {"task": targeted.outputs["rows"]} | ({"general": data["general"]} if "general" in data else {})
    mixed = yield derive(
        training_data.mixed_rows,
        f"round {number}: mix",
        inputs=inputs,
        general=context.config.mix.general,
        seed=context.seed("round", number, "mix"),
    )
    settings = context.config.training.iteration
    trained = yield Train(
        title=f"round {number}: training",
        model=current.model,
        data=mixed.outputs["rows"],
        valid=validation(context, settings),
        benchmarks=checkpoints(context, settings),
        settings=settings.model_copy(update={"seed": context.seed("round", number)}),
    )
    facts: dict[str, Any] = {"round": number, "gaps": gaps, "targeted": targeted.value, "training": trained.value}
    if trained.failed:
        return {**facts, "failed": trained.failed}, None
    found = yield from evaluate(context, trained.model(), "items", title=f"after round {number}")
    standing = yield from _standing(context, f"round {number}", trained.model(), found)
    return facts, standing


def _standing(context: Context, name: str, model: ModelRef, found: Evaluation) -> Generator[Ask, JobResult, _Standing]:
    kl = yield from divergence(context, model, entered_optimisation(context), title=f"divergence, {name}")
    return _Standing(
        name=name,
        model=model,
        measurements={**found.measurements, "kl": kl},
        benchmarks=found.benchmarks,
        artifacts=found.artifacts,
    )


def _best(
    context: Context, standings: list[_Standing], primary: str, better: Direction, limits: Sequence[StageGate]
) -> _Standing:
    """By the primary measure, of those within the divergence's budget and every limit; the model that entered is
    always among them.
    """
    budget = context.config.gates.get("optimisation", {}).get("kl", KL_BUDGET)
    thresholds = {gate: threshold_of(gate, "iteration", context.config) for gate in limits}
    sign = 1.0 if better == "at least" else -1.0
    candidates = []
    for at, each in enumerate(standings):
        divergence_now = value_of(each.measurements["kl"])
        within = divergence_now is None or divergence_now <= budget
        kept = all(keeps(gate, limit, each.measurements, each.benchmarks) for gate, limit in thresholds.items())
        value = value_of(each.measurements[primary])
        candidates.append(
            Candidate(
                stage=str(at),
                model=each.model,
                feasible=at == 0 or (within and kept),
                primary=None if value is None else sign * value,
            )
        )
    return standings[int(best_feasible(candidates).stage)]
