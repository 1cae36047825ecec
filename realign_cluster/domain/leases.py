"""How much a node is given at once, whether it should be given anything, and what an idle node duplicates.

Pure arithmetic over `fleet`: reads nodes, changes none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from realign_cluster.domain.events import UnitRef
from realign_cluster.domain.fleet import Attempt, Node
from realign_cluster.domain.policy import Policy


def lease_seconds(
    node: Node, ready: Iterable[Node], remaining_cost: float, unit_cost: float, coming_speed: float, policy: Policy
) -> float:
    """Seconds of compute of the node's next lease: clamp(R / (2 depth), min, max), R = what remains at all live speeds.

    `remaining_cost` includes what is in flight; `unit_cost` is a typical next unit's; `coming_speed` is that of planned
    nodes that are not ready yet, so that the first to be ready does not take their share. Tapers towards the end of the
    run. The bound on units is applied to the fastest node and shortens everybody's lease alike, so that shares stay
    right.
    """
    speeds = [other.speed.cost_per_second for other in ready]
    seconds = remaining_cost / (sum(speeds) + coming_speed) / (2 * policy.depth)
    seconds = min(max(seconds, policy.lease_min_seconds), policy.lease_max_seconds)
    if not node.speed.measured:
        seconds = min(seconds, policy.prior_lease_seconds)
    return min(seconds, policy.lease_max_units * unit_cost / max(speeds))


def others_finish_in(
    node: Node, ready: Iterable[Node], queued_cost: float, unit_cost: float, now: float, policy: Policy
) -> float:
    """Seconds in which the other nodes would compute all they hold and all that is queued; inf if there is none.

    Not below the time the soonest of them needs for one further unit, as a unit is not shared. Nodes whose unit in hand
    is overdue do not count: they may be hanging.
    """
    cost = queued_cost
    speed = 0.0
    soonest = float("inf")
    for other in ready:
        if other is node or overdue_by(other, now, policy) > 0:
            continue
        other_speed = other.speed.cost_per_second
        seconds = other.seconds_to_drain(now)
        cost += seconds * other_speed
        speed += other_speed
        soonest = min(soonest, seconds + unit_cost / other_speed)
    return max(cost / speed, soonest) if speed else float("inf")


def take_units(
    fresh: deque[UnitRef], target_cost: float, most_cost: float, most_units: int
) -> tuple[list[UnitRef], float]:
    """Take from the front until their cost is as near to `target_cost` as whole units allow, at least one.

    Never further units beyond `most_cost`. Returns them and their cost.
    """
    taken: list[UnitRef] = []
    cost = 0.0
    while fresh and len(taken) < most_units:
        after = cost + fresh[0].cost
        if taken and (after - fresh[0].cost / 2 > target_cost or after > most_cost):
            break
        taken.append(fresh.popleft())
        cost = after
    return taken, cost


def overdue_by(node: Node, now: float, policy: Policy) -> float:
    """Seconds the unit in the node's hand is past its estimate, factor and slack; 0 if it is not or there is none."""
    head = node.head()
    if head is None:
        return 0.0
    estimate = head.work.ref.cost / node.speed.cost_per_second
    return max(0.0, now - node.head_since - estimate * policy.overdue_factor - policy.overdue_slack)


def expected_finishes(node: Node, now: float, policy: Policy) -> Iterator[tuple[Attempt, float]]:
    """When each attempt the node holds should be back, in order. An overdue one is taken to start again now."""
    speed = node.speed.cost_per_second
    time = max(node.head_since, 0.0)
    first = True
    for attempt in node.queue.values():
        seconds = attempt.work.ref.cost / speed
        if first:
            time = now + seconds if overdue_by(node, now, policy) > 0 else max(node.head_since + seconds, now)
            first = False
        else:
            time += seconds
        yield attempt, time


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    attempt: Attempt  # the one that is duplicated
    reason: str


def choose_duplicate(node: Node, ready: Iterable[Node], now: float, policy: Policy) -> Duplicate | None:
    """What an idle node computes a second time: of the unfinished units that are worth it, the one expected back last.

    Worth it: its holder is overdue, or this node finishes it well before its holder would (estimate x factor +
    slack), be it that the holder is slow or that the unit waits behind others.
    """
    speed = node.speed.cost_per_second
    best: Attempt | None = None
    best_finish = 0.0
    best_overdue = 0.0
    for other in ready:
        if other is node:
            continue
        late = overdue_by(other, now, policy)
        head = other.head()
        for attempt, finish in expected_finishes(other, now, policy):
            ref = attempt.work.ref
            if finish <= best_finish or ref.suspected or len(attempt.work.attempts) >= policy.attempts_per_unit:
                continue
            if node.name in ref.failed_on:
                continue
            seconds = ref.cost / speed
            is_late = late if attempt is head else 0.0
            if is_late > 0 or now + seconds * policy.overdue_factor + policy.overdue_slack < finish:
                best, best_finish, best_overdue = attempt, finish, is_late
    if best is None:
        return None
    holder = best.node.name
    if best_overdue > 0:
        return Duplicate(attempt=best, reason=f"speculation: {holder} overdue by {best_overdue:.1f} s")
    gain = best_finish - now - best.work.ref.cost / speed
    return Duplicate(attempt=best, reason=f"speculation: {gain:.1f} s before {holder} would finish it")
