"""States are written beside the training: what is said of them, and what they are said to cost."""

from __future__ import annotations

import threading
from pathlib import Path

import mlx.core as mx

from realign_cluster.domain.rank_report import Kept, NotKept, RankReport
from realign_cluster.store.part_manifest import PartHeader
from realign_cluster.store.state_part import data_path, verify_part
from realign_cluster.training.keeper import Keeper, State


def state(step: int) -> State:
    header = PartHeader(
        kind="snapshot", step=step, part=0, parts=1, layout="whole", generation=1, run="run", config="config"
    )
    return State(header=header, tensors={"weights/a": mx.arange(1 << 21, dtype=mx.float32)})


def test_what_a_state_costs_is_not_how_long_it_lasts(tmp_path: Path) -> None:
    """A thread that has to wait for its turn takes longer, and takes nothing more away."""
    said: list[RankReport] = []
    keeper, over = Keeper(tmp_path, said.append), threading.Event()

    def busy() -> None:
        while not over.is_set():
            sum(range(10_000))

    others = [threading.Thread(target=busy) for _ in range(4)]
    for other in others:
        other.start()
    try:
        keeper.keep(state(1), durable=False)
        keeper.flush()
    finally:
        over.set()
        for other in others:
            other.join()
    [kept] = said
    assert isinstance(kept, Kept)
    assert 0 < keeper.last_seconds < kept.seconds / 2
    assert verify_part(data_path(tmp_path, kept.part)) == kept.part


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    said: list[RankReport] = []
    folder = tmp_path / "a file"
    folder.write_text("no folder")
    keeper = Keeper(folder, said.append)
    keeper.keep(state(3), durable=False)
    keeper.flush()
    assert [(report.kind, report.step) for report in said if isinstance(report, NotKept)] == [("snapshot", 3)]
