"""What each job of a workflow takes, with the arithmetic: of the plans that scoring and training make for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from realign_cluster.domain.plan import Plan
from realign_cluster.domain.train_plan import TrainPlan
from realign_cluster.workflows.jobs import Consult, Score, Train
from realign_cluster.workflows.rehearsal import Rehearsed

MINUTE: Final = 60.0
UNITS: Final[Mapping[str, tuple[str, str]]] = {  # what a row of a job is, and several are
    "generate": ("prompt", "prompts"),
    "judge": ("pair of evidence and claim", "pairs of evidence and claim"),
    "kl": ("completion by two models", "completions by two models"),
    "loglik": ("continuation", "continuations"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One job as it would run on this cluster. `minutes` is None where no cluster was named, where the cluster cannot
    do it, and where nobody knows: `text` says which. `units`: rows of scoring, steps of a training.
    """

    stage: str
    title: str
    what: str
    units: int
    tokens: float | None = None  # token equivalents, as `realign plan` counts them
    minutes: float | None = None
    memory: tuple[str, ...] = ()
    text: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "memory": list(self.memory)}


def unplanned(each: Rehearsed) -> Cost:
    """Without a cluster, or of what no plan is made for: how much it is."""
    job = each.job
    match job:
        case Score():
            text = f"{_rows_text(each, job)}{_drawn_text(job)}"
            return Cost(stage=each.stage, title=job.title, what=kinds_of(job), units=each.count, text=text)
        case Train():
            return Cost(
                stage=each.stage,
                title=job.title,
                what=job.settings.method,
                units=job.settings.steps,
                text=_steps_text(each, job) + _looks(job),
            )
        case Consult():
            at_once = job.service.pairs_per_request
            requests = -(-each.count // at_once)
            text = f"{each.count:,} pairs in {requests:,} requests of {at_once}: how fast it answers is its own"
            return Cost(stage=each.stage, title=job.title, what="fact service", units=each.count, text=text)


def scored(each: Rehearsed, job: Score, plan: Plan) -> Cost:
    """With what `plan` says: rows x token equivalents a row = token equivalents, over the speed of its nodes."""
    cost = unplanned(each)
    if plan.refusal:
        return replace(cost, text=f"cannot run; {plan.refusal}")
    a_row = plan.cost / max(1, plan.rows)
    sum_of = f"{_rows_text(each, job)} x {a_row:,.0f} = {plan.cost:,.0f} token equivalents{_drawn_text(job)}"
    return replace(
        cost,
        tokens=plan.cost,
        minutes=_minutes(plan.expected_seconds),
        memory=tuple(f"{node.name}: {node.memory}" for node in plan.nodes),
        text=f"{sum_of}, at {plan.cost_per_second:,.0f} a second over {counted(len(plan.nodes), 'node')}",
    )


def trained(each: Rehearsed, job: Train, plan: TrainPlan) -> Cost:
    cost = unplanned(each)
    if plan.refusal:
        return replace(cost, text=f"cannot run; {plan.refusal}")
    where = f"{plan.approach} over {counted(len(plan.nodes), 'node')}"
    said = (f"{_steps_text(each, job, plan)}, {where}{_looks(job)}", *plan.cautions)
    return replace(
        cost,
        minutes=_minutes(plan.expected_seconds),
        memory=tuple(f"{node.name}: {node.memory}" for node in plan.nodes),
        text="; ".join(said),
    )


def minutes_by_stage(costs: Sequence[Cost]) -> dict[str, float]:
    """Of the jobs that could be planned."""
    found: dict[str, float] = {}
    for cost in costs:
        found[cost.stage] = found.get(cost.stage, 0.0) + (cost.minutes or 0.0)
    return found


def minutes_per_item(costs: Sequence[Cost]) -> float | None:
    """Of answering one more question, as stage 1's first job does; gates are told what is missing by it."""
    first = next((cost for cost in costs if cost.what == "generate" and cost.units), None)
    return None if first is None or first.minutes is None else first.minutes / first.units


def kinds_of(job: Score) -> str:
    return ",".join(job.kinds)


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _rows_text(each: Rehearsed, job: Score) -> str:
    one, several = UNITS.get(kinds_of(job), ("row", "rows"))
    return f"{each.count:,} {one if each.count == 1 else several}"


def _drawn_text(job: Score) -> str:
    drawn = job.sampling
    if drawn is None:
        return ""
    return f" ({counted(drawn.samples, 'answer')} of up to {drawn.max_new_tokens} tokens each)"


def _steps_text(each: Rehearsed, job: Train, plan: TrainPlan | None = None) -> str:
    settings = job.settings
    took = "" if plan is None or plan.step_seconds is None else f" x {plan.step_seconds:.3g} s"
    before = f" + {plan.reference_seconds:.0f} s for the reference" if plan and plan.reference_seconds else ""
    return f"{settings.steps:,} steps{took} of {settings.global_batch:,} from {each.count:,} rows{before}"


def _looks(job: Train) -> str:
    """Capability checkpoints and validation are in no plan's seconds."""
    every = job.settings.evaluation.every
    if not every:
        return ""
    names = [*(["validation"] if job.valid else []), *job.benchmarks]
    return f"; besides, {counted(job.settings.steps // every, 'time')}, {' and '.join(names)}" if names else ""


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / MINUTE
