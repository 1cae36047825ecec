"""The workflow that docs/workflows/adding-a-workflow.md adds, as it stands there: existing bodies, one of its own.

Derivations, gates and the course are the real ones; only what models say and how likely they find it is made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator.workflow_jobs_here import derive_here
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.course import Begun, Decisions, End, Ended, Judged, course
from realign_cluster.workflows.derive import REGISTRY
from realign_cluster.workflows.jobs import ArtifactId, Derive, JobResult, Look, ModelRef, Score, job_key
from realign_cluster.workflows.rehearsal import rehearse
from realign_cluster.workflows.stage import State, Workflow
from realign_cluster.workflows.tables import WORKFLOWS
from tests.workflows.made import config

PAGE = Path(__file__).parents[2] / "docs" / "workflows" / "adding-a-workflow.md"
HARBOURS = 70
LABELS = 100  # of each kind
ASKED = config(generation={"most_claims": 1})
Says = Callable[[dict[str, Any]], str]


@pytest.fixture
def audit() -> Iterator[Workflow]:
    """What the page's Python says."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    known = set(REGISTRY)  # with every derivation of the bodies, which tables import
    exec(compile(code, PAGE.name, "exec"), names)
    yield names["audit"](ASKED)
    for added in set(REGISTRY) - known:
        del REGISTRY[added]


def built(number: int) -> str:
    return f"The harbour of Ostrel {number} was built in {1700 + number}."


def items() -> list[dict[str, Any]]:
    """Half of them ask for what no passage says."""
    return [
        {
            "id": f"{number} {answerable}",
            "prompt": f"{built(number)} {'When was it built' if answerable else 'Who paid for it'}?",
            "sources": [{"id": f"harbour {number}", "text": built(number)}],
            "answerable": answerable,
            "sentence": built(number),
        }
        for number in range(HARBOURS)
        for answerable in (True, False)
    ]


def rightly(row: dict[str, Any]) -> str:
    return f"{row['sentence'][:-1]} [1]." if row["answerable"] else "The passages do not say who paid for it."


def inventing(row: dict[str, Any]) -> str:
    return rightly(row) if row["answerable"] else "Queen Adelaide paid for the bridges of Merrow [1]."


def without_citations(row: dict[str, Any]) -> str:
    return rightly(row).replace(" [1]", "")


class _Cluster:
    """Does each job once, as a run does; `says` stands for the model."""

    def __init__(self, folder: Path, says: Says) -> None:
        self.artifacts = ArtifactStore(folder / "artifacts")
        self._scratch = folder / "scratch"
        self._says = says
        self._done: dict[str, JobResult] = {}
        self.scored: list[Score] = []

    def state(self) -> State:
        labels = [
            {"claim": built(number), "evidence": built(at), "label": "supported" if at == number else "contradicted"}
            for number in range(LABELS)
            for at in (number, number + 1)
        ]
        valid = [{"prompt": "What is there?", "completion": built(number)} for number in range(HARBOURS)]
        files = {"items": items(), "labels": labels, "valid": valid}
        data = {name: ArtifactId(self.artifacts.put_rows(rows)) for name, rows in files.items()}
        return State(data=data, model=ModelRef(path="base", hash="base"))

    def result(self, job: Score | Derive) -> JobResult:
        key = job_key(job)
        if key not in self._done:
            match job:
                case Score():
                    self._done[key] = self._score(job)
                case Derive():
                    self._done[key] = derive_here(job, self.artifacts, self._scratch)
        return self._done[key]

    def _score(self, job: Score) -> JobResult:
        self.scored.append(job)
        rows = [{**row, "scores": {kind: self._one(kind, row) for kind in job.kinds}} for row in self._rows(job.rows)]
        value = {"seconds": 1.0, "rows": len(rows)}
        return JobResult(outputs={"rows": ArtifactId(self.artifacts.put_rows(rows))}, value=value)

    def _one(self, kind: str, row: dict[str, Any]) -> dict[str, Any]:
        if kind == "generate":
            return {"samples": [{"text": self._says(row), "tokens": 12, "finish": "stop", "logprob_sum": -3.0}]}
        return {"sum": -4.0, "mean": -0.2, "tokens": 20}

    def _rows(self, name: ArtifactId) -> list[dict[str, Any]]:
        return list(self.artifacts.rows(name))

    def run(self, workflow: Workflow) -> tuple[End, list[str], dict[str, str]]:
        """The end, each stage's turn, and each gate's verdict."""
        way = course(workflow, ASKED, self.state(), Decisions())
        turns, verdicts = list[str](), dict[str, str]()
        answer: JobResult | None = None
        while True:
            try:
                step = way.send(answer)
            except StopIteration as end:
                return end.value, turns, verdicts
            answer = None
            match step:
                case Look():
                    answer = JobResult(value=self._rows(step.rows))
                case Score() | Derive():
                    answer = self.result(step)
                case Judged():
                    verdicts[f"{step.stage.name}.{step.gate.name}"] = step.verdict.outcome
                case Ended():
                    turns.append(f"{step.stage.name}: {step.turn}")
                case Begun():
                    pass
                case _:
                    raise AssertionError(step)


def test_it_passes_with_a_model_that_answers_rightly(audit: Workflow, tmp_path: Path) -> None:
    cluster = _Cluster(tmp_path, rightly)
    end, turns, verdicts = cluster.run(audit)
    assert set(verdicts.values()) == {"PASS"}
    assert len(verdicts) == 5
    assert (end.state, end.passed) == ("complete", True)
    assert end.model.path == "base"
    assert audit.name not in WORKFLOWS
    assert turns == ["preparation: pass", "detection: pass", "citing: pass"]


def test_its_stages_share_their_answers(audit: Workflow, tmp_path: Path) -> None:
    cluster = _Cluster(tmp_path, rightly)
    cluster.run(audit)
    assert [job.kinds for job in cluster.scored] == [("generate",), ("loglik",)]


def test_a_plan_lists_its_jobs_too(audit: Workflow, tmp_path: Path) -> None:
    cluster = _Cluster(tmp_path, rightly)
    practice = cluster.artifacts.put_rows({**row, "completion": rightly(row)} for row in items())
    state = cluster.state()
    seen = rehearse(
        audit,
        ASKED,
        replace(state, data={**state.data, "practice": ArtifactId(practice)}),
        store=cluster.artifacts,
        derive=lambda job: derive_here(job, cluster.artifacts, tmp_path / "rehearsed"),
    )
    assert not seen.stopped
    cluster.run(audit)
    assert [each.job.title for each in seen.jobs] == [job.title for job in cluster.scored]


def test_it_fails_with_a_model_that_invents(audit: Workflow, tmp_path: Path) -> None:
    end, turns, verdicts = _Cluster(tmp_path, inventing).run(audit)
    assert verdicts["detection.hallucination_rate"] == "FAIL"
    assert verdicts["detection.invented"] == "FAIL"
    assert verdicts["detection.verifier_false_positives"] == "PASS"
    assert turns == ["preparation: pass", "detection: roll back"]
    assert (end.state, end.model.path) == ("failed", "base")


def test_it_fails_with_a_model_that_does_not_cite(audit: Workflow, tmp_path: Path) -> None:
    end, _, verdicts = _Cluster(tmp_path, without_citations).run(audit)
    assert verdicts["citing.uncited_share"] == "FAIL"
    assert verdicts["detection.hallucination_rate"] == "PASS"
    assert end.state == "failed"
