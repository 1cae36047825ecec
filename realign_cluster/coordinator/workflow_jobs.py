"""Carries out a workflow's jobs: scoring and training as runs of their own within the workflow's folder, what needs no
cluster in a thread. A job that was interrupted goes on where it stopped: its run folder is named by its key.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict

from realign_cluster.coordinator.cluster import connect
from realign_cluster.coordinator.curate import INTERRUPTED, NODES_MISSING, curate
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.progress import Dashboard, Level, ProgressSnapshot
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.roll_call import Register, RollCall, register_of_a_sitting
from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.train import train
from realign_cluster.coordinator.train_request import Track, TrainRequest
from realign_cluster.coordinator.workflow_jobs_here import consult_here, derive_here
from realign_cluster.domain.errors import NodesMissing, RunFailed
from realign_cluster.store.artifacts import ArtifactStore, link_or_copy
from realign_cluster.workflows.jobs import ArtifactId, Consult, Derive, Job, JobResult, ModelRef, Score, Train, job_key

SERVICE_ANSWERS = "service.sqlite"
FUSE_MODULE = "realign_cluster.training.fuse"


class Where(BaseModel):
    """Which cluster, and how its workers run: may differ from sitting to sitting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hostfile: Path | None = None
    discover: bool = False
    min_nodes: int | None = None
    wait_seconds: float | None = None  # for a node that went; None: by what a job is
    allow_skew: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    nice: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A result with what it was made by."""

    result: JobResult
    nodes: dict[str, Any]
    versions: dict[str, Any]
    folder: str  # of its run, relative to the workflow's; "" for a derivation


class JobRunner:
    """One workflow's. Raises StopAsked when the user interrupted, NodesMissing and RunFailed where nothing can be done
    about it here.
    """

    def __init__(
        self,
        folder: Path,
        artifacts: ArtifactStore,
        where: Where,
        home: ClusterHome,
        dashboard: Dashboard,
        stop: Stop,
        track: Track = "none",
        register: Register | None = None,
    ) -> None:
        self._track: Track = track
        self._folder = folder
        self._artifacts = artifacts
        self._where = where
        self._home = home
        self._dashboard = dashboard
        self._stop = stop
        self._roll_call = RollCall(
            where.hostfile,
            discover=where.discover,
            allow_skew=frozenset(where.allow_skew),
            home=home,
            wait_seconds=where.wait_seconds,
            register=register or register_of_a_sitting(),
            note=dashboard.note,
            look=stop.raise_if_asked,
        )

    async def reach(self) -> None:
        """Raises NodesMissing, or UsageError, as the first job on the cluster would: before anything is begun."""
        where = self._where
        async with connect(
            where.hostfile,
            discover=where.discover,
            home=self._home,
            min_nodes=where.min_nodes,
            allow_skew=frozenset(where.allow_skew),
        ):
            pass

    async def run(self, job: Job, reproducible: bool) -> Done:
        self._stop.raise_if_asked()
        match job:
            case Score():
                return await self._score(job, reproducible)
            case Train():
                return await self._train(job)
            case Consult() | Derive():
                return await asyncio.to_thread(self._here, job)

    def model_path(self, model: ModelRef) -> str:
        return str(self._artifacts.folder_path(model.artifact)) if model.artifact else model.path

    async def _score(self, job: Score, reproducible: bool) -> Done:
        await self._roll_call.wait()
        folder = self._job_folder(job)
        request = score_request(
            job,
            self._artifacts.rows_path(job.rows),
            folder,
            self.model_path,
            reproducible=reproducible,
            **self._where.model_dump(exclude={"wait_seconds"}),
        )
        summary = await self._sitting(
            curate(request, dashboard=self._quiet(job), home=self._home, stop=self._stop), folder
        )
        if failed := summary["rows"]["failed"]:
            raise RunFailed(
                f"{job.title}: {failed} of {summary['rows']['in']} rows could not be scored",
                f"see {folder / 'failed'}; a workflow's measurements need every row",
            )
        parts = sorted((folder / "output").glob("part-*.jsonl"))
        rows = (orjson.loads(line) for part in parts for line in part.read_bytes().splitlines())
        scored = await asyncio.to_thread(self._artifacts.put_rows, rows)
        took = {"seconds": summary["wall_seconds"], "rows": summary["rows"]["in"]}
        return self._done(job, folder, summary, {"rows": ArtifactId(scored)}, value=took)

    async def _train(self, job: Train) -> Done:
        await self._roll_call.wait()
        folder = self._job_folder(job)
        request = TrainRequest(
            data=(str(self._artifacts.rows_path(job.data)),),
            valid=(str(self._artifacts.rows_path(job.valid)),) if job.valid else (),
            benchmarks=self._benchmarks(job, folder),
            model=self.model_path(job.model),
            out=folder,
            settings=job.settings,
            track=self._track,
            **self._where.model_dump(),
        )
        sitting = train(request, dashboard=self._quiet(job), home=self._home, stop=self._stop)
        summary = await self._sitting(sitting, folder)
        if summary["state"] == "failed":
            return self._done(job, folder, summary, {}, failed=str(summary["reason"]))
        whole = folder / "whole"
        if job.settings.fine_tune == "full":
            shutil.rmtree(whole, ignore_errors=True)
            shutil.copytree(folder / "output", whole, copy_function=link_or_copy)
        else:
            await self._fuse(self.model_path(job.model), folder / "output", whole)
        model = await asyncio.to_thread(self._artifacts.put_folder, whole)
        metrics = await asyncio.to_thread(self._artifacts.put_file, folder / "metrics.jsonl")
        return self._done(
            job,
            folder,
            summary,
            {"model": ArtifactId(model), "metrics": ArtifactId(metrics)},
            value=_course_of(summary),
        )

    def _benchmarks(self, job: Train, folder: Path) -> tuple[str, ...]:
        """The benchmarks' rows under their names: a training calls them by the names of their files."""
        named = folder.with_name(f"{folder.name}.benchmarks")
        paths = {name: named / f"{name}.jsonl" for name in job.benchmarks}
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # the run may have been moved since
            path.symlink_to(self._artifacts.rows_path(job.benchmarks[name]).absolute())
        return tuple(map(str, paths.values()))

    async def _fuse(self, model: str, adapters: Path, out: Path) -> None:
        """A short-lived process: the coordinator never imports MLX."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", FUSE_MODULE, "--model", model, "--adapters", str(adapters), "--out", str(out)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode and self._stop.asked:
            raise StopAsked
        if process.returncode:
            raise RunFailed(
                f"the adapters of {adapters} could not be put into {model}: "
                f"{said.decode(errors='replace').strip()[-2000:]}",
                "run the same command again: only this is repeated",
            )

    async def _sitting(self, sitting: Any, folder: Path) -> dict[str, Any]:
        """The summary of a run that is over. Raises for one that is not."""
        code = await sitting
        if code == INTERRUPTED or self._stop.asked:
            raise StopAsked
        summary: dict[str, Any] = orjson.loads((folder / "summary.json").read_bytes())
        if code == NODES_MISSING:
            raise NodesMissing(str(summary.get("reason", "nodes are missing")), "see realign doctor")
        if summary["state"] == "incomplete":
            raise RunFailed(str(summary.get("reason", "")), "the same command goes on where it stopped")
        return summary

    def _done(
        self, job: Job, folder: Path, summary: Mapping[str, Any], outputs: dict[str, ArtifactId], **more: Any
    ) -> Done:
        return Done(
            result=JobResult(outputs=outputs, **more),
            nodes=dict(summary.get("nodes") or {}),
            versions=dict(summary.get("versions") or {}),
            folder=str(folder.relative_to(self._folder)),
        )

    def _here(self, job: Consult | Derive) -> Done:
        match job:
            case Consult():
                answers = self._folder / SERVICE_ANSWERS
                result = consult_here(job, self._artifacts, answers, self._stop.raise_if_asked)
            case Derive():
                result = derive_here(job, self._artifacts, self._folder / "jobs" / f"{job_key(job)}.making")
        return Done(result=result, nodes={}, versions={}, folder="")

    def _job_folder(self, job: Job) -> Path:
        return self._folder / "jobs" / job_key(job)

    def _quiet(self, job: Job) -> Dashboard:
        return _PartOf(self._dashboard, job.title)


def score_request(job: Score, rows: Path, out: Path, path_of: Callable[[ModelRef], str], **more: Any) -> CurateRequest:
    """The run that does a job. `path_of`: where a model is; `more`: what says where and how it is run."""
    return CurateRequest(
        inputs=(str(rows),),
        out=out,
        model=path_of(job.model),
        kinds=job.kinds,
        fields=job.fields,
        template=job.template,
        labels=job.labels,
        chat=job.chat,
        max_tokens=job.max_tokens,
        truncate=job.truncate,
        sampling=job.sampling,
        reference_model=path_of(job.reference) if job.reference is not None else None,
        **more,
    )


def _course_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    names = ("loss", "validation", "kl", "steps", "tokens", "wall_seconds", "steps_lost", "generations")
    return {name: summary.get(name) for name in names}


class _PartOf:
    """A job's run on the workflow's dashboard: its progress under the job's title, its own beginning and end unsaid."""

    def __init__(self, whole: Dashboard, title: str) -> None:
        self._whole = whole
        self._title = title

    def start(self, title: str) -> None:
        del title

    def update(self, snapshot: ProgressSnapshot) -> None:
        said = f"{self._title}: {snapshot.message}" if snapshot.message else self._title
        self._whole.update(replace(snapshot, message=said))

    def note(self, message: str, level: Level = "info") -> None:
        self._whole.note(f"{self._title}: {message}", "debug" if level == "info" else level)

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        self._whole.event(f"job_{name}", {"job": self._title, **fields})

    def stop(self) -> None:
        pass
