"""Snapshots as often as a hundredth of the time allows."""

from __future__ import annotations

from realign_cluster.training.pace import SnapshotPace


def test_slow_steps_leave_one_each() -> None:
    pace = SnapshotPace(None, 1)
    pace.step_took(1.2)
    pace.kept(1, 0.001)
    pace.wrote(0.005)
    assert pace.every == 1
    assert pace.due(2, 1)


def test_fast_steps_leave_one_in_many() -> None:
    pace = SnapshotPace(None, 1)
    pace.step_took(0.05)
    pace.kept(1, 0.0)
    pace.wrote(0.005)
    assert pace.every == 20
    assert not pace.due(20, pace.every)
    assert pace.due(21, pace.every)


def test_what_was_asked_for_stays() -> None:
    pace = SnapshotPace(3, 1)
    pace.step_took(0.001)
    pace.kept(1, 1.0)
    pace.wrote(1.0)
    assert pace.every == 3
