"""The end of a sitting: what was trained is written out by a process of its own, which may be interrupted too."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest
from safetensors.numpy import load_file

from realign_cluster.coordinator.dashboard import make_dashboard
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.part_store import manifest_of
from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.train import train
from realign_cluster.coordinator.train_finish import EXPORT_MODULE, finish_training
from realign_cluster.coordinator.train_record import TrainRun, open_train_run
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.domain.errors import RunFailed
from realign_cluster.domain.rank_report import Diverged, Evaluated
from realign_cluster.domain.recovery_codec import encode
from realign_cluster.domain.recovery_commands import Finish, Remember
from realign_cluster.domain.run_memory import RunMemory
from realign_cluster.domain.training import EvaluationSettings, KlSettings, TrainSettings
from realign_cluster.store.state_part import PartHeader, data_path, manifest_path, write_part
from realign_cluster.store.train_ledger import Measurement
from tests.cluster.kit import TINY_MODEL, write_rows
from tests.cluster_kit import wait_until


def opened(folder: Path, **settings: Any) -> TrainRun:
    rows = write_rows(folder / "rows.jsonl", [{"prompt": f"q{index}", "completion": "a"} for index in range(8)])
    chosen = TrainSettings(global_batch=4, **settings)
    return open_train_run(TrainRequest(data=(str(rows),), model=str(TINY_MODEL), out=folder / "run", settings=chosen))


def store_checkpoint(run: TrainRun, folder: Path, step: int) -> None:
    """Whose weights are the number of its step."""
    header = PartHeader(kind="checkpoint", step=step, part=0, parts=1, layout="whole")
    weights = np.full(2, step, np.float32)
    part = write_part(folder, header, [("weights/a", "F32", (2,), weights)], durable=False)
    store = run.checkpoints
    store.begin(step)
    store.receive(part, manifest_path(folder, part).read_bytes(), [data_path(folder, part).read_bytes()])
    store.commit(manifest_of(run, step, [part]))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TrainRun]:
    """All steps are done, and the last checkpoint is stored."""
    made = opened(tmp_path, steps=2)
    store_checkpoint(made, tmp_path, 2)
    yield made
    made.close()


def _writing() -> list[psutil.Process]:
    """Children that are that program already: until then they have this process's handling of signals."""
    return [child for child in psutil.Process().children() if EXPORT_MODULE in child.cmdline()]


async def interrupted_export(run: TrainRun, stop: Stop) -> None:
    finish = Finish(state="complete", reason="all is done")
    finishing = asyncio.create_task(finish_training(run, finish, {}, note=lambda text, level: None, stop=stop))
    [child] = await asyncio.to_thread(wait_until, _writing, 10, "the process that writes it")
    child.send_signal(signal.SIGINT)
    await finishing


async def test_interrupted_at_the_terminal_it_may_be_done_again(run: TrainRun) -> None:
    stop = Stop(asked=True)
    with pytest.raises(StopAsked):
        await interrupted_export(run, stop)
    assert not run.folder.output.exists()
    assert not run.ledger.meta("finished")


async def test_what_is_trained_is_written_without_any_node(run: TrainRun, tmp_path: Path) -> None:
    run.ledger.record(0.0, memory=encode(Remember(memory=RunMemory(generation=1, complete_step=2))))
    run.close()
    request = run.request.model_copy(update={"hostfile": tmp_path / "none.json"})
    assert await train(request, dashboard=make_dashboard(json_lines=False), home=ClusterHome(tmp_path / "home")) == 0
    assert (run.folder.output / "adapters.safetensors").exists()
    assert orjson.loads(run.folder.summary.read_bytes())["state"] == "complete"


async def test_an_export_that_fails_of_itself_is_a_failure(run: TrainRun) -> None:
    with pytest.raises(RunFailed, match="only this is repeated"):
        await interrupted_export(run, Stop())


@pytest.mark.parametrize(("patience", "written"), [(2, 4.0), (None, 8.0)])
async def test_the_best_checkpoint_comes_out_where_early_stopping_was_asked_for(
    tmp_path: Path, patience: int | None, written: float
) -> None:
    evaluation = EvaluationSettings(every=2, patience=patience)
    with contextlib.closing(opened(tmp_path, steps=20, evaluation=evaluation)) as run:
        for step, loss in {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1}.items():
            report = Evaluated(step=step, metrics={"loss": loss}, seconds=1.0)
            run.ledger.record(0.0, measurements=[measured("evaluated", report)])
            store_checkpoint(run, tmp_path, step)
        said: list[str] = []
        over = Finish(state="complete", reason="early stop")
        summary = await finish_training(run, over, {}, note=lambda text, level: said.append(text), stop=Stop())
    assert said[-1] == f"report: {(tmp_path / 'run' / 'report.html')}"
    assert summary["output"] == "output"
    assert load_file(tmp_path / "run" / "output" / "adapters.safetensors")["a"].tolist() == [written, written]


def measured(kind: str, report: Evaluated | Diverged) -> Measurement:
    body = report.model_dump(mode="json")
    return Measurement(kind=kind, step=report.step, generation=1, node="one", wall=0.0, body=body)


@pytest.mark.parametrize(("within", "damaged", "written"), [(4, False, 4.0), (0, False, None), (4, True, None)])
async def test_what_was_within_the_budget_comes_out_of_a_run_that_its_divergence_ended(
    tmp_path: Path, within: int, damaged: bool, written: float | None
) -> None:
    """The checkpoint of step 5 lies between a measurement that was within and one that was not."""
    with contextlib.closing(opened(tmp_path, steps=20, kl=KlSettings(every=2, budget=0.1, action="stop"))) as run:
        kls = {2: 0.05, 4: 0.08, 6: 0.3} if within else {6: 0.3}
        run.ledger.record(
            0.0,
            measurements=[
                measured("divergence", Diverged(step=step, kl=kl, tokens=9, seconds=1.0)) for step, kl in kls.items()
            ],
            memory=encode(Remember(memory=RunMemory(generation=1, within_budget_step=within))),
        )
        for step in (2, 4, 5, 6):
            store_checkpoint(run, tmp_path, step)
        if damaged:
            [file] = run.checkpoints.path(4).glob("*.safetensors")
            file.write_bytes(file.read_bytes()[:-1])
        said: list[str] = []
        over = Finish(state="failed", reason="KL 0.3 after step 6 is over the budget of 0.1")
        summary = await finish_training(run, over, {}, note=lambda text, level: said.append(text), stop=Stop())
    assert summary["state"] == "failed"
    assert orjson.loads((tmp_path / "run" / "summary.json").read_bytes())["reason"] == over.reason
    assert damaged == any("what was trained could not be written" in text for text in said)
    if written is None:
        assert summary["output"] is None
        assert not (tmp_path / "run" / "output").exists()
    else:
        assert summary["output"] == "output"
        assert load_file(tmp_path / "run" / "output" / "adapters.safetensors")["a"].tolist() == [written, written]
        assert any("step 4, which was within the KL budget" in text for text in said)
