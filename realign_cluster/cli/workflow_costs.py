"""Asks the cluster what each job of a workflow would take there. Starts nothing on it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realign_cluster.cli.plan_train import plan_of
from realign_cluster.cli.train_asked import TrainAsked
from realign_cluster.coordinator.cluster_plan import plan_on_cluster
from realign_cluster.coordinator.workflow_jobs import score_request
from realign_cluster.coordinator.workflow_jobs_here import derive_here
from realign_cluster.coordinator.workflow_outside import its_own_judge, judge_path
from realign_cluster.coordinator.workflow_record import model_path
from realign_cluster.metrics.retrieval.choice import UsersCode
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.harness import REQUESTS
from realign_cluster.workflows.harness_process import TaskRequests
from realign_cluster.workflows.job_costs import Cost, scored, trained, unplanned
from realign_cluster.workflows.jobs import ArtifactId, Consult, ModelRef, Score, Train, content_hash
from realign_cluster.workflows.rehearsal import Rehearsed, rehearse
from realign_cluster.workflows.stage import State, Workflow
from realign_cluster.workflows.verify import members_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What `plan` was given, read and checked."""

    workflow: Workflow
    config: WorkflowConfig
    config_file: Path
    files: Mapping[str, Path]
    tasks: Mapping[str, TaskRequests]
    retriever: UsersCode | None


async def costs_of(given: Given, hostfile: Path | None, *, discover: bool) -> tuple[list[Cost], str]:
    """Of every job that the workflow will ask for if all goes well; and why it could not be seen further, if so.
    Without a cluster how many and how large they are. Raises UsageError for a judge of the trained model's name: of
    two folders only `run` sees that they hold the same.
    """
    judge = None
    model = ModelRef(path=model_path(given.config, given.config_file), hash="model")
    if "judge" in members_of(given.config.verifier):
        judge = ModelRef(path=judge_path(given.config, given.config_file), hash="judge")
        if judge.path == model.path:
            raise its_own_judge(given.config_file)
    with tempfile.TemporaryDirectory(prefix="realign-plan-") as folder:
        store = ArtifactStore(Path(folder) / "artifacts")
        data = {name: ArtifactId(store.put_file(path)) for name, path in given.files.items()}
        data |= {f"{REQUESTS}{name}": ArtifactId(store.put_rows(task.rows)) for name, task in given.tasks.items()}
        seen = await asyncio.to_thread(
            rehearse,
            given.workflow,
            given.config,
            State(data=data, model=model),
            store=store,
            derive=lambda job: derive_here(job, store, Path(folder) / "scratch"),
            judge=judge,
            retriever=given.retriever,
        )
        if hostfile is None and not discover:
            return [unplanned(each) for each in seen.jobs], seen.stopped
        asked = _Asked(store=store, base=model.path, hostfile=hostfile, discover=discover, known={})
        return [await asked.cost(each) for each in seen.jobs], seen.stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One cluster, asked once for jobs that take the same: models that are trained are as large as the one they began
    as.
    """

    store: ArtifactStore
    base: str
    hostfile: Path | None
    discover: bool
    known: dict[str, Cost]

    async def cost(self, each: Rehearsed) -> Cost:
        job = each.job
        alike = content_hash(_shape(each))
        if alike not in self.known:
            match job:
                case Score():
                    self.known[alike] = await self._score(each, job)
                case Train():
                    self.known[alike] = await self._train(each, job)
                case Consult():
                    self.known[alike] = unplanned(each)
        return replace(self.known[alike], stage=each.stage, title=job.title)

    async def _score(self, each: Rehearsed, job: Score) -> Cost:
        if not each.count:
            return unplanned(each)
        request = score_request(job, self.store.rows_path(each.rows), Path("-"), lambda model: model.path or self.base)
        plan, _ = await plan_on_cluster(
            request, self.hostfile, discover=self.discover, min_nodes=None, allow_skew=frozenset()
        )
        return scored(each, job, plan)

    async def _train(self, each: Rehearsed, job: Train) -> Cost:
        batch = job.settings.global_batch
        if each.count < batch:
            text = f"not planned: it has {each.count} rows of data, its global_batch is {batch}"
            return replace(unplanned(each), text=text)
        asked = TrainAsked(
            model=self.base,
            data=(str(self.store.rows_path(each.rows)),),
            valid=(),
            benchmarks=(),
            parallel="auto",
            backend="auto",
            track="none",
            settings=job.settings,
        )
        plan = await plan_of(asked, self.hostfile, discover=self.discover, min_nodes=None, allow_skew=frozenset())
        return trained(each, job, plan)


def _shape(each: Rehearsed) -> dict[str, Any]:
    """All that time and memory hang on."""
    job = each.job
    match job:
        case Score():
            body = job.model_dump(mode="json", exclude={"title", "rows", "model", "reference", "sampling"})
            drawn = None if job.sampling is None else job.sampling.model_dump(mode="json", exclude={"seed"})
            models = (job.model.path, job.reference is not None)
            return {**body, "rows": each.rows, "sampling": drawn, "models": list(models)}
        case Train():
            settings = job.settings.model_dump(mode="json", exclude={"seed"})
            return {"stage": each.stage, "rows": each.count, "settings": settings}
        case Consult():
            return {"pairs": each.rows}
