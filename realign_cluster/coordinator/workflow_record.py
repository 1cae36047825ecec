"""A workflow's run on disk: opens its folder and ledger, takes the user's files in, knows what people decided."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.run_record import note_request
from realign_cluster.coordinator.train_track import check_tracker
from realign_cluster.coordinator.workflow_decisions import decisions_of
from realign_cluster.coordinator.workflow_outside import pinned, pinned_judge, pinned_retriever, reach_service
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.domain.errors import UsageError
from realign_cluster.metrics.retrieval.choice import UsersCode
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.store.run_folder import RunFolder
from realign_cluster.store.workflow_ledger import ArtifactRecord, WorkflowLedger, WorkflowLedgerReader
from realign_cluster.workflows.config import WorkflowConfig, read_config
from realign_cluster.workflows.course import Decisions
from realign_cluster.workflows.harness import REQUESTS, TASKS
from realign_cluster.workflows.harness_process import TaskRequests, prepared_tasks
from realign_cluster.workflows.intake import check_data
from realign_cluster.workflows.jobs import ArtifactId, ModelRef
from realign_cluster.workflows.stage import State, Workflow
from realign_cluster.workflows.tables import workflow_named
from realign_cluster.workflows.thresholds import check_thresholds


@dataclass(slots=True, kw_only=True)
class WorkflowRun:
    """An open run: this process has its lock until `close`."""

    folder: RunFolder
    ledger: WorkflowLedger
    artifacts: ArtifactStore
    workflow: Workflow
    config: WorkflowConfig
    state: State
    decisions: Decisions
    judge: ModelRef | None
    retriever: UsersCode | None
    command: str | None

    def close(self) -> None:
        self.ledger.close()
        self.folder.close()

    def abandon(self) -> None:
        """It cannot be started: a fresh run leaves nothing behind."""
        self.ledger.close()
        self.folder.abandon()


def open_workflow_run(request: WorkflowRequest, command: str | None = None) -> WorkflowRun:
    """Everything that can be checked without a node is checked here; what fails leaves nothing behind.

    Raises UsageError for a config, data or model that will not do, and for a run folder of something else.
    """
    check_tracker(request.track)
    config = read_config(request.config)
    workflow = workflow_named(request.workflow, config)
    if request.mode is not None:
        config = config.model_copy(update={"mode": request.mode})
    check_thresholds(workflow, config, request.config)
    files = data_files(config, request.config)
    check_data(workflow.name, config, files)
    tasks = prepared_tasks(config, request.config)
    model = pinned(model_path(config, request.config))
    judge = pinned_judge(config, request.config, model)
    retriever = pinned_retriever(config, request.config)
    if not (request.out / "ledger.sqlite").exists():  # one that is gone on with asks only what it has no answer to
        reach_service(config, request.config)
    with contextlib.ExitStack() as undo:
        folder = RunFolder.hold(request.out)
        undo.callback(folder.abandon)
        ledger = undo.enter_context(contextlib.closing(_open_ledger(folder, workflow.name)))
        _check_looks(ledger, config, request.config)
        note_request(folder, "workflow", request.anchored(), command)
        artifacts = ArtifactStore(folder.path / "artifacts")
        data = {name: ArtifactId(_taken_in(artifacts, ledger, name, path)) for name, path in files.items()}
        data |= _tasks_taken_in(artifacts, ledger, tasks)
        ledger.set_meta("config", config.model_dump(mode="json"))
        run = WorkflowRun(
            folder=folder,
            ledger=ledger,
            artifacts=artifacts,
            workflow=workflow,
            config=config,
            state=State(data=data, model=model),
            decisions=decisions_of(ledger, workflow),
            judge=judge,
            retriever=retriever,
            command=command,
        )
        undo.pop_all()
        return run


def data_files(config: WorkflowConfig, config_file: Path) -> dict[str, Path]:
    """The user's files by their name in [data]; a benchmark's is "benchmark NAME". Paths are relative to the config."""
    named = {name: value for name, value in config.data.model_dump().items() if value is not None}
    named |= {f"benchmark {name}": value for name, value in config.benchmark_files.items()}
    return {name: config_file.parent / Path(value).expanduser() for name, value in named.items()}


def model_path(config: WorkflowConfig, config_file: Path) -> str:
    """The folder of the model that is trained, relative to the config; a hub id where there is no such folder."""
    folder = (config_file.parent / Path(config.model.path).expanduser()).absolute()
    return str(folder) if folder.is_dir() else config.model.path


def _check_looks(ledger: WorkflowLedgerReader, config: WorkflowConfig, config_file: Path) -> None:
    """Raises UsageError for a number of looks other than the one declared when the first was taken: what was looked at
    has had its part of alpha.
    """
    declared = (ledger.meta("config") or {}).get("looks", config.looks)
    if declared != config.looks and ledger.notes("look"):
        raise UsageError(
            f"{config_file}: looks: {config.looks}, but this run's gates have judged with {declared} declared",
            f"looks = {declared}, or another --out",
        )


def _open_ledger(folder: RunFolder, workflow: str) -> WorkflowLedger:
    if not folder.ledger.exists():
        return WorkflowLedger.create(folder.ledger, {"workflow": workflow})
    ledger = WorkflowLedger(folder.ledger)
    if (found := ledger.meta("workflow")) != workflow:
        ledger.close()
        raise UsageError(f"the run at {folder.path} is of the workflow {found}, not {workflow}", "choose another --out")
    return ledger


def _taken_in(artifacts: ArtifactStore, ledger: WorkflowLedger, name: str, path: Path) -> str:
    found = artifacts.put_file(path)
    ledger.add_artifact(ArtifactRecord(id=found, name=name, bytes=path.stat().st_size, made_by=f"input: {path}"))
    return found


def _tasks_taken_in(
    artifacts: ArtifactStore, ledger: WorkflowLedger, tasks: Mapping[str, TaskRequests]
) -> dict[str, ArtifactId]:
    """Of each benchmark that is a task of lm-evaluation-harness: its requests, and a copy of the user's own tasks."""
    taken: dict[str, ArtifactId] = {}
    for name, task in tasks.items():
        taken[f"{REQUESTS}{name}"] = ArtifactId(artifacts.put_rows(task.rows))
        if task.folder is not None:
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / "tasks"
                shutil.copytree(task.folder, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
                taken[f"{TASKS}{name}"] = ArtifactId(artifacts.put_folder(copy))
    for role, found in taken.items():
        ledger.add_artifact(
            ArtifactRecord(
                id=found, name=role, bytes=artifacts.size_bytes(found), made_by="input: lm-evaluation-harness"
            )
        )
    return taken


def read_workflow_request(path: Path) -> WorkflowRequest:
    """What run.toml of this folder asks for, wherever the folder is now. Raises UsageError when it is no workflow."""
    values: dict[str, Any] = RunFolder.read(path).read_run_toml()
    if values.get("kind") != "workflow":
        raise UsageError(f"{path} is not the run of a workflow", "see: realign runs show")
    return WorkflowRequest.model_validate(values["request"]).model_copy(update={"out": path.absolute()})
