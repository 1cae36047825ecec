"""Workflows and configurations made for tests: stages that measure what they are told, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from realign_cluster.domain.gate import Gate, Measurement
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.course import Begun, Decisions, End, Ended, Event, Judged, course
from realign_cluster.workflows.jobs import Ask, JobResult, Look, ModelRef, Train
from realign_cluster.workflows.stage import Context, Outcome, Stage, StageGate, State, Workflow

SFT = {"steps": 1, "global_batch": 1}


def config(**changes: Any) -> WorkflowConfig:
    """One that asks for two attempts and names files that nobody reads here."""
    files = dict.fromkeys(("sources", "items", "sealed", "practice", "citation", "valid"), "none.jsonl")
    values: dict[str, Any] = {
        "model": {"path": "none"},
        "data": files,
        "training": {"citation": SFT, "preference": {**SFT, "method": "dpo"}, "iteration": SFT},
    }
    return WorkflowConfig.model_validate(values | changes)


def share(metric: str, right: int, wrong: int) -> Measurement:
    """`right` items at 1 and `wrong` at 0."""
    values = (1.0,) * right + (0.0,) * wrong
    return Measurement(
        metric=metric,
        items=tuple(map(str, range(len(values)))),
        values=values,
        verifier="",
        dataset="made",
    )


def at_least(threshold: float = 0.9, name: str = "accuracy", **more: Any) -> StageGate:
    rule = Gate(metric=name, direction="at least", threshold=threshold, evidence="items")
    return StageGate(name=name, title=name, rule=rule, **more)


def stage(number: int, measured: Callable[[Context], Outcome], *gates: StageGate, **more: Any) -> Stage:
    """One that trains a model first if `measured` says so: the job's key is the model's name."""

    def body(context: Context) -> Generator[Ask, JobResult, Outcome]:
        outcome = measured(context)
        if outcome.model is not None:
            settings = context.config.training.citation.model_copy(update={"seed": context.seed(number)})
            done = yield Train(title=f"stage {number}", model=context.state.model, data="data", settings=settings)  # type: ignore[arg-type]
            return Outcome(
                model=done.model(),
                measurements=outcome.measurements,
                facts=outcome.facts,
                benchmarks=outcome.benchmarks,
                failed=outcome.failed,
            )
        return outcome

    name = f"stage{number}"
    fields: dict[str, Any] = {"number": number, "name": name, "title": name, "gates": gates, "remedy": "again"}
    return Stage(body=body, **(fields | more))


def workflow(*stages: Stage) -> Workflow:
    return Workflow(name="made", title="Made", stages=stages, primary="accuracy")


def drive(
    made: Workflow,
    asked: WorkflowConfig | None = None,
    decisions: Decisions | None = None,
    known: Mapping[str, Any] | None = None,
) -> tuple[End, list[Event], list[Ask]]:
    """The end, what happened, and the jobs that were asked for. Trained models are named by their number."""
    way = course(
        made, asked or config(), State(data={}, model=ModelRef(path="base", hash="base")), decisions or Decisions()
    )
    events: list[Event] = []
    jobs: list[Ask] = []
    answer: JobResult | None = None
    while True:
        try:
            step = way.send(answer)
        except StopIteration as end:
            return end.value, events, jobs
        answer = None
        if isinstance(step, Begun | Judged | Ended):
            events.append(step)
        else:
            assert not isinstance(step, Look)
            jobs.append(step)
            answer = JobResult(outputs={"model": f"model {len(jobs)}"})  # type: ignore[dict-item]
    raise AssertionError(known)
