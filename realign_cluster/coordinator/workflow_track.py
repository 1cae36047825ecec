"""Where a workflow's measures stand, for other tools, in RUN/track: a point for each attempt of a stage.

A sitting goes through all stages again, those that were done too, so each writes them all anew. The curves of the
trainings within are beside each training, in RUN/jobs/KEY/track.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from realign_cluster.coordinator.train_request import Track
from realign_cluster.coordinator.train_track import Tracking, open_tracker
from realign_cluster.coordinator.workflow_record import WorkflowRun
from realign_cluster.workflows.course import Begun, Ended, Event, Judged
from realign_cluster.workflows.measured import value_of


class StageTracking:
    """Takes what happens in a course; step n is the n-th attempt of a stage that ended."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._attempts = 0
        self._gates: dict[str, float] = {}

    def take(self, event: Event) -> None:
        match event:
            case Begun():
                self._gates = {}
            case Judged():
                verdict = event.verdict
                found = {"value": verdict.value, "bound": verdict.bound, "threshold": verdict.threshold}
                name = f"gate/{event.stage.name}/{event.gate.name}"
                self._gates |= {f"{name}/{what}": value for what, value in found.items() if value is not None}
            case Ended():
                self._attempts += 1
                values = {name: value_of(each) for name, each in event.outcome.measurements.items()}
                measured = {f"measure/{name}": value for name, value in values.items() if value is not None}
                at = {"stage": float(event.stage.number)}
                self._tracking.write(self._attempts, at | measured | self._gates)

    def close(self) -> None:
        self._tracking.close()


def open_stage_tracking(run: WorkflowRun, track: Track, say_failed: Callable[[str], None]) -> StageTracking | None:
    """None where nothing is tracked. Raises UsageError where it cannot begin."""
    identity = run.ledger.meta("track")
    if identity is None:
        identity = secrets.token_hex(8)
        run.ledger.set_meta("track", identity)
    config = run.config.model_dump(mode="json")
    tracking = open_tracker(track, run.folder.path, str(identity), config, say_failed)
    return None if tracking is None else StageTracking(tracking)
