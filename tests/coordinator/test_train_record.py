"""Opening a training run: what cannot be begun, or is interrupted, leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.train_record import open_train_run
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.domain.training import TrainSettings
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
