"""The numbers the scheduler decides by. One object, passed whole; recorded with a run so that a replay uses the
same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    # leases
    depth: int = 2  # leases outstanding per node: one computed, one waiting behind it
    lease_min_seconds: float = 0.5
    lease_max_seconds: float = 20.0
    prior_lease_seconds: float = 2.0  # longest lease to a node whose speed nobody has measured yet
    lease_max_units: int = 128  # on the fastest node; bounds the rows in flight, shortens everybody's leases alike
    settle_seconds: float = (
        0.05  # the first leases wait this long for further nodes to be ready, so that shares are right
    )
    settle_max_seconds: float = 0.5
    page: int = 4096  # units asked of the ledger at once

    # speculation
    overdue_factor: float = 1.3
    overdue_slack: float = 0.2  # seconds
    attempts_per_unit: int = 2

    # speed
    speed_memory_seconds: float = 10.0
    calibration_seconds: float = 1.0  # what a calibration weighs, in seconds of compute

    # poison
    nodes_to_blame: int = 2
    restart_patience_seconds: float = 120.0  # how long a failed unit waits for another node whose worker is restarting
    arrival_patience_seconds: float = 120.0  # the same for planned nodes that are not ready yet, since the first was
    return_patience_seconds: float = 30.0  # the same for lost nodes

    # bad nodes
    failures_to_set_aside: int = 3  # in a row, each of them the node's and not the unit's
    failures_to_set_aside_last: int = 10  # the same for the only usable node
    doubts_to_set_aside: int = 10  # in a row, unit or node not known yet, while others are usable or to be waited for
    failures_to_give_up: int = 100  # in a row over all nodes without one result
