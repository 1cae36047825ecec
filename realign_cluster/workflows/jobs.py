"""What a stage may ask for: rows scored, a model trained, a service asked, something derived.

Each job is addressed by its content. Two jobs with equal keys have equal results, so that a job that was done is never
done again: not after a crash, not in another sitting, not by another stage. Artifacts are named by the hash of their
content; models that were not made here by their path, with the hash of their files beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NewType

import orjson
from pydantic import Field

from realign_cluster.domain.job import Chat, Fields, Sampling, Strict, Truncate
from realign_cluster.domain.training import TrainSettings
from realign_cluster.metrics.verifiers.fact_service import FactServiceSettings, fact_service_facts

ArtifactId = NewType("ArtifactId", str)
KEY_BYTES = 16
JOBS_VERSION = 1  # of what jobs mean that are no derivations; a derivation has a version of its own


class ModelRef(Strict):
    """A model: an artifact of this run, or a folder or hub id from outside, pinned by the hash of its files."""

    artifact: ArtifactId | None = None
    path: str = ""
    hash: str = ""

    @property
    def identity(self) -> str:
        return self.artifact or self.hash


class Score(Strict):
    """One pass over `rows` on the scoring cluster. Output "rows": the rows with `scores`, in order."""

    what: Literal["score"] = "score"
    title: str
    rows: ArtifactId
    model: ModelRef
    kinds: tuple[str, ...]
    reference: ModelRef | None = None  # kind kl
    fields: Fields = Fields()
    template: str | None = None
    labels: tuple[str, ...] = ()
    chat: Chat = "auto"
    max_tokens: int = 2048
    truncate: Truncate = "left"
    sampling: Sampling | None = None  # kind generate


class Train(Strict):
    """One training on the cluster. Outputs "model": what was trained, whole; "metrics": a row per step.

    `benchmarks` by name: capability checkpoints, as often as `settings.evaluation.every` says.
    """

    what: Literal["train"] = "train"
    title: str
    model: ModelRef
    data: ArtifactId
    valid: ArtifactId | None = None
    benchmarks: dict[str, ArtifactId] = Field(default_factory=dict)
    settings: TrainSettings


class Consult(Strict):
    """Claims and their evidence sent to the fact service, by the coordinator. Output "verdicts": a row a pair."""

    what: Literal["consult"] = "consult"
    title: str
    pairs: ArtifactId
    service: FactServiceSettings


class Derive(Strict):
    """One registered function of artifacts and parameters, computed on the coordinator."""

    what: Literal["derive"] = "derive"
    title: str
    function: str
    version: int
    inputs: dict[str, ArtifactId]
    parameters: dict[str, Any]


class Look(Strict):
    """Not work: the rows of an artifact, as the value of the result. For what a stage decides on."""

    what: Literal["look"] = "look"
    rows: ArtifactId


Job = Score | Train | Consult | Derive
Ask = Job | Look


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """`outputs` by name. `value`: what is small enough to decide on. `failed`: why a training could not end well."""

    outputs: Mapping[str, ArtifactId] = field(default_factory=dict)
    value: Any = None
    failed: str = ""

    def model(self) -> ModelRef:
        return ModelRef(artifact=self.outputs["model"])


def job_key(job: Job) -> str:
    """BLAKE2b-128, hex, of everything that bears on the result; titles and paths do not."""
    body = job.model_dump(mode="json", exclude={"title"})
    for name in ("model", "reference"):
        if isinstance(body.get(name), dict):
            body[name] = body[name]["artifact"] or body[name]["hash"]
    if isinstance(job, Consult):
        body["service"] = fact_service_facts(job.service)
    if not isinstance(job, Derive):
        body["jobs_version"] = JOBS_VERSION
    return content_hash(body)


def content_hash(value: Any) -> str:
    """BLAKE2b-128, hex, of a JSON value; equal values have equal hashes whatever the order of their keys."""
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=KEY_BYTES).hexdigest()


def inputs_of(job: Job) -> dict[str, str]:
    """Artifacts and models that a job reads, by role."""
    match job:
        case Derive():
            return {name: str(value) for name, value in job.inputs.items()}
        case Consult():
            return {"pairs": str(job.pairs)}
        case Score():
            found = {"rows": str(job.rows), "model": job.model.identity}
            return found | ({"reference": job.reference.identity} if job.reference else {})
        case Train():
            found = {"model": job.model.identity, "data": str(job.data)}
            found |= {f"benchmark {name}": str(each) for name, each in job.benchmarks.items()}
            return found | ({"valid": str(job.valid)} if job.valid else {})
