"""What a stage is: a body that asks for jobs and ends with artifacts and measurements, gates, and a remedy.

A body is a generator: it yields jobs and is sent their results. It must be deterministic: resuming runs it again from
its start, and jobs that were done answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from realign_cluster.domain.gate import Direction, Gate, Measurement
from realign_cluster.domain.judge_error import VerifierLabels
from realign_cluster.domain.retention import BenchmarkPair
from realign_cluster.metrics.retrieval.choice import UsersCode
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.jobs import ArtifactId, Ask, JobResult, ModelRef, content_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What stages leave for those after them. `models` by the stage that made them; `measured` likewise."""

    data: Mapping[str, ArtifactId]  # the user's files, by their name in [data]; benchmarks as "benchmark NAME"
    model: ModelRef
    models: Mapping[str, ModelRef] = field(default_factory=dict)
    artifacts: Mapping[str, ArtifactId] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Measurement]] = field(default_factory=dict)  # stage -> metric -> measurement
    labels: VerifierLabels | None = None  # what people said of the verifier; positive is "supported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One attempt of one stage; `attempt` is 0 for the first, and again for the first after a stage was taken back.
    `number` is another one for each.
    """

    config: WorkflowConfig
    state: State
    attempt: int
    number: int
    judge: ModelRef | None = None
    retriever: UsersCode | None = None  # None: BM25

    def seed(self, *parts: str | int) -> int:
        """Another one for every attempt and purpose: 0 to 2**31 - 1."""
        return int(content_hash([self.config.seed, self.number, *parts])[:8], 16) >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an attempt ended with. `failed`: it could not be measured at all, and why."""

    model: ModelRef | None = None  # None: the stage trains nothing
    artifacts: Mapping[str, ArtifactId] = field(default_factory=dict)
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    benchmarks: Mapping[str, BenchmarkPair] = field(default_factory=dict)  # against stage 1's
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: VerifierLabels | None = None  # stage 1's: the verifier held against people's labels
    minutes_per_item: float | None = None  # of measuring one more item on this cluster
    failed: str = ""


Body = Callable[[Context], Generator[Ask, JobResult, Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A gate on what is there, not on an estimate: the stage's fact of that name is compared as it is."""

    fact: str
    direction: Direction
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """A gate on what is left of a capability: of the benchmark's items before and after."""

    benchmark: str
    threshold: float = 0.95


Rule = Gate | Counted | Retained


@dataclass(frozen=True, slots=True, kw_only=True)
class StageGate:
    """A gate of a stage. `guard`: watched where it is not the purpose: FAIL counts, INSUFFICIENT does not stop.

    `units_given`: of a ratio whose units are the data's and not the model's (tokens of given texts): the largest is
    known before anything is measured, and bounds it.
    """

    name: str
    title: str
    rule: Rule
    guard: bool = False
    units_given: bool = False
    judges: str = "model"  # or "verifier", or data: an artifact by its name, of the stage or the user


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row of a workflow's table."""

    number: int
    name: str
    title: str
    body: Body
    gates: tuple[StageGate, ...]
    remedy: str  # what another attempt does differently, in words for the report
    repeats: bool = True  # False: a second attempt could only repeat the first (nothing is trained or made)
    goes_back_to: str | None = None  # the stage that is done again on FAIL, this one after it


def judgements_of(stage: Stage, config: WorkflowConfig) -> int:
    """How often a stage's gates may be judged, alpha being divided by it: each attempt at each look."""
    return (config.attempts if stage.repeats else 1) * config.looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    name: str
    title: str
    stages: tuple[Stage, ...]
    primary: str  # the measurement by which one feasible model is better than another

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)
