"""Tasks of lm-evaluation-harness: the cluster's answers give the figures that the harness gets from one process with
mlx-lm's own model, and what will not do is refused before anything runs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.cli.workflow_plan import plan_workflow
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.stop import Stop
from realign_cluster.coordinator.workflow_jobs import Where
from realign_cluster.coordinator.workflow_jobs_here import derive_here
from realign_cluster.coordinator.workflow_record import WorkflowRun
from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows import harness_process
from realign_cluster.workflows.config import HarnessTask, read_config
from realign_cluster.workflows.derive import derive
from realign_cluster.workflows.harness import PASS, harness_scores
from realign_cluster.workflows.harness_process import Asked, TaskRefused, prepared_tasks
from realign_cluster.workflows.jobs import ArtifactId, Derive
from realign_cluster.workflows.measured import value_of
from tests.fixtures.models import TINY_MODEL
from tests.workflows.harness_kit import QUESTIONS, measured, opened, write_tasks, write_workflow
from tests.workflows.local_jobs import LocalJobs, Silent

FOUR = (
    *("[benchmarks.choosing]", 'task = "made_choosing"', "num_fewshot = 2"),
    *("[benchmarks.normalised]", 'task = "made_choosing"', 'metric = "acc_norm"', "limit = 7"),
    *("[benchmarks.asking]", 'task = "made_asking"', "num_fewshot = 1", "chat = true"),
    *("[benchmarks.writing]", 'task = "made_writing"', 'filter = "first word"'),
)
GROUP = ("[benchmarks.group]", 'task = "made_group"', "limit = 5")


def local(run: WorkflowRun, home: Path) -> LocalJobs:
    return LocalJobs(run.folder.path, run.artifacts, Where(), ClusterHome(home), Silent(), Stop())


def by_one_process(tasks: Path, name: str, **more: Any) -> dict[str, Any]:
    """What the harness says with mlx-lm's model, a question at a time."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from mlx_lm.evaluate import MLXLM

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tasks)
        found: dict[str, Any] = simple_evaluate(
            model=MLXLM(str(TINY_MODEL), use_chat_template=bool(more.get("apply_chat_template"))),
            tasks=[name],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            **more,
        )
    return found


@pytest.fixture
def harness() -> None:
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")


# --- figures ---


@pytest.mark.usefixtures("harness")
def test_its_figures_are_those_of_one_process_with_mlx_lm(tmp_path: Path) -> None:
    with opened(write_workflow(tmp_path, *FOUR), tmp_path / "run") as run:
        evaluation, made = measured(run, local(run, tmp_path))
        likely = [
            row
            for chat in ("plain", "chat")
            for row in run.artifacts.rows(made[f"now: likelihoods of tasks, {chat}"].done.result.outputs["rows"])
        ]
        scoring = made["now: metrics of tasks"]
        scores = list(run.artifacts.rows(scoring.done.result.outputs["scores"]))
        assert isinstance(scoring.job, Derive)
        turned = {
            name: ArtifactId(run.artifacts.put_rows(reversed([*run.artifacts.rows(each)])))
            for name, each in scoring.job.inputs.items()
            if name.startswith(PASS)
        }
        other = scoring.job.model_copy(update={"inputs": scoring.job.inputs | turned})
        again = derive_here(other, run.artifacts, tmp_path / "scratch")
    assert len(turned) == 3
    assert again.outputs == scoring.done.result.outputs  # whatever order answers come in
    tasks = tmp_path / "tasks"
    alone = {
        "choosing": by_one_process(tasks, "made_choosing", num_fewshot=2),
        "normalised": by_one_process(tasks, "made_choosing", limit=7),
        "asking": by_one_process(tasks, "made_asking", num_fewshot=1, apply_chat_template=True),
        "writing": by_one_process(tasks, "made_writing"),
    }
    for name, metric, filter_name in (
        ("choosing", "acc", "none"),
        ("normalised", "acc_norm", "none"),
        ("asking", "acc", "none"),
        ("writing", "exact_match", "first word"),
    ):
        (task,) = alone[name]["results"]
        figure = alone[name]["results"][task][f"{metric},{filter_name}"]
        assert 0 < figure < 1  # an order could be wrong
        assert scoring.done.result.value["results"][name][task][f"{metric},{filter_name}"] == figure
        samples = [sample for sample in alone[name]["samples"][task] if sample["filter"] == filter_name]
        mine = [(row["item"], row["score"]) for row in scores if row["benchmark"] == name]
        assert mine == [(str(sample["doc_id"]), float(sample[metric])) for sample in samples]
        assert value_of(evaluation.measurements[f"accuracy of {name}"]) == pytest.approx(figure)
    measured_of_choices = scoring.done.result.value["results"]["choosing"]["made_choosing"]
    assert set(measured_of_choices) == {"acc,none", "acc_norm,none"}  # exact_match is none: it was not measured
    for name in ("choosing", "asking"):
        theirs = [resp[0] for each in alone[name]["samples"][f"made_{name}"] for [resp] in each["resps"]]
        ours = [row["scores"]["loglik"]["sum"] for row in likely if row["set"] == f"harness {name}"]
        assert len(theirs) % 2
        assert ours == pytest.approx(theirs, abs=1e-3)
    said = [row["said"] for row in scores if row["benchmark"] == "writing"]
    assert said == [sample["resps"][0][0] for sample in samples]


@pytest.mark.usefixtures("harness")
def test_a_group_is_compared_with_its_baseline_item_by_item(tmp_path: Path) -> None:
    with opened(write_workflow(tmp_path, *GROUP), tmp_path / "run") as run:
        before, made = measured(run, local(run, tmp_path))
        after, _ = measured(run, local(run, tmp_path), **{"baseline benchmarks": before.artifacts["benchmarks"]})
    pair = after.benchmarks["group"]
    assert pair.items == tuple(f"{task}/{at}" for task in ("made_choosing", "made_again") for at in range(5))
    assert pair.after == pair.before
    assert pair.chance == pytest.approx(math.fsum(1 / (2 + at % 3) for at in range(5)) / 5)
    results = made["now: metrics of tasks"].done.result.value["results"]["group"]
    assert results["made_group"]["acc,none"] == pytest.approx(math.fsum(pair.after) / 10)


@pytest.mark.usefixtures("harness")
def test_a_task_that_asks_something_else_by_now_is_not_scored(tmp_path: Path) -> None:
    with opened(write_workflow(tmp_path, *GROUP), tmp_path / "run") as run:
        folder = run.artifacts.folder_path(run.state.data["tasks group"])
        rows = (folder / "choosing.jsonl").read_text()
        (folder / "choosing.jsonl").write_text(rows.replace("Write a card.", "Write two cards."))
        with pytest.raises(RunFailed, match="group: the task gives other requests than those that were scored"):
            measured(run, local(run, tmp_path))


@pytest.mark.usefixtures("harness")
async def test_the_plan_counts_its_items_and_its_chance(tmp_path: Path) -> None:
    plan = await plan_workflow("source-attribution", write_workflow(tmp_path, *GROUP), None)
    gates = [gate for gate in plan["gates"] if gate["gate"] == "retention_group"]
    assert gates
    assert all(gate["items"] == 10 and gate["items_if_perfect"] > 10 for gate in gates)
    (asked,) = [each for each in plan["costs"] if each["title"] == "baseline: likelihoods of tasks, plain"]
    assert (asked["what"], asked["units"] > 0) == ("loglik", True)


def test_an_answer_that_is_not_there_is_named(tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path / "artifacts")
    request = {"id": "3", "request": "loglikelihood", "item": "1", "prompt": "a", "response": " b", "chance": 0.5}
    scored = {"set": "harness made", "id": "2", "scores": {"loglik": {"sum": -1.0, "truncated": False}}}
    inputs = {
        "harness made": ArtifactId(artifacts.put_rows([{**request, "metric": "acc", "filter": "none"}])),
        "pass 0": ArtifactId(artifacts.put_rows([scored])),
    }
    job = derive(harness_scores, "", inputs=inputs, tasks={"made": {"task": "made"}})
    with pytest.raises(RunFailed, match="benchmark made: the request 3 of item 1 could not be scored"):
        derive_here(job, artifacts, tmp_path / "scratch")


# --- what will not do ---


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(
    ("task", "key", "said"),
    [
        ({"task": "made_rolling"}, "task", "made_rolling asks for rolling log-likelihoods of whole texts"),
        ({"task": "made_ending"}, "task", "acc of made_ending asks whether an answer is the likeliest of all texts"),
        ({"task": "made_alone"}, "task", "made_alone wants text of which nothing stands before it"),
        ({"task": "made_own"}, "chance", "missing: made_own scores by a function of its own"),
        ({"task": "made_beams"}, "task", "made_beams sets num_beams for its answers"),
        ({"task": "made_missing"}, "task", "made_missing cannot be loaded"),
        ({"task": "made_mixed"}, "task", "made_mixed has no metric in [0, 1] that each document has"),
        ({"task": "made_choosing", "metric": "f1"}, "metric", "made_choosing has no metric f1"),
        ({"task": "made_choosing", "metric": "exact_match"}, "metric", "exact_match of made_choosing asks whether"),
        ({"task": "made_writing", "filter": "last word"}, "filter", "made_writing has no metric after filter last"),
        ({"task": "made_fixed", "num_fewshot": 3}, "num_fewshot", "made_fixed is a task without examples"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, Any], key: str, said: str
) -> None:
    from realign_cluster.workflows.harness_tasks import requests_of

    monkeypatch.chdir(tmp_path)
    folder = str(write_tasks(tmp_path / "tasks"))
    with pytest.raises(TaskRefused) as refused:
        requests_of(Asked(name="made", task=HarnessTask.model_validate(task), folder=folder))
    assert refused.value.key == key
    assert refused.value.what.startswith(said)
    assert refused.value.fix


@pytest.mark.usefixtures("harness")
def test_chance_is_told_where_only_the_user_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from realign_cluster.workflows.harness_tasks import requests_of

    monkeypatch.chdir(tmp_path)
    folder = str(write_tasks(tmp_path / "tasks"))
    rows = requests_of(Asked(name="made", task=HarnessTask(task="made_own", chance=0.3), folder=folder))["rows"]
    assert [row["chance"] for row in rows] == [0.3] * 2 * QUESTIONS


@pytest.mark.usefixtures("harness")
def test_an_unknown_task_gets_the_nearest_one_and_its_line(tmp_path: Path) -> None:
    path = write_workflow(tmp_path, "[benchmarks.made]", 'task = "made_chosing"')
    with pytest.raises(UsageError) as refused:
        prepared_tasks(read_config(path), path)
    line = path.read_text().splitlines().index('task = "made_chosing"') + 1
    said = "benchmarks.made.task: there is no task 'made_chosing'; did you mean 'made_choosing'?"
    assert refused.value.message == f"{path}:{line}: {said}"


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_process, "PACKAGE", "no_package_of_this_name")
    path = write_workflow(tmp_path, "[benchmarks.made]", 'task = "made_choosing"')
    with pytest.raises(UsageError, match="which is not installed") as refused:
        prepared_tasks(read_config(path), path)
    assert "pip install 'realign-cluster[harness]'" in str(refused.value)


def test_its_folder_has_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_process, "PACKAGE", "json")
    path = write_workflow(tmp_path, "[benchmarks.made]", 'task = "made_choosing"')
    path.write_text(path.read_text().replace('"../tasks"', '"../nowhere"'))
    with pytest.raises(UsageError, match=r"benchmarks\.made\.include: .*nowhere is no folder"):
        prepared_tasks(read_config(path), path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("num_fewshots = 2", "benchmarks.made.num_fewshots: unknown; did you mean 'num_fewshot'?"),
        ("limit = 0", "benchmarks.made.limit: Input should be greater than or equal to 1"),
    ],
)
def test_a_key_of_its_table_that_is_wrong(tmp_path: Path, line: str, said: str) -> None:
    path = write_workflow(tmp_path, "[benchmarks.made]", 'task = "made_choosing"', line)
    with pytest.raises(UsageError) as refused:
        read_config(path)
    assert refused.value.message == f"{path}:{path.read_text().splitlines().index(line) + 1}: {said}"
