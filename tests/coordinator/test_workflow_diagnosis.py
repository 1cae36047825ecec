"""A diagnosis of a run's folder: from its ledger and artifacts, also while it is going on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator.workflow_diagnosis import diagnosis_lines, diagnosis_of
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.gate import Measurement
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.store.run_folder import RunFolder
from realign_cluster.store.workflow_ledger import WorkflowLedger
from realign_cluster.workflows.checking import CHECKS, EXAMPLES
from realign_cluster.workflows.measured import to_row


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextlib.contextmanager
def opened(run: Path) -> Iterator[WorkflowLedger]:
    with contextlib.closing(RunFolder.hold(run)) as folder:
        make = not folder.ledger.exists()
        ledger = WorkflowLedger.create(folder.ledger, {"workflow": "made"}) if make else WorkflowLedger(folder.ledger)
        with contextlib.closing(ledger):
            yield ledger


def checked(run: Path, wrong: int, items: int) -> dict[str, Any]:
    """The body of stage 2 after checks that found so many rows with unknown ids."""
    measured = Measurement(
        metric="unknown_ids in practice",
        items=tuple(map(str, range(items))),
        values=(1.0,) * wrong + (0.0,) * (items - wrong),
        verifier="",
        dataset="practice",
    )
    rows = [{"check": "unknown_ids", "set": "practice", "row": "0", "completion": "It is so [9]."}]
    store = ArtifactStore(run / "artifacts")
    artifacts = {CHECKS: store.put_rows([to_row(measured)]), EXAMPLES: store.put_rows(rows if wrong else [])}
    return {"name": "sources", "title": "Source data", "artifacts": artifacts, "facts": {}}


VERDICT = {
    "title": "citation recall",
    "outcome": "FAIL",
    "threshold": 0.9,
    "value": 0.5,
    "opposite_bound": 0.6,
    "items": 100,
    "dataset": "items",
}
TRAINED = {"name": "citation", "title": "Citation training", "artifacts": {}, "facts": {}}


def test_causes_and_symptoms_of_a_run(run: Path) -> None:
    with opened(run) as ledger:
        ledger.put_stage(2, 0, 1.0, checked(run, 40, 100), ended=True)
        ledger.put_stage(3, 0, 2.0, TRAINED, ended=True)
        ledger.put_verdict(3, 0, "citation_recall", 2.0, VERDICT)
    found = diagnosis_of(run)
    assert [each["issue"] for each in found] == ["wrong ids", "low citation accuracy"]
    text = "\n".join(diagnosis_lines(found))
    for said in ("It is so [9].", "0.4,", "n 100", "explained by: wrong ids", "-> number the passages"):
        assert said in text


def test_only_the_last_attempt_that_ended_counts(run: Path) -> None:
    with opened(run) as ledger:
        ledger.put_stage(2, 0, 1.0, checked(run, 40, 100), ended=True)
        ledger.put_stage(2, 1, 2.0, checked(run, 0, 100), ended=True)
        ledger.put_stage(3, 0, 3.0, TRAINED, ended=True)
        ledger.put_verdict(3, 0, "citation_recall", 3.0, VERDICT)
        ledger.put_stage(3, 1, 4.0, {**TRAINED, "inputs": {}}, ended=False)
    assert [each["issue"] for each in diagnosis_of(run)] == ["low citation accuracy"]


def test_a_run_that_has_just_begun_has_no_finding(run: Path) -> None:
    with opened(run) as ledger:
        ledger.put_stage(1, 0, 1.0, {"name": "preparation", "title": "SFT preparation"}, ended=False)
    assert diagnosis_of(run) == []
    assert diagnosis_lines([]) == ["nothing is found to be wrong with what was measured so far"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        diagnosis_of(tmp_path)
