"""Which of the models that a workflow made it falls back to: the best of the feasible, not merely the last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from realign_cluster.workflows.jobs import ModelRef


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
