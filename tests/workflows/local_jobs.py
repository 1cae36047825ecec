"""A workflow's jobs done in this process, by the code that workers and ranks run: a run of a tiny model in seconds.

run_here(request)          as `realign workflow run`, on no cluster
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import orjson

from realign_cluster.coordinator import workflow as coordinator
from realign_cluster.coordinator.curate import INTERRUPTED
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.progress import Level, ProgressSnapshot
from realign_cluster.coordinator.workflow_jobs import Done, JobRunner
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.rank_report import Failed, RankReport, StepDone
from realign_cluster.domain.training import TrainJob, TrainSettings
from realign_cluster.domain.world import RankSpec, WorldPlan
from realign_cluster.scoring.session import open_session
from realign_cluster.store.model_files import describe_model
from realign_cluster.store.training_data import prepare_training_data
from realign_cluster.training.export import export
from realign_cluster.training.orders import Mailbox, Orders
from realign_cluster.training.rank import run_rank
from realign_cluster.workflows.jobs import ArtifactId, JobResult, Score, Train

NEVER = 1 << 30
UNIT_ROWS = 64


def run_here(request: WorkflowRequest, home: Path, *, train: bool = True) -> None:
    """Runs a workflow to its end in this process; without `train` it is left where the first model would be trained,
    as by a crash. Raises KeyboardInterrupt if it was interrupted.
    """
    with (
        mock.patch.object(coordinator, "JobRunner", LocalJobs if train else UntrainedJobs),
        contextlib.suppress(Untrained),
    ):
        code = asyncio.run(coordinator.run_workflow(request, dashboard=Silent(), home=ClusterHome(home)))
        if code == INTERRUPTED:
            raise KeyboardInterrupt


class LocalJobs(JobRunner):
    """Scores with a session of the scoring worker, trains with one rank."""

    async def reach(self) -> None:
        """There is no cluster."""

    async def _score(self, job: Score, reproducible: bool) -> Done:
        rows = list(self._artifacts.rows(job.rows))
        asked = ScoreJob(
            kinds=job.kinds,
            model=describe_model(self.model_path(job.model)),
            reference_model=describe_model(self.model_path(job.reference)) if job.reference else None,
            fields=job.fields,
            template=job.template,
            labels=job.labels,
            chat=job.chat,
            max_tokens=job.max_tokens,
            truncate=job.truncate,
            reproducible=reproducible,
            sampling=job.sampling,
        )
        others = {asked.reference_model.hash: Path(self.model_path(job.reference))} if job.reference else {}  # type: ignore[union-attr]
        session = open_session(
            asked,
            Path(self.model_path(job.model)),
            measure="none",
            samples=(),
            cores=1,
            phase=lambda section, what, done: None,
            others=others,
        )
        scored: list[dict[str, Any]] = []
        for begin in range(0, len(rows), UNIT_ROWS):
            lines = [orjson.dumps(row) for row in rows[begin : begin + UNIT_ROWS]]
            ids = [hashlib.blake2b(line + b"%d" % (begin + at), digest_size=16) for at, line in enumerate(lines)]
            unit = session.prepare(b"\n".join(lines), len(lines), b"".join(each.digest() for each in ids))
            payload = session.compute(unit, lambda: None).payload
            for row, name, line in zip(rows[begin : begin + UNIT_ROWS], ids, payload.split(b"\n"), strict=True):
                scored.append({**row, "row_id": name.hexdigest(), "scores": orjson.loads(line)})
        made = ArtifactId(self._artifacts.put_rows(scored))
        result = JobResult(outputs={"rows": made}, value={"seconds": 0.0, "rows": len(rows)})
        return Done(result=result, nodes={}, versions={}, folder="")

    async def _train(self, job: Train) -> Done:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out"
            valid = self._artifacts.rows_path(job.valid) if job.valid else None
            losses, failed = train_here(
                Path(self.model_path(job.model)), self._artifacts.rows_path(job.data), job.settings, out, valid=valid
            )
            if failed:
                return Done(result=JobResult(failed=failed), nodes={}, versions={}, folder="")
            outputs = {
                "model": ArtifactId(self._artifacts.put_folder(out)),
                "metrics": ArtifactId(self._artifacts.put_rows({"step": at, "loss": x} for at, x in enumerate(losses))),
            }
        steps = {"asked": job.settings.steps, "done": len(losses)}
        result = JobResult(outputs=outputs, value={"loss": {"first": losses[0], "last": losses[-1]}, "steps": steps})
        return Done(result=result, nodes={}, versions={}, folder="")


class Untrained(Exception):
    """Nothing is to be trained."""


class UntrainedJobs(LocalJobs):
    """Dies before anything is trained: the run is one that is going on."""

    async def _train(self, job: Train) -> Done:
        raise Untrained


def train_here(
    model: Path, rows: Path, settings: TrainSettings, out: Path, *, valid: Path | None = None
) -> tuple[list[float], str]:
    """Trains with one rank and writes the whole model to `out`; the loss of every step, and why it failed, if so."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("state", "cache", "data"):
            (folder / name).mkdir()
        prepared = prepare_training_data([rows], [valid] if valid else [], settings.method, folder / "data")
        asked = settings.model_dump() | {"fine_tune": "full", "checkpoint_every": NEVER, "snapshot_every": NEVER}
        job = TrainJob(model=describe_model(str(model)), data=prepared.spec, **asked)
        orders = Orders(
            job=job,
            spec=RankSpec(
                generation=1,
                rank=0,
                world=WorldPlan(parallel="single", nodes=("here",), shares=(1.0,)),
                snapshot_every=NEVER,
            ),
            model_dir=model,
            data_dir=folder / "data" / job.data.hash,
            state_dir=folder / "state",
            cache_dir=folder / "cache",
            cores=1,
            run_id="here",
        )
        mailbox, reports = Mailbox(), list[RankReport]()
        mailbox.put({"op": "go", "generation": 1, "addresses": ["127.0.0.1:1"]})
        ended = run_rank(orders, mailbox, reports.append)
        losses = [each.loss for each in reports if isinstance(each, StepDone)]
        if not ended:
            return losses, "; ".join(each.message for each in reports if isinstance(each, Failed)) or "it ended early"
        last = max((folder / "state").glob("checkpoint-*.safetensors"))
        (folder / "last").mkdir()
        for part in (folder / "state").glob(f"{last.stem}.*"):  # the arrays, and what says which they are
            shutil.move(part, folder / "last" / part.name)
        export(folder / "last", job, model, out)
        return losses, ""


class Silent:
    """A dashboard that shows nothing."""

    def start(self, title: str) -> None:
        del title

    def update(self, snapshot: ProgressSnapshot) -> None:
        del snapshot

    def note(self, message: str, level: Level = "info") -> None:
        del message, level

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        del name, fields

    def stop(self) -> None:
        pass
