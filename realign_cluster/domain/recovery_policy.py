"""The numbers that recovery decides by. One object, passed whole; recorded with a run: a replay uses the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from realign_cluster.domain.section_limits import SectionLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    # death of what cannot be seen
    lease_seconds: float = 3.0  # a daemon that hears nothing for as long kills its rank
    fence_margin_seconds: float = 2.0  # that this takes, SIGKILL included, and that clocks may differ by
    kill_grace_seconds: float = 3.0  # from SIGTERM to SIGKILL
    kill_again_seconds: float = 5.0
    kill_patience_seconds: float = 30.0  # a node whose rank is not reported dead by then needs a reboot

    # hangs: seconds without any report of the rank
    sections: SectionLimits = field(default_factory=SectionLimits)

    # waiting for nodes
    arrival_seconds: float = 120.0  # for expected nodes, since the first one was ready
    return_seconds: float = 10.0  # for nodes of the last generation, since it ended
    same_world_seconds: float = 1800.0  # the same under `reproducible`
    give_up_seconds: float = 600.0  # nothing could be started for so long

    # trying again
    relaunches: int = 5  # in a row without one new step
    relaunches_after_losses: int = 20  # the same, where it was nodes that went
    strikes_to_set_aside: int = 3  # generations in a row that ended because of this node's rank alone
    tries_together: int = 2  # generations in a row without a step for which no single rank is to blame
    forgiving_steps: int = 20  # new steps after which earlier strikes are forgotten
    transfer_attempts: int = 3
    transfer_seconds: float = 1800.0  # without an answer; the transfer's own deadlines are far shorter
    transfer_again_seconds: float = 3.0  # after one that failed

    # stopping
    stop_seconds: float = 60.0  # for the last step and its checkpoint, in addition to a step's limit
    softenings: int = 5  # of an exceeded KL budget
