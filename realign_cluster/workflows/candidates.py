"""Which of the models that a workflow made it falls back to: the best of the feasible, not merely the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from realign_cluster.domain.gate import Gate, Measurement
from realign_cluster.domain.retention import BenchmarkPair, retention
from realign_cluster.workflows.jobs import ModelRef
from realign_cluster.workflows.measured import value_of
from realign_cluster.workflows.stage import Counted, Retained, StageGate


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`feasible`: no gate of its stage failed. `primary`: the workflow's first measure, None if unknown."""

    stage: str
    model: ModelRef
    feasible: bool
    primary: float | None


def without(candidate: Candidate, model: ModelRef) -> Candidate:
    """The candidate, feasible no longer if it is this model: a later stage that trains nothing found it wanting. The
    model that the workflow began with stays: there has to be one to fall back to.
    """
    return replace(candidate, feasible=False) if candidate.model == model and candidate.stage else candidate


def best_feasible(candidates: Sequence[Candidate]) -> Candidate:
    """The feasible candidate with the highest primary measure; among equals the earlier one, which is changed less.

    The first candidate is the model that the workflow began with: it is always feasible.
    """
    feasible = [candidate for candidate in candidates if candidate.feasible]
    return max(feasible, key=lambda each: float("-inf") if each.primary is None else each.primary)


def keeps(
    gate: StageGate, limit: float, measurements: Mapping[str, Measurement], benchmarks: Mapping[str, BenchmarkPair]
) -> bool:
    """Whether the estimate itself, without its bound, is within a gate's limit; what was not measured is not beyond it.
    Choosing between models is no verdict: that is for the gate, of the chosen one.
    """
    match gate.rule:
        case Retained():
            pair = benchmarks.get(gate.rule.benchmark)
            value = None if pair is None else retention(pair)
            return value is None or value >= limit
        case Gate():
            measured = measurements.get(gate.rule.metric)
            value = None if measured is None else value_of(measured)
            return value is None or (value >= limit if gate.rule.direction == "at least" else value <= limit)
        case Counted():
            return True  # of the data: no model changes it
        case _:
            assert_never(gate.rule)
