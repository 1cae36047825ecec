"""What a plan lists is what a run asks for: the jobs of runs that were done, held against those of the rehearsal.

That of a whole run is beside the report's tests, which have one.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.workflows.template import write_template
from tests.coordinator.made_workflow import TINY_MODEL, MadeWorkflow
from tests.workflows.injected_faults import run_of
from tests.workflows.rehearsed import PAIRS_MADE, JobAsked, as_asked, jobs_done, rehearsal_of
from tests.workflows.small_workflow import make_base

BY_JUDGE = "verification by the judge"
OF_FILES = ("examples: ", "baseline: labelled pairs: ")  # what a judge is asked of what users wrote


def judged(folder: Path, **config: Any) -> MadeWorkflow:
    """By a model that is another than the one that is trained; one round in stage 6."""
    made = MadeWorkflow(folder, tables='[verifier]\nkind = "judge"\nmodel = "judge"', **config)
    shutil.copytree(TINY_MODEL, folder / "judge")
    card = orjson.loads((folder / "judge" / "config.json").read_bytes())
    (folder / "judge" / "config.json").write_bytes(orjson.dumps({**card, "rope_theta": 5000.0}))
    config_file = folder / "workflow.toml"
    config_file.write_text(config_file.read_text().replace("rounds = 2", "rounds = 1"))
    return made


def listed(made: MadeWorkflow, folder: Path) -> list[JobAsked]:
    plan = rehearsal_of(made.folder / "workflow.toml", made.workflow, folder)
    assert not plan.stopped
    return [as_asked(each) for each in plan.jobs]


def check_alike(asked: list[JobAsked], done: list[JobAsked]) -> None:
    """Every job in its place; as many rows, but for what hangs on what a model says: that is a bound."""
    assert [replace(each, rows=0) for each in asked] == [replace(each, rows=0) for each in done]
    for plan, run in zip(asked, done, strict=True):
        if plan.title.endswith(BY_JUDGE) and not plan.title.startswith(OF_FILES):
            assert 0.5 * plan.rows <= run.rows <= plan.rows, plan.title
        elif plan.title != PAIRS_MADE:
            assert plan.rows == run.rows, plan.title


def test_a_judge_s_passes_are_those_of_the_run(tmp_path: Path) -> None:
    """As far as the answers after stage 3's training."""
    made = judged(tmp_path / "made", gates={"preparation": {"perplexity": 900000}})
    assert made.sit(killed_at=36) == -1
    done = jobs_done(made.run)
    assert [each.title for each in done if each.kinds == ("judge",)] == [
        f"{what}: {BY_JUDGE}"
        for what in ("baseline", "baseline: labelled pairs", "examples", "after citation training")
    ]
    check_alike(listed(made, tmp_path / "plan")[: len(done)], done)


def test_what_tasks_ask_is_listed_with_every_evaluation(tmp_path: Path) -> None:
    """Of lm-evaluation-harness: one pass over what is weighed, another over what is answered, for each model."""
    *_, config_file = write_template("source-attribution", tmp_path / "made")
    text = config_file.read_text().replace("\nbasics = ", '\nscience = { task = "made" }\nbasics = ')
    config_file.write_text(text)
    choices = [
        {"id": f"c{at}", "item": str(at // 4), "prompt": "A bird", "response": f" {at}", "chance": 0.25}
        for at in range(40)
    ]
    sampling = {"max_new_tokens": 12, "temperature": 0.0}
    written = [
        {"id": f"w{at}", "item": f"w{at}", "prompt": "A bird", "chance": 0.0, "sampling": sampling} for at in range(7)
    ]
    plan = rehearsal_of(config_file, "source-attribution", tmp_path / "plan", {"science": [*choices, *written]})
    assert not plan.stopped
    asked = [as_asked(each) for each in plan.jobs]
    weighed = {each.title.partition(":")[0]: each.rows for each in asked if "likelihoods of tasks" in each.title}
    answered = {each.title.partition(":")[0]: each.rows for each in asked if "answers to tasks" in each.title}
    rounds = [f"after round {number}" for number in (1, 2, 3)]
    models = ["baseline", "after citation training", "after optimisation", *rounds]
    assert weighed == dict.fromkeys(models, 40)
    assert answered == dict.fromkeys(models, 7)


@pytest.mark.soak
def test_a_judge_is_asked_as_often_as_the_plan_says(tmp_path: Path) -> None:
    made = judged(tmp_path / "made")
    assert made.sit() == 0
    check_alike(listed(made, tmp_path / "plan"), jobs_done(made.run))


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_a_run_that_was_trained_asks_for_what_the_plan_lists(tmp_path: Path) -> None:
    """Scored and trained by what workers and ranks run."""
    base = make_base(tmp_path / "base")
    for seed, name in enumerate(("source-attribution", "antihallucination")):
        folder = tmp_path / name
        run = run_of(None, seed, folder, base)
        plan = rehearsal_of(folder / "files" / "workflow.toml", name, folder / "plan")
        check_alike([as_asked(each) for each in plan.jobs], jobs_done(run))
