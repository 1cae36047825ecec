"""A run of a workflow on a small knowledge base in seconds: real data, configuration, derivations, gates and ledger.
What models say is written from gold (`tests.workflows.answering`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.stop import Stop
from realign_cluster.coordinator.workflow import _Sitting
from realign_cluster.coordinator.workflow_jobs import Done, JobRunner
from realign_cluster.coordinator.workflow_record import open_workflow_run
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.workflows.config import Mode
from realign_cluster.workflows.course import course
from realign_cluster.workflows.jobs import ArtifactId, JobResult, Score, Train, job_key
from tests.coordinator.made_workflow import Unseen
from tests.workflows.answering import World, gold_of, make_data, scores_of

TRAINED = "times trained"  # a file in the folder of a model


class AnsweringJobs(JobRunner):
    """As the real one, but for the cluster: what a model says follows from how often it was trained."""

    world: World
    gold: dict[str, set[str]]

    async def _score(self, job: Score, reproducible: bool) -> Done:
        del reproducible
        times = self._times(job.model)
        say = self.world.answers[min(max(times - 1, 0), len(self.world.answers) - 1)]
        rows = [
            {**row, "scores": scores_of(job, row, say, self.world, self.gold)} for row in self._artifacts.rows(job.rows)
        ]
        made = ArtifactId(self._artifacts.put_rows(rows))
        return _done(JobResult(outputs={"rows": made}, value={"seconds": 1.0, "rows": len(rows)}))

    async def _train(self, job: Train) -> Done:
        made = self._folder / "making"
        made.mkdir()
        (made / TRAINED).write_text(f"{self._times(job.model) + 1}")
        (made / "trained by").write_text(job_key(job))  # another training makes another model
        outputs = {
            "model": ArtifactId(self._artifacts.put_folder(made)),
            "metrics": ArtifactId(self._artifacts.put_rows([{"step": 1, "loss": 1.0}])),
        }
        return _done(JobResult(outputs=outputs, value={}))

    def _times(self, model: Any) -> int:
        path = Path(self.model_path(model)) / TRAINED
        return int(path.read_text()) if path.exists() else 0


def answered_run(workflow: str, folder: Path, world: World, mode: Mode) -> Path:
    """A run's folder, with its ledger and artifacts, driven to its end; no report is written. Answers may make two
    claims, few preferences will do, and there is one round of iteration.
    """
    config = make_data(workflow, folder / "made")
    config_file = folder / "made" / "workflow.toml"
    text = config_file.read_text()
    for key, value in {"most_claims": 2, "least_pairs": 5, "rounds": 1}.items():
        text, times = re.subn(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert times == 1, key
    config_file.write_text(text)
    gold: dict[str, set[str]] = {}
    for benchmark in config.benchmark_files.values():
        gold_of(map(json.loads, (folder / "made" / benchmark).read_text().splitlines()), gold)
    request = WorkflowRequest(workflow=workflow, config=config_file, out=folder / "run", mode=mode)
    with contextlib.closing(open_workflow_run(request, "made")) as run:
        home = ClusterHome(folder / "home")
        sitting = _Sitting(request, run, Unseen(), Stop(), home)
        jobs = AnsweringJobs(run.folder.path, run.artifacts, request.where, home, Unseen(), Stop())
        jobs.world, jobs.gold = world, gold
        sitting._jobs = jobs
        asyncio.run(sitting._drive(course(run.workflow, run.config, run.state, run.decisions)))
    return folder / "run"


def _done(result: JobResult) -> Done:
    return Done(result=result, nodes={}, versions={}, folder="")
