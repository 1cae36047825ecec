"""`realign workflow plan`, without a cluster: what each gate can decide with the rows that are there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.cli.workflow_plan import plan_lines, plan_workflow
from realign_cluster.domain.errors import UsageError
from realign_cluster.workflows.config import read_config
from realign_cluster.workflows.tables import workflow_named
from realign_cluster.workflows.template import write_template

ANSWERABLE, UNANSWERABLE = 60, 7
SUPPORTED, NOT_SUPPORTED = 140, 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `init` writes, with more questions for stages 1 to 6, and enough labels."""
    *_, path = write_template("source-attribution", tmp_path_factory.mktemp("plan") / "made")
    items = path.parent / "data" / "items.jsonl"
    row = json.loads(items.read_text().splitlines()[0])
    rows = [
        {**row, "id": f"q{at}", "prompt": f"{row['prompt']} ({at})", "answerable": at < ANSWERABLE}
        for at in range(ANSWERABLE + UNANSWERABLE)
    ]
    items.write_text("".join(json.dumps(each) + "\n" for each in rows))
    write_labels(path, SUPPORTED, NOT_SUPPORTED)
    return path


def write_labels(path: Path, supported: int, contradicted: int) -> None:
    labels = path.parent / "data" / "labels.jsonl"
    row = json.loads(labels.read_text().splitlines()[0])
    said = ["supported"] * supported + ["contradicted"] * contradicted
    labels.write_text("".join(json.dumps({**row, "label": label}) + "\n" for label in said))


@pytest.fixture(scope="module")
def plan(made: Path) -> dict[str, Any]:
    return asyncio.run(plan_workflow("source-attribution", made, None))


def test_every_gate_is_there_once(plan: dict[str, Any], made: Path) -> None:
    stages = workflow_named("source-attribution", read_config(made)).stages
    gates = [(stage.name, gate.name) for stage in stages for gate in stage.gates]
    assert [(each["stage"], each["gate"]) for each in plan["gates"]] == gates


def test_a_gate_is_planned_with_the_rows_that_it_will_be_judged_on(plan: dict[str, Any], made: Path) -> None:
    found = {(each["stage"], each["gate"]): each for each in plan["gates"]}
    assert found["citation", "citation_recall"]["items"] == ANSWERABLE
    assert found["evaluation", "citation_recall"]["items"] == 1  # of the sealed ones, as `init` wrote them
    assert found["optimisation", "kl"]["items"] == 3  # what practice and general have of the 200 that were asked for
    assert not found["optimisation", "kl"]["can_pass"]
    assert found["citation", "citation_recall"]["can_pass"]
    assert not found["evaluation", "citation_recall"]["can_pass"]
    assert not found["citation", "citation_format"]["can_pass"]  # 0.99 takes hundreds
    assert found["citation", "citation_recall"]["passes_from"] > 0.90
    assert found["citation", "citation_recall"]["fails_from"] < 0.90


def test_people_read_the_same(plan: dict[str, Any]) -> None:
    text = "\n".join(plan_lines(plan))
    for each in plan["gates"]:
        assert each["text"] in text
    assert "(watched)" in text
    assert text.endswith("name a cluster for what it takes: --hostfile FILE")


def test_what_more_rows_are_to_be_added_to_is_said_of_each_file_once(plan: dict[str, Any]) -> None:
    lines = plan_lines(plan)
    said = lines[next(at for at, line in enumerate(lines) if line.startswith("too few")) + 1 :]
    assert f"    items, answerable: {ANSWERABLE} of 414" in said  # the one format at 0.99
    assert "    sealed, answerable: 1 of 337" in said
    assert f"    labels, not supported: {NOT_SUPPORTED} of 72" in said
    assert "    benchmark basics: 2 of 94" in said
    enough = {**plan, "gates": [each for each in plan["gates"] if each.get("can_pass")]}
    assert not any(line.startswith("too few") for line in plan_lines(enough))


BY_THE_VERIFIER = ("citation.citation_precision", "citation.citation_recall", "evaluation.citation_recall")


def test_labels_that_are_enough_are_counted(plan: dict[str, Any]) -> None:
    labels = plan["labels"]
    assert (labels["rows"], labels["needed"], labels["unusable"]) == (200, 200, None)
    assert set(BY_THE_VERIFIER) <= set(labels["gates"])
    assert not [name for name in labels["gates"] if "coverage" in name or "retrieval" in name or "change" in name]
    lines = plan_lines(plan)
    assert "labels to hold the verifier against: 140 supported + 60 not = 200 of 200 at least, of both kinds" in lines
    assert not any("warning" in line for line in lines)


@pytest.mark.parametrize(
    ("supported", "contradicted", "why"),
    [(100, 99, "the verifier has 199 human labels, 200 are needed"), (200, 0, "200 human labels are all of one kind")],
)
def test_labels_that_are_too_few_are_warned_of(
    made: Path, tmp_path: Path, supported: int, contradicted: int, why: str
) -> None:
    """What goes by the verifier's word cannot pass then, however many questions there are."""
    shutil.copytree(made.parent, tmp_path / "few")
    write_labels(tmp_path / "few" / "workflow.toml", supported, contradicted)
    found = asyncio.run(plan_workflow("source-attribution", tmp_path / "few" / "workflow.toml", None))
    (warning,) = [line for line in plan_lines(found) if line.strip().startswith("warning: ")]
    assert why in warning
    for name in BY_THE_VERIFIER:
        assert name in warning
    gates = {f"{each['stage']}.{each['gate']}": each for each in found["gates"]}
    assert not gates["citation.citation_recall"]["can_pass"]
    assert why in gates["citation.citation_recall"]["text"]
    assert why not in gates["citation.citation_format"]["text"]  # no verifier has a part in it


def test_every_job_is_listed_by_stage_with_what_it_goes_over(plan: dict[str, Any]) -> None:
    jobs = {each["title"]: each for each in plan["costs"]}
    assert (
        jobs["baseline: answers"]["units"] == ANSWERABLE + UNANSWERABLE + 1
    )  # a benchmark's that is answered in words
    assert jobs["after citation training: answers"]["stage"] == "citation"
    assert jobs["divergence: divergence"]["text"] == "3 completions by two models"
    assert jobs["baseline: likelihoods"]["what"] == "loglik"
    assert all(each["minutes"] is None for each in plan["costs"])
    assert plan["minutes"] is None
    lines = plan_lines(plan)
    for stage, title in (("SFT preparation", "baseline: answers"), ("Optimisation", "divergence: samples")):
        begun = lines.index(f"  {stage}")
        end = next((at for at in range(begun + 1, len(lines)) if not lines[at].startswith("    ")), len(lines))
        assert any(line.startswith(f"    {title} (generate): ") for line in lines[begun:end])


def test_the_sum_says_of_how_many_jobs_nobody_knows_how_long_they_take(plan: dict[str, Any]) -> None:
    known = [{**each, "minutes": 0.5} for each in plan["costs"]]
    total = {**plan, "minutes": 0.5 * len(known)}
    assert plan_lines({**total, "costs": known})[-1].endswith("minutes of work, beside the start of each job")
    unknown = [{**known[0], "minutes": None}, *known[1:]]
    assert plan_lines({**total, "costs": unknown})[-1].endswith("each job, and 1 job of unknown length")


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_are_all_counted(made: Path, rounds: int) -> None:
    path = made.parent / f"rounds-{rounds}.toml"
    path.write_text(re.sub(r"rounds = \d+", f"rounds = {rounds}", made.read_text(), count=1))
    found = asyncio.run(plan_workflow("source-attribution", path, None))
    trained = [each["title"] for each in found["costs"] if each["stage"] == "iteration" and each["what"] == "sft"]
    assert trained == [f"round {number}: training" for number in range(1, rounds + 1)]


def test_a_judge_s_passes_are_listed(made: Path) -> None:
    path = made.parent / "judge.toml"
    text = re.sub(r"(?m)^kind = .*$", 'kind = "judge"\nmodel = "somebody/else"', made.read_text(), count=1)
    path.write_text(text)
    found = asyncio.run(plan_workflow("source-attribution", path, None))
    judged = {each["title"]: each for each in found["costs"] if each["what"] == "judge"}
    assert judged["baseline: labelled pairs: verification by the judge"]["units"] == 1  # one claim, labelled 200 times
    assert "after citation training: verification by the judge" in judged
    assert "final evaluation: verification by the judge" in judged
    for each in judged.values():
        assert re.fullmatch(r"\d+ pairs? of evidence and claim", each["text"])


def test_what_run_would_refuse_is_refused(made: Path) -> None:
    (made.parent / "odd.toml").write_text(made.read_text() + "\n[gates.citation]\ncitation_recall = 1.5\n")
    with pytest.raises(UsageError, match="out of range"):
        asyncio.run(plan_workflow("source-attribution", made.parent / "odd.toml", None))


def test_the_model_that_is_trained_is_no_judge(made: Path) -> None:
    path = made.parent / "itself.toml"
    trained = re.search(r'(?m)^path = "(.*?)"', made.read_text())
    assert trained is not None
    judge = f'kind = "judge"\nmodel = "{trained[1]}"'
    path.write_text(re.sub(r"(?m)^kind = .*$", judge, made.read_text(), count=1))
    with pytest.raises(UsageError, match="it would judge its own answers"):
        asyncio.run(plan_workflow("source-attribution", path, None))
