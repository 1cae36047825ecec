"""Faults put into data, configuration and weights are named first; nothing is found where there is none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.coordinator.workflow_diagnosis import diagnosis_of
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.checking import Checked, check_examples
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.derive import REGISTRY
from realign_cluster.workflows.diagnosis import Measured, RunRecord, diagnose
from realign_cluster.workflows.jobs import ArtifactId, Derive, JobResult, Look, ModelRef
from realign_cluster.workflows.stage import Context, State
from tests.workflows.injected_faults import DEVELOPMENT_SEEDS, FAULTS, Fault, run_of
from tests.workflows.small_workflow import SmallWorkflow, healthy, make_base

FEW = {
    "items": 60,
    "sealed": 30,
    "practice": 90,
    "citation": 150,
    "valid": 10,
    "labels": 10,
    "queries": 10,
    "pairs": 10,
}
OF_DATA = [fault for fault in FAULTS if not fault.trains and fault.issue not in ("damaged base", "truncated answers")]


class Inputs:
    """Of a derivation: rows of a store."""

    def __init__(self, store: ArtifactStore, names: Mapping[str, ArtifactId]) -> None:
        self._store, self._names = store, names

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        return self._store.rows(self._names[name])

    def has(self, name: str) -> bool:
        return name in self._names

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def folder(self, name: str) -> Path:
        raise AssertionError(f"{name}: nothing here is a folder")

    def scratch(self) -> Path:
        raise AssertionError("nothing here makes a folder")


def checked(made: SmallWorkflow, folder: Path) -> RunRecord:
    """What stage 2 finds out about the data, by its own jobs."""
    store = ArtifactStore(folder)
    data = {name: ArtifactId(store.put_rows(rows)) for name, rows in made.data.items()}
    config = WorkflowConfig.model_validate(made.config)
    context = Context(config=config, state=State(data=data, model=ModelRef(path="none")), attempt=0, number=0)
    way, answer = check_examples(context), None
    while True:
        try:
            job = way.send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            found: Checked = end.value
            break
        if isinstance(job, Look):
            answer = JobResult(value=list(store.rows(job.rows)))
            continue
        assert isinstance(job, Derive)
        derived = REGISTRY[job.function].function(Inputs(store, job.inputs), job.parameters)
        outputs = {name: ArtifactId(store.put_rows(rows)) for name, rows in derived.rows.items()}
        answer = JobResult(outputs=outputs, value=derived.value)
    measured = found.measurements.values()
    return RunRecord(measured=tuple(Measured(stage=2, attempt=0, measurement=each) for each in measured))


@pytest.mark.parametrize("fault", OF_DATA, ids=lambda fault: fault.name)
def test_a_fault_of_the_data_is_named_alone(fault: Fault, tmp_path: Path) -> None:
    made = healthy(3, fault.workflow, FEW)
    fault.inject(made, random.Random(f"{fault.name} 3"))
    assert [each.issue for each in diagnose(checked(made, tmp_path))] == [fault.issue]


@pytest.mark.parametrize("name", ["source-attribution", "antihallucination"])
def test_nothing_is_found_in_healthy_data(name: str, tmp_path: Path) -> None:
    assert diagnose(checked(healthy(4, name, FEW), tmp_path)) == []


def test_a_fault_changes_data_configuration_or_weights() -> None:
    for fault in FAULTS:
        before, after = (healthy(5, fault.workflow, FEW) for _ in range(2))
        fault.inject(after, random.Random(0))
        same = orjson.dumps([before.data, before.config]) == orjson.dumps([after.data, after.config])
        assert not same or after.noise > 0


# --- whole runs, trained ---


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_first_in_a_run(fault: Fault, base: Path, tmp_path: Path) -> None:
    found = diagnosis_of(run_of(fault, DEVELOPMENT_SEEDS[0], tmp_path, base))
    assert found[0]["issue"] == fault.issue


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_found_in_a_healthy_run(seed: int, base: Path, tmp_path: Path) -> None:
    assert diagnosis_of(run_of(None, seed, tmp_path, base)) == []


@pytest.mark.soak
def test_a_cause_comes_before_the_symptom_that_it_brought_about(base: Path, tmp_path: Path) -> None:
    fault = next(each for each in FAULTS if each.issue == "wrong ids")
    found = diagnosis_of(run_of(fault, 2, tmp_path, base, whole=True))
    assert found[0]["issue"] == "wrong ids"
    assert {each["issue"]: each["explained_by"] for each in found}["low citation accuracy"] == ("wrong ids",)
