"""Who gets the next lease, and of what: suspected units alone, failed ones elsewhere, fresh ones by speed, else a
duplicate.

Changes the flight and the nodes; what is decided about sizes and duplicates is in `leases`, who may try a failed unit
in `poison`.
"""

from __future__ import annotations

from dataclasses import dataclass

from realign_cluster.domain.events import Grant, UnitRef
from realign_cluster.domain.fleet import Node, usable_besides
from realign_cluster.domain.flight import Flight
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.leases import choose_duplicate, lease_seconds, others_finish_in, take_units
from realign_cluster.domain.poison import may_try
from realign_cluster.domain.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigner:
    """One look at the whole: made for an event, thrown away after it."""

    policy: Policy
    flight: Flight
    nodes: tuple[Node, ...]  # all that were heard of, in that order
    ready: tuple[Node, ...]
    now: float
    exhausted: bool  # the ledger holds no further pending units
    remaining_cost: float  # in flight, waiting, and still in the ledger
    coming_speed: float  # cost per second of planned nodes that were not ready yet
    someone_may_come: bool  # a planned or lost node is worth waiting for with what failed on all that are here

    def assign(self) -> list[Grant]:
        """Leases for the ready nodes that have room, the emptiest first."""
        grants: list[Grant] = []
        for level in range(self.policy.depth):
            for node in self.ready:
                if len(node.leases) == level and not node.alone:
                    grant = self._next_lease(node)
                    if grant is not None:
                        grants.append(grant)
        return grants

    def _next_lease(self, node: Node) -> Grant | None:
        backlog = self.flight.backlog
        others: list[NodeName] = []
        if backlog.suspects or backlog.blamed:
            patience = self.policy.restart_patience_seconds
            others = [other.name for other in usable_besides(node, self.nodes, self.now, patience)]

        def may_take(ref: UnitRef) -> bool:
            return may_try(ref, node.name, others, self.someone_may_come)

        # A node that has just failed first shows on an unsuspected unit that it works at all.
        if backlog.suspects and (node.proven or not backlog.fresh):
            if node.queue:
                if any(map(may_take, backlog.suspects)):
                    return None  # it takes one alone as soon as it is empty
            else:
                suspect = backlog.take_suspect(may_take)
                if suspect is not None:
                    node.alone = True
                    return self.flight.grant(node, (suspect,), "suspected, alone", self.now)
        if backlog.blamed:
            blamed = backlog.take_blamed(may_take)
            if blamed is not None:
                reason = f"failed on {', '.join(dict.fromkeys(blamed.failed_on))}"
                return self.flight.grant(node, (blamed,), reason, self.now)
        if backlog.fresh:
            if self._on_probation(node):
                return None
            return self._fresh_lease(node)
        if self.exhausted and not backlog and not node.queue:
            return self._duplicate(node)
        return None

    def _on_probation(self, node: Node) -> bool:
        """It fails and fails: before it goes through the whole run, others have a look at what it failed on."""
        if len(node.doubts) < self.policy.doubts_to_set_aside:
            return False
        patience = self.policy.restart_patience_seconds
        return self.someone_may_come or bool(usable_besides(node, self.nodes, self.now, patience))

    def _fresh_lease(self, node: Node) -> Grant | None:
        backlog, policy = self.flight.backlog, self.policy
        unit_cost = backlog.fresh[0].cost
        speed = node.speed.cost_per_second
        most_cost = float("inf")
        if self.exhausted:
            own_seconds = node.seconds_to_drain(self.now)
            others_seconds = others_finish_in(node, self.ready, backlog.cost, unit_cost, self.now, policy)
            if others_seconds < own_seconds + unit_cost / speed:
                return None  # the others are done with everything before this node would be with one unit
            most_cost = (others_seconds - own_seconds) * speed
        seconds = lease_seconds(node, self.ready, self.remaining_cost, unit_cost, self.coming_speed, policy)
        target = seconds * speed + node.rounding
        units, cost = take_units(backlog.fresh, target, most_cost, 2 * policy.lease_max_units)
        backlog.took(units)
        limit = seconds * speed
        node.rounding = min(max(target - cost, -limit), limit) if backlog.fresh else 0.0
        return self.flight.grant(node, tuple(units), "longest first", self.now)

    def _duplicate(self, node: Node) -> Grant | None:
        duplicate = choose_duplicate(node, self.ready, self.now, self.policy)
        if duplicate is None:
            return None
        return self.flight.grant(node, (duplicate.attempt.work.ref,), duplicate.reason, self.now)
