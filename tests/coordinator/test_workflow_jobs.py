"""What a workflow's jobs are given, wherever the run's folder is."""

from __future__ import annotations

from pathlib import Path

from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.stop import Stop
from realign_cluster.coordinator.workflow_jobs import JobRunner, Where
from realign_cluster.domain.training import TrainSettings
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.jobs import ArtifactId, ModelRef, Train

from .made_workflow import Unseen


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
