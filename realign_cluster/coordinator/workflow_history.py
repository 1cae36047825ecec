"""A workflow's run as its ledger and artifacts tell it: attempts with verdicts and jobs, measurements by item, lineage.

Read-only: of a run that is going on, was killed, or is over. Knows nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from realign_cluster.coordinator.run_status import run_status
from realign_cluster.coordinator.workflow_decisions import decisions_of, workflow_of
from realign_cluster.coordinator.workflow_status import WorkflowStatus, open_ledger, retention_of
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.retention import Overall
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.store.workflow_ledger import ArtifactRecord, JobRecord, NoteRecord, StageRecord, VerdictRecord
from realign_cluster.workflows.config import WorkflowConfig, recorded_config
from realign_cluster.workflows.stage import Stage, Workflow

BASELINE: Final = "baseline "
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a stage, as it was looked at last. `verdicts` in the order of the stage's table; `jobs` are those
    that were first asked for by it.
    """

    record: StageRecord
    verdicts: tuple[VerdictRecord, ...]
    jobs: tuple[JobRecord, ...]

    @property
    def stage(self) -> int:
        return self.record.stage

    @property
    def number(self) -> int:
        """From 1."""
        return self.record.attempt + 1

    @property
    def name(self) -> str:
        return str(self.record.body["name"])

    @property
    def title(self) -> str:
        return str(self.record.body["title"])

    @property
    def ended(self) -> bool:
        return self.record.ended is not None

    @property
    def turn(self) -> str:
        return str(self.record.body.get("turn", ""))

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.record.body.get("facts") or {}

    @property
    def artifacts(self) -> Mapping[str, str]:
        return self.record.body.get("artifacts") or {}

    @property
    def measurements(self) -> Mapping[str, Mapping[str, Any]]:
        return self.record.body.get("measurements") or {}

    @property
    def answers(self) -> str | None:
        return self.artifacts.get("answers") or self.artifacts.get(f"{BASELINE}answers")

    @property
    def retention(self) -> Overall | None:
        """Over the benchmarks that were judged."""
        return retention_of(verdict.body for verdict in self.verdicts)

    @property
    def label(self) -> str:
        return f"{self.stage} {self.title}" + (f", attempt {self.number}" if self.number > 1 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The items of a measurement: a row of the artifact `artifact`, which `job` made."""

    row: Row
    artifact: str
    job: JobRecord


@dataclass(frozen=True, kw_only=True)
class WorkflowHistory:
    """`attempts` in the order in which they were begun. `state` is "running" while somebody works on it."""

    folder: Path
    state: str
    reason: str
    workflow: Workflow
    config: WorkflowConfig
    end: Mapping[str, Any]
    attempts: tuple[Attempt, ...]
    jobs: tuple[JobRecord, ...]
    artifacts: Mapping[str, ArtifactRecord]
    notes: tuple[NoteRecord, ...]
    command: str
    overridden: frozenset[tuple[str, str]] = frozenset()  # (stage, gate), now
    request: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.folder / "artifacts")

    @property
    def trainings(self) -> list[JobRecord]:
        return [job for job in self.jobs if job.request["what"] == "train"]

    def notes_of(self, kind: str) -> list[NoteRecord]:
        return [note for note in self.notes if note.kind == kind]

    def attempts_of(self, stage: Stage) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.stage == stage.number]

    def last(self, stage: str) -> Attempt | None:
        """The last attempt of the stage of that name that has ended."""
        found = [attempt for attempt in self.attempts if attempt.name == stage and attempt.ended]
        return found[-1] if found else None

    @property
    def went_on(self) -> list[tuple[Attempt, VerdictRecord]]:
        """Gates that could not decide and were gone on from, in permissive mode. Not those that a person overrode."""
        return [
            (attempt, verdict)
            for attempt in self.attempts
            if attempt.turn == "go on"
            for verdict in attempt.verdicts
            if verdict.body["outcome"] == "INSUFFICIENT"
            and not verdict.body["guard"]
            and not verdict.body["overridden"]
        ]

    def own_threshold(self, stage: int, gate: str) -> float | None:
        """The workflow's own, whatever the configuration says."""
        found = [each for each in self.workflow.stages if each.number == stage]
        return next((each.rule.threshold for row in found for each in row.gates if each.name == gate), None)

    # --- artifacts and where they come from ---

    def rows(self, artifact: str | None, most: int | None = None) -> list[Row]:
        """Of an artifact; none where it is gone."""
        if artifact is None or not self.store.rows_path(artifact).is_file():
            return []
        found: list[Row] = []
        for row in self.store.rows(artifact):
            if most is not None and len(found) == most:
                break
            found.append(row)
        return found

    def path_of(self, artifact: str) -> str:
        """Relative to the run's folder; "" for what is not there: a model from outside, a file that is gone."""
        for path in (self.store.rows_path(artifact), self.store.folder_path(artifact)):
            if path.exists():
                return path.relative_to(self.folder).as_posix()
        return ""

    def maker(self, artifact: str | None) -> JobRecord | None:
        """The job that made it; none for an input, and for a model from outside."""
        record = self.artifacts.get(artifact or "")
        return self._job_by_key.get(record.made_by) if record is not None else None

    def lineage(self, identity: str) -> list[str]:
        """The artifact or model, what it was made from, what that was made from ...: what is used before its users."""
        found: dict[str, None] = {}
        stack: list[tuple[str, bool]] = [(identity, False)]
        while stack:
            current, inputs_done = stack.pop()
            if inputs_done:
                found.setdefault(current)
            elif current not in found:
                stack.append((current, True))
                maker = self.maker(current)
                stack += [(each, False) for each in reversed(inputs_of_record(maker))] if maker else []
        return list(found)

    def training_of(self, model: str | None) -> list[JobRecord]:
        """The trainings that made a model, first to last."""
        found: list[JobRecord] = []
        while (maker := self.maker(model)) is not None and maker.request["what"] == "train":
            found.insert(0, maker)
            model = maker.request["inputs_by_role"]["model"]
        return found

    def makers(self, artifact: str) -> list[JobRecord]:
        """Every job that ended with it, in the order in which they were begun: equal content is one artifact."""
        return [job for job in self.jobs if job.result is not None and artifact in job.result["outputs"].values()]

    def maker_for(self, attempt: Attempt, artifact: str) -> JobRecord | None:
        """The one that an attempt has it from: of those that were begun by its end its own, else the last."""
        ended = attempt.record.ended
        found = [job for job in self.makers(artifact) if ended is None or job.begun <= ended]
        own = [job for job in found if job in attempt.jobs]
        return (own or found)[-1] if found else None

    def answered_by(self, answers: str) -> list[str]:
        """The identities of the models that gave the answers of an artifact; more than one where they gave the same."""
        found: dict[str, None] = {}
        for maker in self.makers(answers):
            job: JobRecord | None = maker
            while job is not None and job.request["what"] != "score":
                job = self.maker(job.request["inputs_by_role"].get("generated"))
            if job is not None:
                found.setdefault(str(job.request["inputs_by_role"]["model"]))
        return list(found)

    # --- measurements ---

    def measured(self, attempt: Attempt, metric: str) -> Measured | None:
        """The items behind a measure of an attempt, of which the ledger has the sum; none where a body computed it from
        others. What the attempt says it ended with comes first: two models may have equal sums.
        """
        summary = attempt.measurements[metric]
        made = [self.maker_for(attempt, artifact) for artifact in attempt.artifacts.values()]
        ended = attempt.record.ended
        before = [job for job in self.jobs if ended is None or job.begun <= ended]
        for job in dict.fromkeys(each.key for each in (*made, *reversed(attempt.jobs), *reversed(before)) if each):
            row = self._measured.get(job, {}).get(metric)
            if row is not None and _is_sum_of(summary, row):
                found = self._job_by_key[job]
                return Measured(row=row, artifact=str((found.result or {})["outputs"]["measurements"]), job=found)
        return None

    @cached_property
    def _job_by_key(self) -> dict[str, JobRecord]:
        return {job.key: job for job in self.jobs}

    @cached_property
    def _measured(self) -> dict[str, dict[str, Row]]:
        """Job -> metric -> its row."""
        return {
            job.key: {row["metric"]: row for row in self.rows(job.result["outputs"]["measurements"])}
            for job in self.jobs
            if job.result is not None and "measurements" in job.result["outputs"]
        }


def read_workflow_history(run: Path) -> WorkflowHistory:
    """Raises UsageError when `run` is not the folder of a workflow that has begun."""
    status = run_status(run)
    if not isinstance(status, WorkflowStatus):
        raise UsageError(f"{run} is not the run of a workflow", "see: realign runs report")
    with open_ledger(run) as ledger:
        if ledger.meta("config") is None:
            raise UsageError(f"the workflow at {run} has not begun", "run it first")
        workflow, config = workflow_of(ledger), recorded_config(ledger.meta("config"))
        jobs, verdicts = ledger.jobs(), ledger.verdicts()
        attempts = [_attempt(record, workflow, jobs, verdicts) for record in ledger.stages()]
        attempts.sort(key=lambda each: (each.record.begun, each.stage, each.number))
        end = ledger.meta("end") or {}
        state, reason = _state(end, attempts, status.holder)
        return WorkflowHistory(
            folder=run.absolute(),
            state=state,
            reason=reason,
            workflow=workflow,
            config=config,
            end=end if state not in ("running", "interrupted") else {},
            attempts=tuple(attempts),
            jobs=tuple(jobs),
            artifacts=ledger.artifacts(),
            notes=tuple(ledger.notes()),
            command=status.command,
            overridden=decisions_of(ledger, workflow).overridden,
            request=status.request,
        )


def inputs_of_record(job: JobRecord) -> list[str]:
    return [str(each) for each in job.request["inputs_by_role"].values()]


def _attempt(
    record: StageRecord, workflow: Workflow, jobs: Sequence[JobRecord], verdicts: Sequence[VerdictRecord]
) -> Attempt:
    own = {each.gate: each for each in verdicts if (each.stage, each.attempt) == (record.stage, record.attempt)}
    order = [gate.name for stage in workflow.stages if stage.number == record.stage for gate in stage.gates]
    return Attempt(
        record=record,
        verdicts=tuple(own[name] for name in [*order, *(name for name in own if name not in order)] if name in own),
        jobs=tuple(job for job in jobs if (job.stage, job.attempt) == (record.stage, record.attempt)),
    )


def _state(end: Mapping[str, Any], attempts: Sequence[Attempt], holder: str) -> tuple[str, str]:
    """An end that was written down counts while no stage is open: a later sitting opens them again one by one."""
    current = next((attempt for attempt in attempts if not attempt.ended), None)
    if end and current is None:
        return str(end["state"]), str(end["reason"])
    where = f"in stage {current.label}" if current is not None else "between stages" if attempts else "before stage 1"
    if holder:
        return "running", f"{where}, by {holder}"
    return "interrupted", f"stopped {where}; the same command goes on from there"


def _is_sum_of(summary: Mapping[str, Any], row: Row) -> bool:
    same = all(summary[name] == row[name] for name in ("value", "undefined", "verifier", "dataset"))
    return same and summary["items"] == len(row["items"])
