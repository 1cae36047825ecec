"""Workflow runs as tests watch them: which job is going on, by the ledger, who holds what of it, and what came out.

A `WorkflowRun` is one command that was started. Its run folder may be one that another command left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.ids import NodeName
from realign_cluster.store.ledger_reader import AttemptRecord
from realign_cluster.store.workflow_ledger import JobRecord, StageRecord, WorkflowLedgerReader
from tests.cluster.kit import CurateCluster, ledger
from tests.cluster.train_kit import Command, Training, history_of
from tests.cluster.train_kit import outcome as outcome_of_training
from tests.cluster_kit import DaemonProcess

LONG = 300.0
SETTLED_SECONDS = 0.15  # in which a worker's last result is in the ledger


def _live(job: Path, node: str) -> list[AttemptRecord]:
    """Units that the node has and has not returned."""
    try:
        reader = ledger(job)
    except (RealignError, sqlite3.Error, OSError):  # it is just being made
        return []
    try:
        return reader.attempts(NodeName(node), live_only=True)
    finally:
        reader.close()


@dataclass(slots=True)
class WorkflowRun(Command):
    WAIT: ClassVar[float] = LONG
    WHOLE: ClassVar[float] = LONG

    def job_going_on(self, title: str) -> JobRecord:
        """The job of this title, once it was begun; it must not have ended."""
        job: JobRecord = self.wait_for(lambda: job_titled(self.folder, title), f"the job {title}")
        assert job.ended is None, f"{title} is over already"
        return job

    def training_going_on(self, title: str) -> Training:
        """The run of a training, to be watched by its own ledger."""
        job = self.job_going_on(title)
        return Training(process=self.process, folder=self.folder / "jobs" / job.key, errors=self.errors)

    def kill_with_a_lease(self, title: str, daemon: DaemonProcess) -> AttemptRecord:
        """kill -9 of a daemon while it holds a unit of this job: its workers are stopped, and if the ledger then has a
        live attempt of it, it dies. That attempt.
        """
        folder = self.folder / "jobs" / self.job_going_on(title).key
        while True:
            self.wait_for(lambda: self._lives(title) and _live(folder, daemon.name), f"a lease of {daemon.name}")
            workers = daemon.worker_pids()
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(SETTLED_SECONDS)
                if live := _live(folder, daemon.name):
                    daemon.kill()
                    return live[0]
            finally:
                for pid in workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

    def _lives(self, title: str) -> bool:
        job = job_titled(self.folder, title)
        assert job is not None
        assert job.ended is None, f"{title} is over before it was hit"
        return True

    def in_stage(self, number: int) -> None:
        """It has been begun."""
        self.wait_for(lambda: any(each.stage == number for each in stages_of(self.folder)), f"stage {number}")


def start_workflow(cluster: CurateCluster, command: Sequence[str], out: Path) -> WorkflowRun:
    """It is killed when the cluster is closed, if it still runs then."""
    errors = cluster.folder / f"workflow-{len(cluster.processes)}.stderr"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, text=True,
            env=cluster.environment,
        )  # fmt: skip
    cluster.processes.append(process)
    return WorkflowRun(process=process, folder=out, errors=errors)


@contextlib.contextmanager
def workflow_ledger(run: Path) -> Iterator[WorkflowLedgerReader]:
    reader = WorkflowLedgerReader(run / "ledger.sqlite")
    try:
        yield reader
    finally:
        reader.close()


def jobs_of(run: Path) -> list[JobRecord]:
    """In the order they were begun; none while the ledger is being made."""
    with contextlib.suppress(RealignError, sqlite3.Error), workflow_ledger(run) as reader:
        return reader.jobs()
    return []


def stages_of(run: Path) -> list[StageRecord]:
    with contextlib.suppress(RealignError, sqlite3.Error), workflow_ledger(run) as reader:
        return reader.stages()
    return []


def job_titled(run: Path, title: str) -> JobRecord | None:
    return next((job for job in jobs_of(run) if job.request["title"] == title), None)


def folder_of(run: Path, title: str) -> Path:
    """Of the run that this job was."""
    job = job_titled(run, title)
    assert job is not None, f"there was no {title}"
    return run / "jobs" / job.key


def verdicts_of(run: Path) -> dict[tuple[int, int, str], dict[str, Any]]:
    """By stage, attempt and gate: all that a verdict says but for the time that more items would take."""
    with workflow_ledger(run) as reader:
        return {
            (each.stage, each.attempt, each.gate): {
                name: value for name, value in each.body.items() if name not in ("minutes_needed", "reason")
            }
            for each in reader.verdicts()
        }


def outcomes_of(run: Path) -> dict[tuple[int, int, str], str]:
    return {gate: verdict["outcome"] for gate, verdict in verdicts_of(run).items()}


def made_by_jobs(run: Path) -> dict[str, dict[str, str]]:
    """By key: the artifacts of every job, but for what holds seconds."""
    return {
        job.key: {name: each for name, each in (job.result or {})["outputs"].items() if name != "metrics"}
        for job in jobs_of(run)
    }


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_bytes())
    return found


def attempts_at(run: Path, title: str) -> list[AttemptRecord]:
    reader = ledger(folder_of(run, title))
    try:
        return reader.attempts()
    finally:
        reader.close()


def check_each_job_was_done_once(run: Path) -> None:
    """In one sitting each; of scoring every unit was committed once, of trainings every step counts once."""
    for job in jobs_of(run):
        folder = run / "jobs" / job.key
        assert job.ended is not None, job.request["title"]
        if job.request["what"] == "train":
            assert history_of(folder).sittings == 1
            outcome_of_training(folder)
        elif job.request["what"] == "score":
            reader = ledger(folder)
            try:
                committed = [each.unit for each in reader.attempts() if each.outcome == "committed"]
                assert len(committed) == len(set(committed)), job.request["title"]
                assert len(reader.epochs()) == 1
            finally:
                reader.close()
