"""A workflow's jobs on the cluster, as its rehearsal lists them and as a run's ledger has them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.workflow_decisions import workflow_of
from realign_cluster.coordinator.workflow_jobs_here import derive_here
from realign_cluster.coordinator.workflow_record import data_files
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.store.workflow_ledger import WorkflowLedgerReader
from realign_cluster.workflows.config import read_config
from realign_cluster.workflows.harness import REQUESTS
from realign_cluster.workflows.jobs import ArtifactId, ModelRef, Score
from realign_cluster.workflows.rehearsal import Rehearsal, Rehearsed, rehearse
from realign_cluster.workflows.stage import State
from realign_cluster.workflows.tables import workflow_named

PAIRS_MADE = "preference training"  # on as many pairs as the samples give: assumed to be one a question
ROWS_OF = {"score": "rows", "train": "data", "consult": "pairs"}  # the role of what a job goes over


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAsked:
    stage: str
    title: str
    kinds: tuple[str, ...]
    samples: int
    rows: int


def rehearsal_of(
    config_file: Path, workflow: str, folder: Path, requests: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> Rehearsal:
    """As `realign workflow plan` makes it. `requests`: of benchmarks that are tasks, by name."""
    config = read_config(config_file)
    store = ArtifactStore(folder / "artifacts")
    data = {name: ArtifactId(store.put_file(path)) for name, path in data_files(config, config_file).items()}
    data |= {f"{REQUESTS}{name}": ArtifactId(store.put_rows(rows)) for name, rows in (requests or {}).items()}
    return rehearse(
        workflow_named(workflow, config),
        config,
        State(data=data, model=ModelRef(path="model", hash="model")),
        store=store,
        derive=lambda job: derive_here(job, store, folder / "scratch"),
        judge=ModelRef(path="judge", hash="judge") if config.verifier.model else None,
    )


def as_asked(each: Rehearsed) -> JobAsked:
    job = each.job
    kinds, sampling = (job.kinds, job.sampling) if isinstance(job, Score) else ((), None)
    samples = sampling.samples if sampling is not None else 0
    return JobAsked(stage=each.stage, title=job.title, kinds=kinds, samples=samples, rows=each.count)


def jobs_done(run: Path) -> list[JobAsked]:
    """In the order they were begun; derivations, which need no cluster, are left out."""
    store = ArtifactStore(run / "artifacts")
    with contextlib.closing(WorkflowLedgerReader(run / "ledger.sqlite")) as ledger:
        stages = {stage.number: stage.name for stage in workflow_of(ledger).stages}
        return [
            JobAsked(
                stage=stages[job.stage],
                title=job.request["title"],
                kinds=tuple(job.request.get("kinds", ())),
                samples=(job.request.get("sampling") or {}).get("samples", 0),
                rows=sum(1 for _ in store.rows(job.request[ROWS_OF[job.request["what"]]])),
            )
            for job in ledger.jobs()
            if job.request["what"] in ROWS_OF
        ]
