"""A fact service as a workflow's verifier: a real one on this machine, whose second answer is never like its first."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.cli.workflow_plan import plan_workflow
from realign_cluster.coordinator.workflow_history import WorkflowHistory, read_workflow_history
from realign_cluster.coordinator.workflow_report import write_workflow_report
from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.metrics.verifiers.lexical import LexicalVerifier
from realign_cluster.metrics.verifiers.verdict import Pair
from tests.metrics.verifiers.fact_server import Handler, Service, serving

from .made_workflow import MadeWorkflow

LOOSE = {"preparation": {"perplexity": 900000}}  # a type of source is missing: the run ends with stage 2
TABLES = '[verifier]\nkind = "{kind}"\n[verifier.service]\nurl = "{url}"\nversion = "{version}"\nattempts = 1\n{more}'


class Fickle:
    """What is asked for the first time it judges by the rules, but for some claims that it does not know; then it
    says something else each time.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.refuses_from: int | None = None

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        if self.refuses_from is not None and len(self.asked) >= self.refuses_from:
            handler.reply({"error": "no more"}, 403)
        else:
            handler.reply({"version": "7", "verdicts": [self._verdict(**pair) for pair in body["pairs"]]})

    def _verdict(self, claim: str, evidence: str) -> dict[str, Any]:
        pair = Pair(claim=claim, evidence=evidence)
        self.asked[pair.key] += 1
        if self.asked[pair.key] > 1:
            return {"supported": 0.5 / self.asked[pair.key]}
        (said,) = LexicalVerifier().score([pair])
        return {"supported": None if int(pair.key, 16) % 7 == 0 else said.supported, "label": said.label}


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as server:
        server.answer = Fickle()
        yield server


def made(folder: Path, service: Service, *, kind: str = "service", version: str = "7", more: str = "") -> MadeWorkflow:
    tables = TABLES.format(kind=kind, url=service.url, version=version, more=more)
    return MadeWorkflow(folder, gates=LOOSE, tables=tables)


def consulted(history: WorkflowHistory) -> list[dict[str, Any]]:
    """Verdicts of every job that asked the service, in order."""
    jobs = [job for job in history.jobs if job.request["what"] == "consult"]
    return [row for job in jobs for row in history.rows((job.result or {})["outputs"]["verdicts"])]


def verdicts(history: WorkflowHistory) -> list[tuple[str, Any, Any]]:
    return [(v.gate, v.body["value"], v.body["outcome"]) for attempt in history.attempts for v in attempt.verdicts]


def test_what_it_answered_once_is_its_answer(tmp_path: Path, service: Service) -> None:
    workflow = made(tmp_path / "made", service)
    service.answer = fickle = Fickle()
    fickle.refuses_from = 40
    with pytest.raises(RunFailed, match=r"verification by the fact service: .* answered 403"):
        workflow.sit()
    answered = set(fickle.asked)
    fickle.refuses_from = None
    workflow.sit()
    interrupted = read_workflow_history(workflow.run)
    assert answered < set(fickle.asked)
    assert set(fickle.asked.values()) == {1}
    said = consulted(interrupted)
    assert {row["reason"] for row in said} == {"", "the service has no answer"}
    assert len(said) > len(fickle.asked)  # two jobs asked for the same pair

    calm = made(tmp_path / "calm", service)
    service.answer = Fickle()
    calm.sit()
    assert consulted(read_workflow_history(calm.run)) == said
    assert verdicts(read_workflow_history(calm.run)) == verdicts(interrupted)

    measured = interrupted.attempts[0].measurements["citation_recall"]
    page = write_workflow_report(workflow.run).read_text()
    assert measured["verifier"][:12] in page
    assert f"fact service: {service.url}, version 7" in page
    assert "fact service, version 7" in page


def test_a_run_that_has_its_answers_needs_no_service(tmp_path: Path) -> None:
    with serving() as service:
        service.answer = Fickle()
        workflow = made(tmp_path / "made", service)
        workflow.sit()
    before = read_workflow_history(workflow.run)
    workflow.write_config(
        gates={**LOOSE, "sources": {"retrieval_r_precision": 0.5}},
        tables=TABLES.format(kind="service", url=service.url, version="7", more=""),
    )
    workflow.sit()
    after = read_workflow_history(workflow.run)
    assert [job.key for job in after.jobs] == [job.key for job in before.jobs]


def test_an_ensemble_is_the_mean_of_the_rules_and_the_service(tmp_path: Path, service: Service) -> None:
    service.answer = lambda handler, body: handler.reply(
        {"version": "7", "verdicts": [{"supported": 0.25} for _ in body["pairs"]]}
    )
    workflow = made(tmp_path / "made", service, kind="ensemble")
    workflow.sit()
    history = read_workflow_history(workflow.run)
    job = next(each for each in history.jobs if each.request.get("function") == "verdicts_together")
    roles = job.request["inputs_by_role"]
    rules = {row["pair"]: row for row in history.rows(roles["rules"])}
    together = history.rows((job.result or {})["outputs"]["verdicts"])
    assert len(together) > 5
    for row in together:
        assert row["supported"] == pytest.approx((rules[row["pair"]]["supported"] + 0.25) / 2)


REFUSED: dict[str, tuple[Callable[[Path, Service], MadeWorkflow], str]] = {
    "version": (lambda f, s: made(f, s, version="8"), "is version '7', '8' was configured"),
    "token": (lambda f, s: made(f, s, more='token_variable = "FACTS_OF_A_TEST"'), "FACTS_OF_A_TEST is not set"),
    "key": (lambda f, s: made(f, s, more="pairs_per_reqest = 4"), "did you mean 'pairs_per_request'"),
    "kind": (lambda f, s: made(f, s, kind="lexical"), "service: nobody asks it, the kind is lexical"),
    "model": (
        lambda f, s: MadeWorkflow(f, tables='[verifier]\nkind = "lexical"\nmodel = "a-judge"'),
        "model: nobody asks it, the kind is lexical",
    ),
    "open": (
        lambda f, s: MadeWorkflow(
            f, tables=TABLES.format(kind="service", url="http://example.org/check", version="7", more="")
        ),
        "is not https, nor http to this machine",
    ),
    "section": (lambda f, s: MadeWorkflow(f, tables='[verifier]\nkind = "service"'), "service: missing"),
    "ensemble": (lambda f, s: MadeWorkflow(f, tables='[verifier]\nkind = "ensemble"'), "kind: an ensemble has a model"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_will_not_do_is_said_by_plan_and_before_a_run(tmp_path: Path, service: Service, wrong: str) -> None:
    make, said = REFUSED[wrong]
    check_refused(make(tmp_path / "made", service), said)


def test_nobody_there_is_said_by_plan_and_before_a_run(tmp_path: Path) -> None:
    silent = Service()
    workflow = made(tmp_path / "made", silent)
    silent.server_close()
    check_refused(workflow, "was not reached")


def check_refused(workflow: MadeWorkflow, said: str) -> None:
    config = workflow.folder / "workflow.toml"
    for start in (lambda: asyncio.run(plan_workflow("source-attribution", config, None)), workflow.sit):
        with pytest.raises(UsageError, match=re.escape(said)) as error:
            start()
        assert error.value.message.startswith(f"{config}:")
        assert "verifier." in error.value.message
        assert error.value.fix
    assert not workflow.run.exists()
