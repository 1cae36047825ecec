"""`realign workflow run`, one sitting from the command to the report: data, stages, gates, the model that passed.

Drives the course: what it yields is either done (a job, once and never again) or written down (a verdict, a turn).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Generator
from dataclasses import asdict
from typing import Any, assert_never

from realign_cluster.coordinator.curate import FAILED, INTERRUPTED
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.progress import Dashboard
from realign_cluster.coordinator.roll_call import Register
from realign_cluster.coordinator.stop import Stop, StopAsked, signals
from realign_cluster.coordinator.workflow_finish import finish_workflow
from realign_cluster.coordinator.workflow_jobs import Done, JobRunner
from realign_cluster.coordinator.workflow_metrics import METRICS_NAME, write_metrics
from realign_cluster.coordinator.workflow_record import WorkflowRun, open_workflow_run
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.coordinator.workflow_track import StageTracking, open_stage_tracking
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.ids import NodeName
from realign_cluster.store.workflow_ledger import ArtifactRecord, WorkflowLedger
from realign_cluster.workflows.course import Begun, Ended, Event, Judged, course
from realign_cluster.workflows.course import End as CourseEnd
from realign_cluster.workflows.jobs import (
    ArtifactId,
    Ask,
    Consult,
    Derive,
    Job,
    JobResult,
    Look,
    Score,
    Train,
    content_hash,
    inputs_of,
    job_key,
)
from realign_cluster.workflows.measured import summary_of


async def run_workflow(
    request: WorkflowRequest, *, dashboard: Dashboard, command: str | None = None, home: ClusterHome | None = None
) -> int:
    """Runs or continues it; returns the exit code. Raises RealignError for what must stop it before it starts."""
    stop = Stop()
    with signals(stop):
        run = await asyncio.to_thread(open_workflow_run, request, command)
        with contextlib.closing(run):
            dashboard.start(f"workflow {run.workflow.name} {run.folder.path}")
            try:
                return await _Sitting(request, run, dashboard, stop, home or ClusterHome()).run()
            except RealignError:
                if not run.ledger.jobs():
                    run.abandon()
                raise
            except StopAsked:
                dashboard.note("interrupted: run the same command again to go on", "warning")
                dashboard.event("summary", {"state": "incomplete", "reason": "interrupted"})
                return INTERRUPTED
            finally:
                dashboard.stop()


def register_in(ledger: WorkflowLedger) -> Register:
    """Who was there when the last job began, in whatever sitting that was."""
    return Register(
        read=lambda: frozenset(map(NodeName, ledger.meta("nodes there") or ())),
        write=lambda there: ledger.set_meta("nodes there", sorted(there)),
    )


class _Sitting:
    def __init__(
        self, request: WorkflowRequest, run: WorkflowRun, dashboard: Dashboard, stop: Stop, home: ClusterHome
    ) -> None:
        self._request = request
        self._run = run
        self._dashboard = dashboard
        self._jobs = JobRunner(
            run.folder.path,
            run.artifacts,
            request.where,
            home,
            dashboard,
            stop,
            request.track,
            register_in(run.ledger),
        )
        self._stage, self._attempt = 0, 0
        self._tracking: StageTracking | None = None

    async def run(self) -> int:
        run = self._run
        if not run.ledger.jobs():  # what is gone on with asks for the nodes when it has something for them
            await self._jobs.reach()
        self._tracking = open_stage_tracking(
            run, self._request.track, lambda message: self._dashboard.note(message, "warning")
        )
        run.ledger.add_note("sitting", time.time(), {"command": run.command})
        run.ledger.set_meta("end", None)  # as it ended before it was gone on with: no longer how it stands
        way = course(run.workflow, run.config, run.state, run.decisions, run.judge, run.retriever)
        try:
            end = await self._drive(way)
        finally:
            if self._tracking is not None:
                self._tracking.close()
        run.ledger.drop_after(self._stage, self._attempt)
        summary = await asyncio.to_thread(finish_workflow, run, end, self._jobs.model_path(end.model))
        self._dashboard.note(f"{end.state}: {end.reason}", "info" if end.passed else "warning")
        self._dashboard.note(f"report: {run.folder.report}", "info")
        self._dashboard.event("summary", summary)
        return 0 if end.state == "complete" else FAILED

    async def _drive(self, way: Generator[Ask | Event, JobResult | None, CourseEnd]) -> CourseEnd:
        answer: JobResult | None = None
        while True:
            try:
                step = way.send(answer)
            except StopIteration as end:
                result: CourseEnd = end.value
                return result
            answer = None
            match step:
                case Score() | Train() | Consult() | Derive():
                    answer = await self._result_of(step)
                case Look():
                    answer = JobResult(value=await asyncio.to_thread(list, self._run.artifacts.rows(step.rows)))
                case Begun() | Judged() | Ended():
                    await asyncio.to_thread(self._note, step)
                case _:
                    assert_never(step)

    async def _result_of(self, job: Job) -> JobResult:
        """Of the ledger where it was done before and what it made is still there; else it is done now."""
        key = job_key(job)
        known = await asyncio.to_thread(self._run.ledger.job, key)
        if known is not None and known.result is not None:
            outputs = {name: ArtifactId(each) for name, each in known.result["outputs"].items()}
            if all(self._run.artifacts.holds(each) for each in outputs.values()):
                return JobResult(outputs=outputs, value=known.result["value"], failed=known.result["failed"])
        request = {**job.model_dump(mode="json"), "inputs_by_role": inputs_of(job)}
        self._run.ledger.begin_job(key, self._stage, self._attempt, time.time(), request)
        self._dashboard.note(job.title, "debug" if isinstance(job, Derive) else "info")
        done = await self._jobs.run(job, self._request.reproducible)
        await asyncio.to_thread(self._record, key, job, done)
        return done.result

    def _record(self, key: str, job: Job, done: Done) -> None:
        artifacts = {
            name: ArtifactRecord(
                id=each, name=f"{job.title}: {name}", bytes=self._run.artifacts.size_bytes(each), made_by=key
            )
            for name, each in done.result.outputs.items()
        }
        body = {
            "outputs": dict(done.result.outputs),
            "value": done.result.value,
            "failed": done.result.failed,
            "nodes": done.nodes,
            "versions": done.versions,
            "folder": done.folder,
        }
        self._run.ledger.end_job(key, time.time(), body, artifacts)

    # --- what happened ---

    def _note(self, event: Event) -> None:
        ledger, wall = self._run.ledger, time.time()
        if self._tracking is not None:
            self._tracking.take(event)
        match event:
            case Begun():
                self._stage, self._attempt = event.stage.number, event.attempt
                inputs = self._inputs(event)
                body: dict[str, Any] = {"name": event.stage.name, "title": event.stage.title, "inputs": inputs}
                self._note_rerun(event, inputs)
                ledger.put_stage(event.stage.number, event.attempt, wall, body, ended=False)
                again = f", attempt {event.attempt + 1}" if event.attempt else ""
                self._dashboard.note(f"stage {event.stage.number}: {event.stage.title}{again}", "info")
                self._dashboard.event(
                    "stage", {"stage": event.stage.number, "attempt": event.attempt, "state": "begun"}
                )
            case Judged():
                verdict = {**asdict(event.verdict), "title": event.gate.title, "overridden": event.overridden}
                verdict["guard"] = event.gate.guard
                if event.sight is not None and event.sight.new:
                    stage, gate, candidate = event.sight.place
                    looked = {"stage": stage, "gate": gate, "candidate": candidate, "items": event.sight.items}
                    ledger.add_note("look", wall, looked)
                ledger.put_verdict(event.stage.number, event.attempt, event.gate.name, wall, verdict)
                said = event.verdict.outcome + (" (overridden)" if event.overridden else "")
                self._dashboard.note(f"  {event.gate.title}: {said}; {event.verdict.reason}", "info")
                write_metrics(ledger, self._run.folder.path / METRICS_NAME)
                self._dashboard.event(
                    "verdict",
                    {"stage": event.stage.number, "attempt": event.attempt, "gate": event.gate.name, **verdict},
                )
            case Ended():
                outcome = event.outcome
                body = {
                    "name": event.stage.name,
                    "title": event.stage.title,
                    "inputs": self._known_inputs(event.stage.number, event.attempt),
                    "model": outcome.model.model_dump() if outcome.model else None,
                    "artifacts": dict(outcome.artifacts),
                    "measurements": {name: summary_of(each) for name, each in outcome.measurements.items()},
                    "facts": dict(outcome.facts),
                    "turn": event.turn,
                    "reason": event.reason,
                    "failed": outcome.failed,
                }
                ledger.put_stage(event.stage.number, event.attempt, wall, body, ended=True)
                self._dashboard.note(f"  {event.turn}: {event.reason}", "info" if event.turn == "pass" else "warning")
                self._dashboard.event(
                    "stage",
                    {"stage": event.stage.number, "attempt": event.attempt, "state": "ended", "turn": event.turn},
                )

    def _inputs(self, event: Begun) -> dict[str, str]:
        """What a stage of this name begins with: data, model, what earlier stages left, and the settings, by hash."""
        state = event.state
        settings = self._run.config.model_dump(mode="json", exclude={"gates", "mode", "data", "benchmarks"})
        return {
            "model": state.model.identity,
            **({"retriever": self._run.retriever.fingerprint} if self._run.retriever else {}),
            **{f"data {name}": str(each) for name, each in state.data.items()},
            **{name: str(each) for name, each in state.artifacts.items()},
            **{f"settings {name}": content_hash(value) for name, value in settings.items()},
        }

    def _known_inputs(self, stage: int, attempt: int) -> dict[str, str]:
        found = [each for each in self._run.ledger.stages() if (each.stage, each.attempt) == (stage, attempt)]
        return dict(found[0].body["inputs"]) if found else {}

    def _note_rerun(self, event: Begun, inputs: dict[str, str]) -> None:
        before = self._known_inputs(event.stage.number, event.attempt)
        changed = sorted(name for name in {*before, *inputs} if before.get(name) != inputs.get(name))
        if before and changed:
            body: dict[str, Any] = {"stage": event.stage.number, "attempt": event.attempt, "changed": changed}
            self._run.ledger.add_note("rerun", time.time(), body)
            self._dashboard.note(
                f"stage {event.stage.number} is looked at again: changed: {', '.join(changed)}", "warning"
            )
