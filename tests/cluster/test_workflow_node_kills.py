"""Nodes killed in the middle of a workflow's stages. Where they come back the run ends as one that was left alone, to
the bit; where they do not, with the same verdicts.

The workflow is small and real: a model that learns to cite in a minute, gates that it passes on its merit. Stage 5
trains adapters, so that what the stages after it judge is a model that they were put into.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.store.artifacts import ArtifactStore
from tests.cluster.kit import CurateCluster, output_bytes, write_rows
from tests.cluster.train_kills import Kill, strike, wait_for_new_steps
from tests.cluster.train_kit import NodeProcesses, history_of
from tests.cluster.workflow_kit import (
    LONG,
    WorkflowRun,
    attempts_at,
    check_each_job_was_done_once,
    folder_of,
    job_titled,
    jobs_of,
    made_by_jobs,
    outcomes_of,
    start_workflow,
    summary_of,
    verdicts_of,
)
from tests.workflows.small_workflow import healthy, make_base

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1500)]

STAGE_3, STAGE_5 = "citation training", "preference training"
JUDGED_IN_STAGE_4 = "after citation training: answers"
AWAY_SECONDS = 4.5  # longer than a node's lease


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with workflow.toml, data and base model."""
    folder = tmp_path_factory.mktemp("made")
    workflow = healthy(0)
    trainings = workflow.config["training"]
    for training in trainings.values():
        training["reproducible"] = True
    trainings["preference"] |= {"fine_tune": "lora", "adapter": {"rank": 4, "layers": -1, "scale": 10.0}}
    trainings["preference"]["optimizer"]["learning_rate"] = 1e-3
    workflow.write(folder / "workflow", make_base(folder / "base"))
    return folder / "workflow"


class Workflows:
    """`realign workflow run` on a cluster's nodes; what still runs at the end is killed."""

    def __init__(self, cluster: CurateCluster, made: Path) -> None:
        self.cluster = cluster
        self.made = made

    def start(self, out: Path, *more: str) -> WorkflowRun:
        realign = (sys.executable, "-m", "realign_cluster.cli.main", "workflow", "run", "source-attribution")
        options = ("--config", str(self.made / "workflow.toml"), "--out", str(out), "--reproducible", *more)
        hosts = ("--hostfile", str(self.cluster.hostfile()))
        return start_workflow(self.cluster, [*realign, *options, *hosts], out)


@pytest.fixture(scope="module")
def workflows(cluster: CurateCluster, made: Path) -> Workflows:
    return Workflows(cluster, made)


@pytest.fixture(scope="module")
def calm(workflows: Workflows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("calm") / "run"
    workflows.start(out).finish()
    assert {verdict["outcome"] for verdict in verdicts_of(out).values()} >= {"PASS"}
    return out


@pytest.fixture(autouse=True)
def both_daemons(pair: CurateCluster) -> Iterator[None]:
    yield
    for process in pair.processes:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def test_killed_in_stages_3_4_and_5_and_back_it_ends_as_one_that_was_left_alone(
    workflows: Workflows, calm: Path, tmp_path: Path
) -> None:
    out, rng = tmp_path / "run", random.Random(3)
    daemons, nodes = workflows.cluster.daemons, NodeProcesses(workflows.cluster)
    run = workflows.start(out)

    training = run.training_going_on(STAGE_3)
    wait_for_new_steps(training, 0, 5)
    in_stage_3 = strike(Kill(phase="reduce", victim="rank", node="beta", away=0.0), nodes, training, 0, rng)

    lease = run.kill_with_a_lease(JUDGED_IN_STAGE_4, daemons["alpha"])
    time.sleep(AWAY_SECONDS)
    daemons["alpha"].start()

    run.in_stage(4)
    daemons["beta"].kill()
    run.in_stage(5)
    time.sleep(AWAY_SECONDS)
    daemons["beta"].start()

    training = run.training_going_on(STAGE_5)
    wait_for_new_steps(training, 0, 5)
    in_stage_5 = strike(Kill(phase="reduce", victim="daemon", node="beta", away=0.0), nodes, training, 0, rng)
    time.sleep(AWAY_SECONDS)
    daemons["beta"].start()
    said = run.finish()

    for title, hit in ((STAGE_3, in_stage_3), (STAGE_5, in_stage_5)):
        first, *later = history_of(folder_of(out, title)).generations
        assert hit.place.startswith("reduce")
        assert "beta" in first.why, f"{title}: {first.why}"
        assert later, f"{title} was not interrupted"
        assert later[0].start_step > 0
        assert {each.nodes for each in later} == {first.nodes}
    [lost] = [each for each in attempts_at(out, JUDGED_IN_STAGE_4) if each.attempt == lease.attempt]
    assert lost.outcome != "committed", "the lease was not lost"
    again = [each for each in attempts_at(out, JUDGED_IN_STAGE_4) if each.unit == lease.unit]
    assert [each.outcome for each in again].count("committed") == 1
    assert "is away: waiting" in said  # whichever of the two was noticed between two jobs

    assert verdicts_of(out) == verdicts_of(calm)
    assert made_by_jobs(out) == made_by_jobs(calm)
    assert summary_of(out)["model"]["identity"] == summary_of(calm)["model"]["identity"]
    check_each_job_was_done_once(out)


def test_killed_in_stages_3_and_5_and_not_back_the_other_goes_on_and_the_verdicts_are_the_same(
    workflows: Workflows, calm: Path, tmp_path: Path
) -> None:
    """Beta is away as long as stage 3 trains; alpha, from stage 5 on, for good."""
    out, rng = tmp_path / "run", random.Random(5)
    daemons, nodes = workflows.cluster.daemons, NodeProcesses(workflows.cluster)
    run = workflows.start(out, "--min-nodes", "1", "--wait-seconds", "5")
    for title, victim in ((STAGE_3, "beta"), (STAGE_5, "alpha")):
        training = run.training_going_on(title)
        wait_for_new_steps(training, 0, 5)
        strike(Kill(phase="reduce", victim="daemon", node=victim, away=LONG), nodes, training, 0, rng)
        if title == STAGE_3:
            run.in_stage(4)
            daemons[victim].start()
    said = run.finish()

    for title, victim, other in ((STAGE_3, "beta", "alpha"), (STAGE_5, "alpha", "beta")):
        first, *later = history_of(folder_of(out, title)).generations
        assert (set(first.nodes), {each.nodes for each in later}) == ({"alpha", "beta"}, {(other,)})
        assert later[0].start_step > 0
        assert f"{victim} stayed away: it goes on without" in said
    started = history_of(folder_of(out, STAGE_5)).generations[0].started
    after = [job for job in jobs_of(out) if job.begun > started and job.request["what"] != "derive"]
    assert {node for job in after for node in (job.result or {})["nodes"]} == {"beta"}
    assert outcomes_of(out) == outcomes_of(calm)
    check_each_job_was_done_once(out)


def test_killed_for_good_where_nobody_said_that_fewer_will_do_it_waits_and_can_be_gone_on_with(
    workflows: Workflows, calm: Path, tmp_path: Path
) -> None:
    out, nodes = tmp_path / "run", NodeProcesses(workflows.cluster)
    run = workflows.start(out, "--wait-seconds", "4")
    training = run.training_going_on(STAGE_3)
    wait_for_new_steps(training, 0, 5)
    strike(Kill(phase="reduce", victim="daemon", node="alpha", away=LONG), nodes, training, 0, random.Random(7))
    assert "waited 4 s for alpha: the same world is asked for" in run.finish(1)
    workflows.cluster.daemons["alpha"].start()
    workflows.start(out).finish()
    assert verdicts_of(out) == verdicts_of(calm)
    assert made_by_jobs(out) == made_by_jobs(calm)


def test_what_stage_5_leaves_is_the_base_with_its_adapters_put_in(
    workflows: Workflows, calm: Path, tmp_path: Path
) -> None:
    """The same texts, and the same log-likelihoods in float32; not those of the base."""
    trained, judged = job_titled(calm, STAGE_5), job_titled(calm, "after optimisation: answers")
    assert trained is not None
    assert judged is not None
    fused = (trained.result or {})["outputs"]["model"]
    assert judged.request["model"]["artifact"] == fused, "another model was judged"

    store = ArtifactStore(calm / "artifacts")
    base = store.folder_path(trained.request["model"]["artifact"])
    adapter = folder_of(calm, STAGE_5) / "output"
    valid = [json.loads(line) for line in (workflows.made / "valid.jsonl").read_text().splitlines()[:80]]
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": row["prompt"], "response": row["completion"]} for row in valid]
    )
    scored = {
        name: scores_of(workflows.cluster, rows, tmp_path / name, *model)
        for name, model in {
            "adapted": ("--model", str(base), "--adapter", str(adapter)),
            "fused": ("--model", str(store.folder_path(fused))),
            "base": ("--model", str(base)),
        }.items()
    }
    assert scored["fused"][0] == scored["adapted"][0]
    assert scored["fused"][1] == pytest.approx(scored["adapted"][1], abs=1e-4)
    moved = [abs(one - other) for one, other in zip(scored["fused"][1], scored["base"][1], strict=True)]
    assert max(moved) > 1e-2, "the adapters change nothing"


def scores_of(cluster: CurateCluster, rows: Path, out: Path, *model: str) -> tuple[list[str], list[float]]:
    """Greedy texts and sums of log-likelihoods, by row."""
    said: list[list[dict[str, Any]]] = []
    for kind, more in (("generate", ("--temperature", "0", "--max-new-tokens", "16")), ("loglik", ())):
        run = out / kind
        done = cluster.run(cluster.command(rows, run, *model, "--score", kind, "--plain", "--reproducible", *more))
        assert done.returncode == 0, done.stderr
        said.append([json.loads(line) for part in output_bytes(run).values() for line in part.splitlines()])
    texts = [row["scores"]["generate"]["samples"][0]["text"] for row in said[0]]
    return texts, [row["scores"]["loglik"]["sum"] for row in said[1]]
