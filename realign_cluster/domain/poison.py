"""Whose fault a failure is, the unit's or the node's, and what follows: try again, split, quarantine, set the node
aside.

A unit is poison when different nodes fail on it. A node is bad when it fails on what others compute. Losing a node
says nothing of the units it held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Literal

from realign_cluster.domain.events import UnitRef
from realign_cluster.domain.fleet import Node
from realign_cluster.domain.ids import NodeName, UnitId
from realign_cluster.domain.policy import Policy

Verdict = Literal["retry", "split", "quarantine"]

DIED_CODE = "worker-died"
DIED_MESSAGE = "the worker died while computing this row alone"
STALLED_CODE = "worker-stalled"
STALLED_MESSAGE = "the worker made no progress while computing this row alone"


def judge_unit(ref: UnitRef, usable: Set[NodeName], someone_may_come: bool, policy: Policy) -> Verdict:
    """What becomes of a unit that has just failed (the failure is in `failed_on`).

    `usable`: nodes that could try it. While `someone_may_come` who could confirm it, one node alone convicts nothing.
    """
    if ref.suspected and ref.rows > 1:
        return "split"
    nodes = set(ref.failed_on)
    failures = len(ref.failed_on)
    enough = len(nodes) >= policy.nodes_to_blame
    if not enough and failures >= policy.nodes_to_blame:
        # Nobody else is there to ask; or somebody is who never gets round to it: a unit may not fail for ever.
        nobody_else = not usable - nodes and not someone_may_come
        enough = nobody_else or failures >= 2 * policy.nodes_to_blame
    if not enough:
        return "retry"
    return "quarantine" if ref.suspected else "split"


def halves(ref: UnitRef, next_unit: UnitId) -> tuple[UnitRef, ...]:
    """Suspected children over consecutive rows, numbered from `next_unit`. They inherit no blame.

    One row gives one child: it failed in company, as a suspect it will be tried alone.
    """
    first = (ref.rows + 1) // 2
    counts = (first, ref.rows - first) if ref.rows > 1 else (1,)
    return tuple(
        UnitRef(
            unit=UnitId(next_unit + index),
            cost=ref.cost * count / ref.rows,
            longest=ref.longest,
            rows=count,
            suspected=True,
        )
        for index, count in enumerate(counts)
    )


def may_try(ref: UnitRef, node: NodeName, others: Iterable[NodeName], someone_may_come: bool) -> bool:
    """Whether `node` should take a unit that failed before: not if one of `others` has not tried it yet and could.

    Nor if it failed here and somebody else may come to try it.
    """
    if node not in ref.failed_on:
        return True
    return not someone_may_come and all(other in ref.failed_on for other in others)


def is_bad(node: Node, others: Sequence[Node], policy: Policy) -> bool:
    """Whether the node keeps failing on its own account. `others`: those that could take its place.

    Failures that nobody else has looked into yet count too, once there are many of them and the others do not fail as
    often: a node that refuses at once would go through the whole run before they come round to its first unit.
    """
    if not others:
        return node.strikes >= policy.failures_to_set_aside_last
    if node.strikes >= policy.failures_to_set_aside:
        return True
    doubts = len(node.doubts)
    return (
        node.strikes + doubts >= policy.doubts_to_set_aside and max(len(other.doubts) for other in others) < doubts / 2
    )
