"""The way through a workflow's stages: attempts, gates, remedies, rollback. Starts nothing and keeps nothing.

A generator: it yields jobs and is sent their results, and yields what happened, which is to be written down. Run again
from its start with the same results and the same decisions of people, it takes the same way; with other thresholds it
judges the same measurements again.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from realign_cluster.domain.gate import Verdict
from realign_cluster.domain.gates import of_look
from realign_cluster.metrics.retrieval.choice import UsersCode
from realign_cluster.workflows.candidates import Candidate, best_feasible, without
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.jobs import Ask, JobResult, ModelRef
from realign_cluster.workflows.judging import judge_stage_gate
from realign_cluster.workflows.looks import Place, Sight, sight_of
from realign_cluster.workflows.measured import value_of
from realign_cluster.workflows.stage import Context, Outcome, Stage, StageGate, State, Workflow

Turn = Literal["pass", "remedy", "roll back", "stop", "go on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What people decided: gates (stage, gate) that are overridden, and how often each stage was taken back. And
    `seen`: the sets of items at which gates looked at a candidate in sittings before, oldest first.
    """

    overridden: frozenset[tuple[str, str]] = frozenset()
    taken_back: Mapping[str, int] = field(default_factory=dict)
    seen: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    stage: Stage
    attempt: int
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    stage: Stage
    attempt: int
    gate: StageGate
    verdict: Verdict
    overridden: bool
    sight: Sight | None  # what was looked at: it has to be known before the verdict is


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`turn`: what follows from the verdicts, with why."""

    stage: Stage
    attempt: int
    outcome: Outcome
    turn: Turn
    reason: str


Event = Begun | Judged | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """`passed`: every gate of the last attempt of every stage passed or was overridden. `from_stage` made the model."""

    state: Literal["complete", "failed", "incomplete"]
    passed: bool
    reason: str
    model: ModelRef
    from_stage: str
    went_on: tuple[str, ...] = ()  # gates that did not pass and were gone on from, in permissive mode


def course(
    workflow: Workflow,
    config: WorkflowConfig,
    state: State,
    decisions: Decisions,
    judge: ModelRef | None = None,
    retriever: UsersCode | None = None,
) -> Generator[Ask | Event, JobResult | None, End]:
    """From the first stage to the end."""
    tried: dict[str, int] = {}
    went_on: list[str] = []
    let_through: list[str] = []
    candidates = [Candidate(stage="", model=state.model, feasible=True, primary=None)]
    seen = {place: list(sets) for place, sets in decisions.seen.items()}
    at = 0
    before: list[State] = []  # the state that each stage began with
    while at < len(workflow.stages):
        stage = workflow.stages[at]
        attempt = tried.get(stage.name, 0)
        del before[at:]
        before.append(state)
        number = attempt + decisions.taken_back.get(stage.name, 0) * config.attempts
        yield Begun(stage=stage, attempt=number, state=state)
        context = Context(config=config, state=state, attempt=attempt, number=number, judge=judge, retriever=retriever)
        outcome: Outcome = yield from stage.body(context)
        labels = outcome.labels or state.labels
        verdicts: list[Verdict] = []
        for gate in () if outcome.failed else stage.gates:
            sight = sight_of(gate, stage, outcome, state, seen)
            judged = judge_stage_gate(gate, stage, outcome, config, labels)
            verdict = of_look(judged, look=sight.number if sight is not None else 1, looks=config.looks)
            if sight is not None and sight.new:
                seen.setdefault(sight.place, []).append(sight.items)
            verdicts.append(verdict)
            overridden = (stage.name, gate.name) in decisions.overridden
            yield Judged(stage=stage, attempt=number, gate=gate, verdict=verdict, overridden=overridden, sight=sight)
        left = _attempts_left(workflow, stage, tried, config)
        turn, reason = next_turn(stage, outcome, verdicts, left, config, decisions)
        yield Ended(stage=stage, attempt=number, outcome=outcome, turn=turn, reason=reason)
        if outcome.model is not None:
            candidates.append(_candidate(workflow, stage, outcome, verdicts))
        elif any(
            v.outcome == "FAIL" and gate.judges == "model" for gate, v in zip(stage.gates, verdicts, strict=False)
        ):
            candidates = [without(each, state.model) for each in candidates]
        match turn:
            case "pass" | "go on":
                if turn == "go on":
                    went_on += _not_passed(stage, verdicts, decisions)
                let_through += [f"{stage.title}, {gate.title}" for gate in _let_through(stage, verdicts, decisions)]
                state = state_after(state, stage, outcome)
                at += 1
            case "remedy":
                tried[stage.name] = attempt + 1
                if stage.goes_back_to is not None:
                    at = workflow.stages.index(workflow.stage(stage.goes_back_to))
                    tried[stage.goes_back_to] = tried.get(stage.goes_back_to, 0) + 1
                    state = before[at]
            case "roll back":
                best = best_feasible(candidates)
                where = f"stage {best.stage}" if best.stage else "the model it began with"
                return End(
                    state="failed",
                    passed=False,
                    reason=f"{reason}; rolled back to {where}, the best model within every limit",
                    model=best.model,
                    from_stage=best.stage,
                    went_on=tuple(went_on),
                )
            case "stop":
                return End(
                    state="incomplete",
                    passed=False,
                    reason=reason,
                    model=state.model,
                    from_stage=_made_by(state),
                    went_on=tuple(went_on),
                )
            case _:
                assert_never(turn)
    return End(
        state="complete",
        passed=not went_on,
        reason=f"gone on without: {', '.join(went_on)}" if went_on else _passed(let_through),
        model=state.model,
        from_stage=_made_by(state),
        went_on=tuple(went_on),
    )


def next_turn(
    stage: Stage,
    outcome: Outcome,
    verdicts: list[Verdict],
    attempts_left: int,
    config: WorkflowConfig,
    decisions: Decisions,
) -> tuple[Turn, str]:
    """What follows from a stage's verdicts, and why. FAIL never becomes a pass but by a person's override."""
    if outcome.failed:
        return ("remedy", f"{outcome.failed}; {stage.remedy}") if attempts_left > 0 else ("roll back", outcome.failed)
    counted = [
        (gate, verdict)
        for gate, verdict in zip(stage.gates, verdicts, strict=True)
        if (stage.name, gate.name) not in decisions.overridden
    ]
    failed = [gate for gate, verdict in counted if verdict.outcome == "FAIL"]
    open_gates = [gate for gate, verdict in counted if verdict.outcome == "INSUFFICIENT" and not gate.guard]
    if failed:
        names = ", ".join(gate.title for gate in failed)
        if attempts_left > 0:
            return "remedy", f"{names}: FAIL; {stage.remedy}"
        return "roll back", f"{names}: FAIL, and no attempt is left"
    if open_gates:
        names = ", ".join(gate.title for gate in open_gates)
        if config.mode == "strict":
            return "stop", (
                f"{names}: INSUFFICIENT with all the planned items; more decide, the verdict says how many, or"
                " --mode permissive goes on"
            )
        return "go on", f"{names}: INSUFFICIENT; gone on, for the mode is permissive"
    return "pass", _passed([gate.title for gate in _let_through(stage, verdicts, decisions)])


def _attempts_left(workflow: Workflow, stage: Stage, tried: Mapping[str, int], config: WorkflowConfig) -> int:
    """Of the stage, and of the one that its remedy goes back to: alpha was divided by no more."""
    if not stage.repeats:
        return 0
    names = [stage.name] + ([stage.goes_back_to] if stage.goes_back_to else [])
    return min(config.attempts - 1 - tried.get(name, 0) for name in names)


def _candidate(workflow: Workflow, stage: Stage, outcome: Outcome, verdicts: list[Verdict]) -> Candidate:
    assert outcome.model is not None
    primary = outcome.measurements.get(workflow.primary)
    return Candidate(
        stage=stage.name,
        model=outcome.model,
        feasible=not outcome.failed and all(verdict.outcome != "FAIL" for verdict in verdicts),
        primary=value_of(primary) if primary is not None else None,
    )


def state_after(state: State, stage: Stage, outcome: Outcome) -> State:
    """What the stages after it find."""
    models = dict(state.models)
    if outcome.model is not None:
        models[stage.name] = outcome.model
    return replace(
        state,
        model=outcome.model or state.model,
        models=models,
        artifacts={**state.artifacts, **outcome.artifacts},
        measured={**state.measured, stage.name: outcome.measurements},
        labels=outcome.labels or state.labels,
    )


def _not_passed(stage: Stage, verdicts: list[Verdict], decisions: Decisions) -> list[str]:
    """What the stage is gone on from without a decision: a person's override is one."""
    return [
        f"{stage.title}, {gate.title}"
        for gate, verdict in zip(stage.gates, verdicts, strict=True)
        if verdict.outcome == "INSUFFICIENT" and not gate.guard and (stage.name, gate.name) not in decisions.overridden
    ]


def _let_through(stage: Stage, verdicts: list[Verdict], decisions: Decisions) -> list[StageGate]:
    """What did not pass and a person overrode."""
    return [
        gate
        for gate, verdict in zip(stage.gates, verdicts, strict=True)
        if verdict.outcome != "PASS" and (stage.name, gate.name) in decisions.overridden
    ]


def _passed(let_through: list[str]) -> str:
    """A FAIL that a person overrode is no PASS: the reason says so."""
    if not let_through:
        return "every gate passed"
    return f"every gate passed or was overridden: {', '.join(dict.fromkeys(let_through))}"


def _made_by(state: State) -> str:
    return next((name for name, model in reversed(list(state.models.items())) if model == state.model), "")
