"""Curves for other tools: event files hold what counts of a run, also after a crash and after going back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from realign_cluster.coordinator import train_track
from realign_cluster.coordinator.train import train
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.coordinator.train_track import TensorBoardWriter, Tracking, WandbWriter, check_tracker
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import TrainSettings
from realign_cluster.store.train_ledger import Measurement, StepRecord

from .made_training import MadeTraining, loss_of


def events_of(folder: Path) -> Iterator[Event]:
    """Of all event files, in the order they were begun. A record is its length, a checksum of that, and so the data."""
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def curve(folder: Path, name: str) -> dict[int, float]:
    """As TensorBoard shows it: a session that starts at a step forgets what there was from that step on."""
    found: dict[int, float] = {}
    for event in events_of(folder):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            found = {step: value for step, value in found.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == name:
                found[event.step] = value.simple_value
    return found


class Following:
    """A made run whose reports are tracked as they come into the ledger."""

    def __init__(self, folder: Path, run: MadeTraining) -> None:
        self.folder = folder
        self.run = run
        self.troubles: list[str] = []
        self.tracking = Tracking(TensorBoardWriter(folder), self.troubles.append)

    def reports(self) -> tuple[list[StepRecord], list[Measurement]]:
        return list(self.run.steps), list(self.run.measurements)

    def take(self) -> None:
        self.tracking.take(*self.reports())
        self.run.history()  # they are in the ledger now


@pytest.fixture
def run(tmp_path: Path) -> MadeTraining:
    made = MadeTraining(tmp_path / "run", steps=40)
    made.ready("ab")
    made.goes()
    return made


def test_steps_evaluations_and_divergence_are_written_once_however_many_ranks_say_them(
    run: MadeTraining, tmp_path: Path
):
    following = Following(tmp_path / "track", run)
    run.evaluate(0, **{"benchmark/sums": 0.25})
    run.train(12)
    run.evaluate(10)
    run.diverge(10, 0.05)
    following.take()
    following.tracking.close()
    assert curve(tmp_path / "track", "train/loss") == pytest.approx({step: loss_of(step) for step in range(1, 13)})
    assert curve(tmp_path / "track", "validation/loss") == pytest.approx({at: loss_of(at) + 0.1 for at in (0, 10)})
    assert curve(tmp_path / "track", "benchmark/sums") == {0: 0.25}
    assert curve(tmp_path / "track", "kl") == pytest.approx({10: 0.05})
    assert set(curve(tmp_path / "track", "train/tokens_per_second").values()) == {1600.0}
    tags = [value.tag for event in events_of(tmp_path / "track") for value in event.summary.value]
    assert tags.count("train/loss") == 12
    assert following.troubles == []


def test_steps_that_come_again_replace_those_that_were_lost(run: MadeTraining, tmp_path: Path):
    following = Following(tmp_path / "track", run)
    run.train(28)
    following.take()
    run.exits("b")
    run.obeys("a")
    run.goes()
    run.train(26, first=26)
    following.take()
    following.tracking.close()
    assert list(curve(tmp_path / "track", "train/loss")) == list(range(1, 27))


def test_after_a_crash_all_that_the_ledger_has_is_there_and_goes_on(run: MadeTraining, tmp_path: Path):
    """The process that wrote before was killed: its files count for nothing."""
    run.evaluate(0)
    run.train(28)
    run.exits("b")
    run.obeys("a")
    run.goes()
    run.train(33, first=26)
    tracking = Tracking(TensorBoardWriter(tmp_path / "track"), pytest.fail)
    tracking.restore(run.history())
    run.exits("b")
    run.obeys("a")
    run.goes()
    run.train(40, first=31)
    tracking.take(run.steps, run.measurements)
    tracking.close()
    assert list(curve(tmp_path / "track", "train/loss")) == list(range(1, 41))
    assert list(curve(tmp_path / "track", "validation/loss")) == [0]


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """What a run of Weights & Biases that was written offline holds: records behind a head of 7 bytes, each with its
    checksum, length and kind before it. Those of a made run lie in the first block.
    """
    from wandb.proto import wandb_internal_pb2

    data, found = file.read_bytes(), []
    assert len(data) < 32 * 1024
    place = 7
    while place + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1  # a whole record
        record = wandb_internal_pb2.Record.FromString(data[place + 7 : place + 7 + size])
        if record.WhichOneof("record_type") == "history":
            items = [(item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item]
            found.append({key: json.loads(value) for key, value in items if not key.startswith("_")})
        place += 7 + size
    return found


def test_weights_and_biases_is_written_offline(
    run: MadeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that extra is installed. Nothing is sent, and nothing is asked."""
    pytest.importorskip("wandb", reason="pip install 'realign-cluster[wandb]'")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run.train(3)
    run.evaluate(3)
    opened = SimpleNamespace(
        folder=SimpleNamespace(path=tmp_path / "run"),
        run_id="abc",
        request=SimpleNamespace(settings=TrainSettings(steps=3, global_batch=1)),
    )
    writer = WandbWriter(tmp_path, opened)  # type: ignore[arg-type]
    tracking = Tracking(writer, pytest.fail)
    tracking.take(run.steps, run.measurements)
    tracking.close()
    [file] = tmp_path.glob("wandb/offline-run-*-abc/run-abc.wandb")
    written = wandb_history(file)
    losses = {each["step"]: each["train/loss"] for each in written if "train/loss" in each}
    assert losses == pytest.approx({step: loss_of(step) for step in (1, 2, 3)})
    assert [each["validation/loss"] for each in written if "validation/loss" in each] == [loss_of(3) + 0.1]


class Broken:
    """A tracker that fails from its third value on."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.written += 1
        if self.written > 2:
            raise OSError("no space left on device")

    def again_from(self, step: int) -> None:
        raise OSError("no space left on device")

    def close(self) -> None:
        raise OSError("no space left on device")


def test_a_tracker_that_fails_is_left_and_said_once(run: MadeTraining):
    run.train(12)
    broken, troubles = Broken(), []
    tracking = Tracking(broken, troubles.append)
    tracking.take(run.steps, run.measurements)
    tracking.close()
    assert broken.written == 3
    assert troubles == ["the curves of --track are not written any more: no space left on device"]


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train_track.PACKAGES, "wandb", "a_package_that_is_not_there")


@pytest.mark.usefixtures("missing")
async def test_a_missing_package_is_said_before_anything_is_touched(tmp_path: Path):
    request = TrainRequest(
        data=(str(tmp_path / "none.jsonl"),),
        model="none",
        out=tmp_path / "run",
        settings=TrainSettings(steps=1, global_batch=1),
        track="wandb",
    )
    with pytest.raises(UsageError, match=r"pip install 'realign-cluster\[wandb\]'"):
        await train(request, dashboard=None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_asked_for_is_not_needed(missing: None):
    check_tracker("none")
    check_tracker("tensorboard")
