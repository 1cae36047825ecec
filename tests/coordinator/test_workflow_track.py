"""What --track has of a workflow: a point for each attempt of a stage, once, however often the run was gone on with."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from realign_cluster.coordinator.workflow_report import write_workflow_report

from .made_workflow import MadeWorkflow
from .test_train_track import curve
from .test_workflow_report import LOOSE


def test_every_stage_is_a_point_with_its_measures_and_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path / "home"))
    made = MadeWorkflow(tmp_path / "made", gates=LOOSE)
    assert made.sit(killed_at=28, track="tensorboard") == -1
    assert made.sit(track="tensorboard") == 0
    track = made.run / "track" / "tensorboard"
    assert curve(track, "stage") == {number: float(number) for number in range(1, 8)}
    write_workflow_report(made.run)
    stages = orjson.loads((made.run / "report.json").read_bytes())["stages"]
    gates = {each["gate"]: each for each in stages[6]["attempts"][0]["gates"]}
    for what in ("value", "bound", "threshold"):
        found = curve(track, f"gate/evaluation/citation_recall/{what}")
        assert found == {7: pytest.approx(gates["citation_recall"][what], abs=1e-6)}
    answered = curve(track, "measure/over_abstention")
    assert {1, 3, 4, 5, 6, 7} == set(answered)
