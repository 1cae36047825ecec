"""What a workflow's jobs are given, wherever the run's folder is."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.cli.main import run as realign
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.stop import Stop
from realign_cluster.coordinator.workflow_jobs import JobRunner, Where
from realign_cluster.domain.training import TrainSettings
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.jobs import ArtifactId, ModelRef, Train

from .made_workflow import MadeWorkflow, Unseen


def test_benchmarks_of_a_training_are_found_after_the_run_was_moved(tmp_path: Path) -> None:
    def benchmark_in(run: Path) -> Path:
        store = ArtifactStore(run / "artifacts")
        rows = ArtifactId(store.put_rows([{"prompt": "2 + 2 =", "answer": "4"}]))
        settings = TrainSettings(steps=1, global_batch=1)
        job = Train(
            title="training", model=ModelRef(path="model"), data=rows, benchmarks={"sums": rows}, settings=settings
        )
        runner = JobRunner(run, store, Where(), ClusterHome(tmp_path / "home"), Unseen(), Stop())
        [path] = runner._benchmarks(job, run / "jobs" / "a training")
        return Path(path)

    before = benchmark_in(tmp_path / "run")
    assert before.name == "sums.jsonl"
    (tmp_path / "run").rename(tmp_path / "moved")
    assert benchmark_in(tmp_path / "moved").read_text() == '{"prompt":"2 + 2 =","answer":"4"}\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path / "home"))


def start(made: MadeWorkflow, *where: str) -> int:
    """The command as a user gives it: its exit code."""
    config = ("--config", str(made.folder / "workflow.toml"), "--out", str(made.run))
    return realign(["workflow", "run", made.workflow, *config, *where])


def test_a_run_whose_nodes_do_not_answer_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = MadeWorkflow(tmp_path / "made")
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text('{"hosts": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"], "name": "alpha"}]}')
    assert start(made, "--hostfile", str(hostfile)) == 3
    assert "0 of 1 nodes are there" in capsys.readouterr().err
    assert not made.run.exists()


def test_a_run_without_a_cluster_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MadeWorkflow(tmp_path / "made")
    assert start(made) == 2
    assert "no cluster was named" in capsys.readouterr().err
    assert not made.run.exists()


def test_a_run_that_is_gone_on_with_asks_for_no_node_before_it_has_something_for_it(tmp_path: Path) -> None:
    """What it has measured is judged again without a cluster."""
    made = MadeWorkflow(tmp_path / "made", mode="strict")
    assert made.sit() == 1
    made.write_config(mode="strict", gates={"preparation": {"perplexity": 900001}})
    assert start(made) == 1
    assert made.run.exists()
