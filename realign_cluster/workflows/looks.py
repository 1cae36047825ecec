"""Which look at a candidate a verdict is.

Whoever adds items until a gate passes has it pass too often: each set of items that a candidate is judged on is another
chance. How many there may be is declared before the first (`looks` in the configuration), and alpha is divided by that
number (Bonferroni), so that all of them together pass wrongly with probability alpha at most, however the sets overlap
and whatever made somebody add items. A look beyond has no alpha left (`gates.of_look`). The same items again, in any
order, are the same look; another model, index or verifier is another candidate, which the attempts are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from realign_cluster.domain.gate import Gate
from realign_cluster.workflows.jobs import content_hash
from realign_cluster.workflows.stage import Counted, Outcome, Retained, Stage, StageGate, State

Place = tuple[str, str, str]
"""Stage, gate, candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A set of items (by the hash of their names) at which a gate looked at a candidate. `number` from 1; `new`: it is
    not among those seen before.
    """

    place: Place
    items: str
    number: int
    new: bool


def sight_of(
    gate: StageGate, stage: Stage, outcome: Outcome, state: State, seen: Mapping[Place, list[str]]
) -> Sight | None:
    """Of what an attempt ended with, `seen` being what was looked at before, oldest first. None for what is counted and
    for what was not measured: there is nothing to look at.
    """
    rule = gate.rule
    verifier = ""
    match rule:
        case Gate():
            measured = outcome.measurements.get(rule.metric)
            names = measured.items if measured is not None else ()
            verifier = measured.verifier if measured is not None else ""
        case Retained():
            pair = outcome.benchmarks.get(rule.benchmark)
            names = pair.items if pair is not None else ()
        case Counted():
            return None
        case _:
            assert_never(rule)
    if not names:
        return None
    place = (stage.name, gate.name, _candidate(gate, outcome, state, verifier))
    items = content_hash(sorted(names))
    before = seen.get(place, [])
    new = items not in before
    return Sight(place=place, items=items, number=len(before) + 1 if new else before.index(items) + 1, new=new)


def _candidate(gate: StageGate, outcome: Outcome, state: State, verifier: str) -> str:
    match gate.judges:
        case "model":
            return (outcome.model or state.model).identity
        case "verifier":
            return verifier
        case name:
            return str(outcome.artifacts.get(name) or state.data.get(name) or "")
