"""What a training run's ledger keeps: whole after a close, refused to another run, readable while written."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.store import train_ledger
from realign_cluster.store.ledger import Ledger
from realign_cluster.store.ledger_file import ledger_kind
from realign_cluster.store.train_ledger import Measurement, StepRecord, TrainLedger, TrainLedgerReader

IDENTITY = {"model": "m", "seed": 1}


def step(number: int, generation: int, node: str, loss: float) -> StepRecord:
    return StepRecord(step=number, generation=generation, node=node, wall=float(number), body={"loss": loss})


def test_what_was_recorded_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = TrainLedger.create(path, IDENTITY)
    assert ledger.open_epoch(100.0) == 1
    reader = TrainLedgerReader(path)
    ledger.record(
        101.0,
        events=[(1.0, {"event": {"kind": "Opened"}, "commands": []})],
        steps=[step(1, 1, "alpha", 2.0), step(1, 1, "beta", 2.0), step(2, 1, "alpha", 1.5)],
        measurements=[Measurement(kind="kept", step=1, generation=1, node="alpha", wall=101.0, body={"x": 1})],
        reference=[(0, -1.5, -2.5), (7, -0.5, -1.0)],
        memory={"generation": 1},
    )
    ledger.record(102.0, steps=[step(2, 1, "alpha", 1.5), step(2, 2, "alpha", 1.25)], memory={"generation": 2})
    assert [(each.step, each.generation, each.node) for each in reader.steps()] == [
        (1, 1, "alpha"), (1, 1, "beta"), (2, 1, "alpha"), (2, 2, "alpha"),
    ]  # fmt: skip
    assert reader.meta("memory") == {"generation": 2}
    assert reader.reference() == {0: (-1.5, -2.5), 7: (-0.5, -1.0)}
    assert [each.body for each in reader.measurements("kept")] == [{"x": 1}]
    assert reader.last_step() == 2
    assert [each.body["event"]["kind"] for each in reader.events()] == ["Opened"]
    ledger.close_epoch(103.0)
    ledger.close()
    again = TrainLedger.open(path, IDENTITY)
    assert again.open_epoch(200.0) == 2
    assert [(each.opened_at, each.closed_at) for each in again.sittings()] == [(100.0, 103.0), (200.0, None)]
    again.close()
    reader.close()


def test_long_runs_are_read_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_ledger, "PAGE_ROWS", 3)
    ledger = TrainLedger.create(tmp_path / "ledger.sqlite", IDENTITY)
    ledger.open_epoch(0.0)
    places = [(number, generation, node) for number in range(4) for generation in (1, 2) for node in ("alpha", "beta")]
    kinds = ["kept", "ended", "kept"] * 5
    ledger.record(
        1.0,
        events=[(float(at), {"at": at}) for at in range(10)],
        steps=[step(*place, 1.0) for place in places],
        measurements=[
            Measurement(kind=kind, step=at, generation=1, node="alpha", wall=1.0, body={})
            for at, kind in enumerate(kinds)
        ],
    )
    assert [(each.step, each.generation, each.node) for each in ledger.steps()] == places
    assert [each.step for each in ledger.measurements("kept")] == [
        at for at, kind in enumerate(kinds) if kind == "kept"
    ]
    assert [each.body["at"] for each in ledger.events(after=2)] == list(range(2, 10))
    ledger.close()


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    TrainLedger.create(tmp_path / "ledger.sqlite", IDENTITY).close()
    with pytest.raises(UsageError, match="seed: the run has 1, now it is 2"):
        TrainLedger.open(tmp_path / "ledger.sqlite", {"model": "m", "seed": 2})


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    TrainLedger.create(tmp_path / "train.sqlite", IDENTITY).close()
    Ledger.create(tmp_path / "score.sqlite", IDENTITY).close()
    (tmp_path / "other").write_text("no database, but long enough to be looked at")
    assert [ledger_kind(tmp_path / name) for name in ("train.sqlite", "score.sqlite")] == ["train", "score"]
    with pytest.raises(UsageError, match="not the ledger of a run"):
        ledger_kind(tmp_path / "other")
    with pytest.raises(UsageError, match="is a scoring run, not a training\n"):
        TrainLedgerReader(tmp_path / "score.sqlite")
