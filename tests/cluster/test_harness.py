"""Tasks of lm-evaluation-harness on real daemons: the figures of one process, from rows that two nodes cannot halve."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.coordinator.stop import Stop
from realign_cluster.coordinator.workflow import register_in
from realign_cluster.coordinator.workflow_jobs import JobRunner, Where
from tests.cluster.kit import CurateCluster
from tests.workflows.harness_kit import measured, opened, write_workflow
from tests.workflows.local_jobs import LocalJobs, Silent

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(600)]
QUESTIONS = 302
TASKS = (
    *("[benchmarks.choosing]", 'task = "made_choosing"'),
    *("[benchmarks.writing]", 'task = "made_writing"', 'filter = "first word"', "limit = 41"),
)


def test_two_nodes_give_the_figures_of_one_process(
    pair: CurateCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    monkeypatch.setenv("REALIGN_HOME", str(pair.realign_home))
    path = write_workflow(tmp_path, *TASKS, questions=QUESTIONS)
    with opened(path, tmp_path / "alone") as run:
        jobs = LocalJobs(run.folder.path, run.artifacts, Where(), pair.home, Silent(), Stop())
        _, alone = measured(run, jobs)
    with opened(path, tmp_path / "spread") as run:
        where = Where(hostfile=pair.hostfile("alpha", "beta"))
        register = register_in(run.ledger)
        runner = JobRunner(run.folder.path, run.artifacts, where, pair.home, Silent(), Stop(), register=register)
        _, spread = measured(run, runner)
        assert register.read() == {"alpha", "beta"}
    likely = spread["now: likelihoods of tasks, plain"].done
    rows = [node["rows"] for node in likely.nodes.values()]
    assert min(rows) > 0
    assert sum(rows) == sum(2 + at % 3 for at in range(QUESTIONS))
    assert sum(rows) % 2
    one, two = (each["now: metrics of tasks"].done.result for each in (alone, spread))
    assert two.value == one.value
    assert two.outputs == one.outputs
