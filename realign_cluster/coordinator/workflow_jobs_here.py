"""Jobs of a workflow that need no cluster: derivations, and questions to a fact service. Knows no run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realign_cluster.domain.errors import RunFailed
from realign_cluster.metrics.verifiers.cache import Cached, VerdictCache
from realign_cluster.metrics.verifiers.fact_service import FactService, FactServiceError
from realign_cluster.metrics.verifiers.verdict import unanswerable
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.derive import REGISTRY, Derived
from realign_cluster.workflows.jobs import ArtifactId, Consult, Derive, JobResult
from realign_cluster.workflows.verify import pair_of, verdict_row


def derive_here(job: Derive, artifacts: ArtifactStore, scratch: Path) -> JobResult:
    """Computes a derivation; `scratch` is a folder of its own for the time."""
    shutil.rmtree(scratch, ignore_errors=True)
    derived: Derived = REGISTRY[job.function].function(_Reader(artifacts, job, scratch), job.parameters)
    outputs = {name: ArtifactId(artifacts.put_rows(rows)) for name, rows in derived.rows.items()}
    outputs |= {name: ArtifactId(artifacts.put_folder(path)) for name, path in derived.folders.items()}
    shutil.rmtree(scratch, ignore_errors=True)
    return JobResult(outputs=outputs, value=derived.value)


def consult_here(job: Consult, artifacts: ArtifactStore, answers: Path, look: Callable[[], None]) -> JobResult:
    """Each different pair is asked once: what was answered is kept in the file `answers`, and is the service's answer
    from then on. A pair that needs no asking is not sent: a service that knows more than the evidence would support
    what has none. `look` is called between requests, and may raise: to be interrupted. Raises RunFailed.
    """
    pairs = [pair_of(row) for row in artifacts.rows(job.pairs)]
    said = {pair.key: answer for pair in pairs if (answer := unanswerable(pair)) is not None}
    asked = [pair for pair in pairs if pair.key not in said]
    at_once = job.service.pairs_per_request
    try:
        with VerdictCache(answers) as cache:
            service = Cached(FactService(job.service), cache, batch=at_once)
            for at in range(0, len(asked), at_once):
                look()
                some = asked[at : at + at_once]
                said |= {pair.key: answer for pair, answer in zip(some, service.score(some), strict=True)}
    except FactServiceError as error:
        raise RunFailed(
            f"{job.title}: {error.message}",
            error.fix or "see that it runs; the same command goes on, and what was answered is not asked again",
        ) from error
    rows = [verdict_row(pair, said[pair.key]) for pair in pairs]
    return JobResult(outputs={"verdicts": ArtifactId(artifacts.put_rows(rows))})


class _Reader:
    """What a derivation may read."""

    def __init__(self, artifacts: ArtifactStore, job: Derive, scratch: Path) -> None:
        self._artifacts = artifacts
        self._job = job
        self._scratch = scratch

    def rows(self, name: str) -> Any:
        return self._artifacts.rows(self._job.inputs[name])

    def folder(self, name: str) -> Path:
        return self._artifacts.folder_path(self._job.inputs[name])

    def has(self, name: str) -> bool:
        return name in self._job.inputs

    def names(self) -> tuple[str, ...]:
        return tuple(self._job.inputs)

    def scratch(self) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch
