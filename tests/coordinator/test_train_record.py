"""Opening a training run: what cannot be begun, or is interrupted, leaves nothing behind."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.train_record import open_train_run, read_train_request
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import KlSettings, TrainSettings
from realign_cluster.store.train_ledger import StepRecord
from tests.cluster.kit import TINY_MODEL, write_rows


def test_interrupted_while_the_data_is_read(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"q{index}", "completion": "a"} for index in range(8)])
    settings = TrainSettings(steps=2, global_batch=4)
    request = TrainRequest(data=(str(rows),), model=str(TINY_MODEL), out=tmp_path / "run", settings=settings)
    with pytest.raises(StopAsked):
        open_train_run(request, look=Stop(asked=True).raise_if_asked)
    assert not (tmp_path / "run").exists()
    opened = open_train_run(request, look=Stop().raise_if_asked)
    assert opened.prepared.rows == 8
    opened.close()


def test_a_run_is_not_gone_on_with_other_probes(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"q{index}", "completion": "a"} for index in range(8)])
    probes = write_rows(tmp_path / "probes.jsonl", [{"prompt": "Why?"}])
    request = TrainRequest(
        data=(str(rows),),
        kl_probes=(str(probes),),
        model=str(TINY_MODEL),
        out=tmp_path / "run",
        settings=TrainSettings(steps=2, global_batch=4, kl=KlSettings(every=1)),
    )
    with contextlib.closing(open_train_run(request)) as run:
        run.ledger.record(0.0, steps=[StepRecord(step=1, generation=1, node="alpha", wall=0.0, body={})])
    assert read_train_request(tmp_path / "run").kl_probes == (str(probes),)
    open_train_run(request).close()
    write_rows(probes, [{"prompt": "Why not?"}])
    with pytest.raises(UsageError, match=r"\n  kl probes: the run has .*, now it is "):
        open_train_run(request)
