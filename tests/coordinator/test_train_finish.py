"""The end of a sitting: what was trained is written out by a process of its own, which may be interrupted too."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest

from realign_cluster.coordinator.dashboard import make_dashboard
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.part_store import manifest_of
from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.train import train
from realign_cluster.coordinator.train_finish import finish_training
from realign_cluster.coordinator.train_record import TrainRun, open_train_run
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.domain.errors import RunFailed
from realign_cluster.domain.recovery_codec import encode
from realign_cluster.domain.recovery_commands import Finish, Remember
from realign_cluster.domain.run_memory import RunMemory
from realign_cluster.domain.training import TrainSettings
from realign_cluster.store.state_part import PartHeader, data_path, manifest_path, write_part
from tests.cluster.kit import TINY_MODEL, write_rows
from tests.cluster_kit import wait_until


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TrainRun]:
    """All steps are done, and the last checkpoint is stored."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"q{index}", "completion": "a"} for index in range(8)])
    request = TrainRequest(
        data=(str(rows),), model=str(TINY_MODEL), out=tmp_path / "run", settings=TrainSettings(steps=2, global_batch=4)
    )
    opened = open_train_run(request)
    header = PartHeader(kind="checkpoint", step=2, part=0, parts=1, layout="whole")
    part = write_part(tmp_path, header, [("weights/a", "F32", (2,), np.ones(2, np.float32))], durable=False)
    store = opened.checkpoints
    store.begin(2)
    store.receive(part, manifest_path(tmp_path, part).read_bytes(), [data_path(tmp_path, part).read_bytes()])
    store.commit(manifest_of(opened, 2, [part]))
    yield opened
    opened.close()


async def interrupted_export(run: TrainRun, stop: Stop) -> None:
    finish = Finish(state="complete", reason="all is done")
    finishing = asyncio.create_task(finish_training(run, finish, {}, note=lambda text, level: None, stop=stop))
    [child] = await asyncio.to_thread(wait_until, psutil.Process().children, 10, "the process that writes it")
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
