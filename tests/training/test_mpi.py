"""Ranks over Open MPI: children of whoever started them, in the world of one mpirun that rank 0 starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
import pytest

from realign_cluster.domain.rank_report import Ended, Failed, StepDone
from realign_cluster.domain.training import OptimizerSettings, TrainJob
from realign_cluster.domain.world import RankSpec, WorldPlan
from realign_cluster.store.state_part import data_path, list_parts
from realign_cluster.training.mpi import NoMpi, take_place, world_command
from realign_cluster.training.mpi_place import meeting_place
from tests.training.rank_driver import ROOT, TINY, Crew, RankProcess, prepared_job, replicas, single

Prepared = tuple[TrainJob, Path]
Trained = tuple[list[float], dict[str, Any], list[Ended]]
PLAIN = OptimizerSettings(name="sgd", learning_rate=0.1, schedule="constant", clip_norm=None, weight_decay=0.0)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of its own, with a short path: ranks meet their places at a socket in it."""
    with tempfile.TemporaryDirectory(prefix="mpi") as folder:
        monkeypatch.setenv("HOME", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A job whose weights show its gradients, and the folder of its prepared data."""
    folder = tmp_path_factory.mktemp("instructions")
    lines = (ROOT / "examples" / "data" / "instructions.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(dict.fromkeys(lines[:40])))
    return prepared_job(folder, folder / "train.jsonl", steps=3, global_batch=8, optimizer=PLAIN), folder / "data"


def over_mpi(world: WorldPlan) -> WorldPlan:
    return world.model_copy(update={"backend": "mpi"})


def trained(folder: Path, job: TrainJob, world: WorldPlan, data: Path) -> Trained:
    """Losses by step, weights of the first rank's last state, ends. All processes have ended by themselves."""
    with Crew(folder, job, world, data=data) as crew:
        crew.go()
        ends = crew.finish()
        for rank in crew.ranks:
            assert rank.process.wait(20) == 0, rank.errors.read_text()
        (newest,) = [part for part in list_parts(folder / "state-0") if part.step == job.steps][:1]
        arrays = mx.load(str(data_path(folder / "state-0", newest)))
        assert isinstance(arrays, dict)
        weights = {name: np.array(value) for name, value in arrays.items() if name.startswith("weights/")}
        return crew.losses(), weights, ends


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, instructions: Prepared) -> Trained:
    return trained(tmp_path_factory.mktemp("alone"), instructions[0], single(), instructions[1])


def test_two_ranks_train_as_one_does(tmp_path: Path, instructions: Prepared, alone: Trained) -> None:
    losses, weights, _ = alone
    mpi_losses, mpi_weights, ends = trained(tmp_path, instructions[0], over_mpi(replicas(65, 35)), instructions[1])
    assert len({end.digest for end in ends}) == 1
    assert mpi_losses == pytest.approx(losses, rel=1e-5)
    moved = [name for name in weights if name.endswith("lora_b")]  # from zero, by the learning rate times gradients
    assert moved
    for name in moved:
        assert np.linalg.norm(weights[name]) > 0
        assert np.linalg.norm(mpi_weights[name] - weights[name]) <= 1e-5 * np.linalg.norm(weights[name]), name
    meetings = meeting_place("127.0.0.1:1").parent
    assert list(meetings.iterdir()) == []
    assert meetings.stat().st_mode & 0o077 == 0
    left = [process for process in psutil.Process().children(recursive=True) if "mpi" in " ".join(process.cmdline())]
    assert left == []


def test_a_model_in_parts_trains_over_mpi(tmp_path: Path, instructions: Prepared, alone: Trained) -> None:
    """Its ranks send and receive, which MPI does one after the other."""
    job, data = instructions
    world = WorldPlan(
        parallel="pipeline", backend="mpi", nodes=("alpha", "beta"), shares=(0.3, 0.7), layers=((0, 1), (1, 3))
    )
    losses, _, _ = trained(tmp_path, job, world, data)
    assert losses == pytest.approx(alone[0], rel=1e-5)


def failure(rank: RankProcess) -> Failed:
    while (report := rank.hear()) is not None:
        if isinstance(report, Failed):
            return report
    raise AssertionError(f"it ended without a word\n{rank.errors.read_text()}")


def test_ranks_that_were_told_different_things_refuse(tmp_path: Path, instructions: Prepared) -> None:
    job, data = instructions
    world = over_mpi(replicas(1, 1))
    other = world.model_copy(update={"shares": (0.6, 0.4)})
    with Crew(tmp_path, job, world, data=data) as crew:
        crew.ranks[1].kill()
        crew.ranks[1] = RankProcess(tmp_path, job, RankSpec(generation=1, rank=1, world=other), TINY, data)
        crew.go()
        failed = failure(crew.ranks[0])
        assert (failed.code, failed.fatal) == ("world", True)
        assert failed.message == "rank 1 has shares [0.6, 0.4], rank 0 [0.5, 0.5]"


def test_when_the_rank_that_started_mpirun_dies_all_end(tmp_path: Path, instructions: Prepared) -> None:
    job, data = instructions
    endless = job.model_copy(update={"steps": 100_000})
    before = psutil.Process().children(recursive=True)  # what other tests of this process have left
    with Crew(tmp_path, endless, over_mpi(replicas(1, 1)), data=data) as crew:
        crew.go()
        for rank in crew.ranks:
            rank.until(StepDone, step=2)
        processes = [process for process in psutil.Process().children(recursive=True) if process not in before]
        assert [process.name() for process in processes].count("mpirun") == 1
        assert len(processes) == 5  # it, two ranks and their places
        crew.ranks[0].process.kill()
        failed = failure(crew.ranks[1])
        assert (failed.code, failed.fatal) == ("peer", False)
        assert "another rank has gone" in failed.message
        assert psutil.wait_procs(processes, timeout=20)[1] == []


def test_a_node_without_open_mpi_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoMpi, match="there is no mpirun on this node") as refused:
        take_place(0, ["127.0.0.1:5001", "127.0.0.1:5002"], pytest.fail)
    assert "sudo apt-get install openmpi-bin" in refused.value.fix


def test_an_mpirun_that_gives_up_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mpirun").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "mpirun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match="Open MPI made no world: mpirun ended with status 7"):
        take_place(0, ["127.0.0.1:5001", "127.0.0.1:5002"], pytest.fail)
    assert list(meeting_place("127.0.0.1:5001").parent.iterdir()) == []


def test_one_mpirun_has_a_process_on_each_ranks_machine_in_their_order() -> None:
    contexts = " ".join(world_command(["10.0.0.2:5001", "10.0.0.1:5002", "10.0.0.2:5003"])).split(" : ")
    assert [context.split("--host ")[1].split()[0] for context in contexts] == ["10.0.0.2", "10.0.0.1", "10.0.0.2"]
    assert [context.split()[-1] for context in contexts] == ["10.0.0.2:5001", "10.0.0.1:5002", "10.0.0.2:5003"]
