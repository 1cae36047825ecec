"""`realign workflow plan`, without a cluster: what each gate can decide with the rows that are there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.cli.workflow_plan import plan_lines, plan_workflow
from realign_cluster.domain.errors import UsageError
from realign_cluster.workflows.config import read_config
from realign_cluster.workflows.tables import workflow_named
from realign_cluster.workflows.template import write_template

ANSWERABLE, UNANSWERABLE = 60, 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `init` writes, with more questions for stages 1 to 6."""
    *_, path = write_template("source-attribution", tmp_path_factory.mktemp("plan") / "made")
    items = path.parent / "data" / "items.jsonl"
    row = json.loads(items.read_text().splitlines()[0])
    rows = [
        {**row, "id": f"q{at}", "prompt": f"{row['prompt']} ({at})", "answerable": at < ANSWERABLE}
        for at in range(ANSWERABLE + UNANSWERABLE)
    ]
    items.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


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
    said = lines[next(at for at, line in enumerate(lines) if line.startswith("too few")) + 1 : -1]
    assert f"    items, answerable: {ANSWERABLE} of 414" in said  # the one format at 0.99
    assert "    sealed, answerable: 1 of 337" in said
    assert "    labels, not supported: 2 of 72" in said
    assert "    benchmark basics: 2 of 94" in said
    enough = {**plan, "gates": [each for each in plan["gates"] if each.get("can_pass")]}
    assert not any(line.startswith("too few") for line in plan_lines(enough))


def test_what_run_would_refuse_is_refused(made: Path) -> None:
    (made.parent / "odd.toml").write_text(made.read_text() + "\n[gates.citation]\ncitation_recall = 1.5\n")
    with pytest.raises(UsageError, match="out of range"):
        asyncio.run(plan_workflow("source-attribution", made.parent / "odd.toml", None))
