"""A workflow's stages driven through their real derivations, with answers written from the gold of the knowledge base
in the place of a model's: what models would say is decided here, what is made of it is not.

Jobs are remembered by their keys over all runs of a test session, as a run's ledger does.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.workflow_jobs_here import derive_here
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.config import WorkflowConfig, read_config
from realign_cluster.workflows.course import Begun, Decisions, End, Ended, Judged, course
from realign_cluster.workflows.jobs import ArtifactId, Derive, JobResult, Look, ModelRef, Score, Train, job_key
from realign_cluster.workflows.stage import State
from realign_cluster.workflows.tables import workflow_named

KNOWLEDGE = Path(__file__).parents[2] / "examples" / "knowledge_base"
sys.path.insert(0, str(KNOWLEDGE))

import make_workflow  # noqa: E402

FEW = {
    "primer": 1,
    "preparation": 40,
    "citation": 60,
    "general": 160,
    "practice": 160,
    "queries": 60,
    "pairs": 120,
    "labels": 400,
    "valid": 60,
    "items": 110,
    "benchmark": 420,
}
FOUND = re.compile(r"the (\w+) (\w+) (\w+) \[(\d)\]\.")
ASKED = re.compile(r"^question: what do the (\w+) (\w+)\?")
NAME = re.compile(
    r"\bthe ([a-z]+) (?:grow|mine|brew|weave|hunt|play|breed|carve|wear|fear|paint|sell)\b"
)  # of a people
Answer = Callable[[Mapping[str, Any]], str]


def digests(words: set[str]) -> set[str]:
    return {hashlib.sha256(word.encode()).hexdigest() for word in words}


def make_data(workflow: str, folder: Path) -> WorkflowConfig:
    """A small knowledge base in `folder`; the configuration asks for what so few items can show."""
    make_workflow.write_workflow(workflow, folder, rows=FEW)
    text = (folder / "workflow.toml").read_text()
    small = {"least_pairs": 30, "prompts": 60, "probe_prompts": 240, "most_claims": 1, "max_new_tokens": 16}
    for key, value in small.items():
        text, times = re.subn(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert times == 1, key
    text = text.replace("[iteration]", "[iteration]\nflat = 0.05")
    format = "\n[gates.citation]\ncitation_format = 0.95\n[gates.evaluation]\ncitation_format = 0.95\n"
    (folder / "workflow.toml").write_text(text + (format if workflow == "source-attribution" else ""))
    return read_config(folder / "workflow.toml")


def right(row: Mapping[str, Any]) -> str:
    """What the sources in the prompt say, cited; that they do not say it; or what a benchmark's prompt wants."""
    prompt = row["prompt"]
    if (asked := ASKED.match(prompt)) is None:
        return str(row["gold"])
    people, relation = asked.groups()
    for who, what, value, number in FOUND.findall(prompt):
        if (who, what) == (people, relation):
            return f"the {who} {what} {value} [{number}]."
    return f"the sources do not say what the {people} {relation}."


def careless(row: Mapping[str, Any]) -> str:
    """Cites the first source whatever says it; invents where nothing does."""
    said = right(row)
    if "do not say" in said:
        people, relation = ASKED.match(row["prompt"]).groups()  # type: ignore[union-attr]
        return f"the {people} {relation} silk [1]."
    return re.sub(r"\[\d\]", "[1]", said) if "question:" in row["prompt"] else said


@dataclass(kw_only=True)
class World:
    """What its models are like. `answers`: trained how often -> how it answers; the last one stands for later ones.
    `gates`: thresholds that this configuration asks for.
    """

    answers: tuple[Answer, ...] = (careless, right)
    loss: float = 0.5  # nats per token
    divergence: float = 0.01  # nats per token
    gates: dict[str, dict[str, float]] = field(default_factory=dict)
    data: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = field(default_factory=dict)


class Runs:
    """Runs of workflows over one store."""

    def __init__(self, folder: Path) -> None:
        self.artifacts = ArtifactStore(folder / "artifacts")
        self._scratch = folder / "making"
        self._known: dict[str, JobResult] = {}
        self._gold: dict[str, set[str]] = {}  # prompt of a benchmark -> right answers
        self.done: list[str] = []
        self.trained: list[Train] = []  # of the last run

    def run(
        self, workflow: str, config: WorkflowConfig, folder: Path, world: World, decisions: Decisions | None = None
    ) -> tuple[End, list[Judged], list[Ended]]:
        data = {}
        names = {name: value for name, value in config.data.model_dump().items() if value}
        names |= {f"benchmark {name}": value for name, value in config.benchmarks.items()}
        for name, value in names.items():
            rows = [json.loads(line) for line in (folder / value).read_text().splitlines()]
            data[name] = ArtifactId(self.artifacts.put_rows(world.data.get(name, list)(rows)))
            gold_of(rows, self._gold)
        asked = {
            stage: {**config.gates.get(stage, {}), **world.gates.get(stage, {})}
            for stage in (*config.gates, *world.gates)
        }
        config = config.model_copy(update={"gates": asked})
        state = State(data=data, model=ModelRef(path="base", hash="trained 0"))
        way = course(workflow_named(workflow, config), config, state, decisions or Decisions())
        judged: list[Judged] = []
        ended: list[Ended] = []
        self.trained = []
        answer: JobResult | None = None
        while True:
            try:
                step = way.send(answer)
            except StopIteration as end:
                return end.value, judged, ended
            answer = None
            match step:
                case Begun():
                    pass
                case Judged():
                    judged.append(step)
                case Ended():
                    ended.append(step)
                case Look():
                    answer = JobResult(value=list(self.artifacts.rows(step.rows)))
                case Derive():
                    answer = self._remembered(
                        job_key(step), lambda step=step: derive_here(step, self.artifacts, self._scratch)
                    )
                case Train():
                    self.trained.append(step)
                    times = int(step.model.identity.split()[1]) + 1
                    answer = JobResult(outputs={"model": ArtifactId(f"trained {times} {job_key(step)}")}, value={})
                case Score():
                    answer = self._scored(step, world)

    def _remembered(self, key: str, make: Callable[[], JobResult]) -> JobResult:
        if key not in self._known:
            self._known[key] = make()
            self.done.append(key)
        return self._known[key]

    def _scored(self, job: Score, world: World) -> JobResult:
        times = int(job.model.identity.split()[1])
        say = world.answers[min(max(times - 1, 0), len(world.answers) - 1)]
        rows = [{**row, "scores": scores_of(job, row, say, world, self._gold)} for row in self.artifacts.rows(job.rows)]
        made = self.artifacts.put_rows(rows)
        return JobResult(outputs={"rows": ArtifactId(made)}, value={"seconds": 1.0, "rows": len(rows)})


def scores_of(
    job: Score, row: dict[str, Any], say: Answer, world: World, gold: Mapping[str, set[str]]
) -> dict[str, Any]:
    """What a model that answers so is given for a row. `gold`: prompt of a benchmark -> right answers."""
    row = {**row, "gold": min(gold.get(row["prompt"], {"a story."}))}
    match job.kinds:
        case ("generate",):
            assert job.sampling is not None
            texts = [say(row), *(careless(row), right(row), careless(row))][: job.sampling.samples]
            return {"generate": {"samples": [{"text": text, "tokens": 8, "finish": "stop"} for text in texts]}}
        case ("loglik",):
            likely = row["set"] == "valid" or (say(row) == right(row)) == (
                row["response"].strip() in gold[row["prompt"]]
            )  # of choices the one that it would say
            return {"loglik": {"sum": -world.loss * 8 if likely else -80.0, "tokens": 8}}
        case ("kl",):
            return {"kl": {"sum": world.divergence * 8, "tokens": 8}}
    raise AssertionError(job.kinds)


def gold_of(rows: Iterable[Mapping[str, Any]], gold: dict[str, set[str]]) -> None:
    """Adds the right answers of a benchmark's rows."""
    for row in rows:
        if "answer" in row:
            gold.setdefault(row["prompt"], set()).add(str(row["answer"]).strip())
