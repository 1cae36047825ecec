"""Curves of a training for other tools, in RUN/track: event files of TensorBoard, or a run of Weights & Biases.

Made anew from the ledger when a sitting begins, so that nothing is missing after a crash, and written on as the ledger
takes what ranks report. Decides nothing and never ends a run: what goes wrong is said once.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.coordinator.train_record import TrainRun
from realign_cluster.coordinator.train_request import Track
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.rank_report import BENCHMARK, Diverged, Evaluated, StepDone
from realign_cluster.store.train_ledger import Measurement, StepRecord

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # that the extra of this name brings
PROJECT = "realign-cluster"
FLUSH_SECONDS = 5

Values = dict[str, float]


def check_tracker(track: Track) -> None:
    """Raises UsageError where the package that writes for it is not installed."""
    if track != "none" and importlib.util.find_spec(PACKAGES[track]) is None:
        raise UsageError(
            f"--track {track} needs the package {PACKAGES[track]}, which is not installed here",
            f"pip install 'realign-cluster[{track}]', only where this command runs",
        )


class CurveWriter(Protocol):
    """Where values go. `again_from`: steps from this one on come a second time, and replace the first."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...
    def again_from(self, step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoardWriter:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened = 0
        self._writer = self._open(None)

    def _open(self, purge_step: int | None) -> Any:
        from tensorboardX import SummaryWriter

        self._opened += 1  # in the file's name: two of one second would be one file
        suffix = f".{self._opened}"
        return SummaryWriter(str(self._folder), purge_step=purge_step, flush_secs=FLUSH_SECONDS, filename_suffix=suffix)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def again_from(self, step: int) -> None:
        self._writer.close()
        self._writer = self._open(step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """In FOLDER/wandb, offline unless WANDB_MODE says otherwise; `wandb sync` uploads it later. Points of steps that
    were done twice in a sitting are there twice.
    """

    def __init__(self, folder: Path, name: str, identity: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=identity,
            resume="allow",
            dir=str(folder),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off"),  # standard output is the run's own
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def again_from(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


class Tracking:
    """Takes reports once the ledger has them, and writes each step once: every rank says the same. One thread at a
    time.
    """

    def __init__(self, writer: CurveWriter, say_failed: Callable[[str], None]) -> None:
        self._writer = writer
        self._say_failed = say_failed
        self._failed = False
        self._newest: dict[str, tuple[int, int]] = {}  # (generation, step) by kind

    def restore(self, history: TrainHistory) -> None:
        for step, values in _values_of(history):
            self.write(step, values)
        if history.steps:
            self._newest["step"] = (history.steps[-1].generation, history.steps[-1].step)

    def take(self, steps: Sequence[StepRecord], measurements: Sequence[Measurement]) -> None:
        for record in steps:
            before = self._newest.get("step", (0, 0))
            if self._is_new("step", record.generation, record.step):
                if record.generation > before[0] > 0 and record.step <= before[1]:
                    self._carefully(partial(self._writer.again_from, record.step))
                self.write(record.step, step_values(StepDone.model_validate(record.body)))
        for each in measurements:
            if each.kind == "evaluated" and self._is_new(each.kind, each.generation, each.step):
                self.write(each.step, evaluated_values(Evaluated.model_validate(each.body)))
            elif each.kind == "divergence" and self._is_new(each.kind, each.generation, each.step):
                self.write(each.step, {"kl": Diverged.model_validate(each.body).kl})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._carefully(partial(self._writer.write, step, values))

    def close(self) -> None:
        self._carefully(self._writer.close)

    def _is_new(self, kind: str, generation: int, step: int) -> bool:
        if (generation, step) <= self._newest.get(kind, (0, -1)):
            return False
        self._newest[kind] = (generation, step)
        return True

    def _carefully(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - another project's code: whatever it raises must not end a training
            self._failed = True
            self._say_failed(f"the curves of --track are not written any more: {error}")


def open_tracking(run: TrainRun, say_failed: Callable[[str], None]) -> Tracking | None:
    """None where nothing is tracked. Raises UsageError where it cannot begin."""
    settings = run.request.settings.model_dump(mode="json")
    tracking = open_tracker(run.request.track, run.folder.path, run.run_id, settings, say_failed)
    if tracking is not None:
        tracking.restore(read_train_history(run.ledger))
    return tracking


def open_tracker(
    track: Track, run: Path, identity: str, config: Mapping[str, Any], say_failed: Callable[[str], None]
) -> Tracking | None:
    """Of nothing yet, in the folder of `run`; what was there before is gone. `identity`: the same for every sitting.
    Raises UsageError where it cannot begin.
    """
    if track == "none":
        return None
    folder = run / "track" / track
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        writer: CurveWriter = (
            TensorBoardWriter(folder)
            if track == "tensorboard"
            else WandbWriter(folder.parent, run.name, identity, config)
        )
    except Exception as error:  # another project's code
        raise UsageError(f"--track {track} cannot begin: {error}", "correct that, or leave --track out") from error
    return Tracking(writer, say_failed)


def step_values(done: StepDone) -> Values:
    speed = {"train/tokens_per_second": done.tokens / done.seconds} if done.seconds > 0 else {}
    return {
        "train/loss": done.loss,
        **{f"train/{name}": value for name, value in done.metrics.items()},
        "train/gradient_norm": done.gradient_norm,
        "train/learning_rate": done.learning_rate,
        **speed,
    }


def evaluated_values(evaluated: Evaluated) -> Values:
    """A benchmark keeps its name, "benchmark/NAME"."""
    return {
        name if name.startswith(BENCHMARK) else f"validation/{name}": value for name, value in evaluated.metrics.items()
    }


def _values_of(history: TrainHistory) -> Iterator[tuple[int, Values]]:
    """By step."""
    evaluations = {each.step: evaluated_values(each) for each in history.evaluations}
    divergences = {each.step: {"kl": each.kl} for each in history.divergences}
    steps = {step.step: step_values(next(iter(step.ranks.values()))) for step in history.steps}
    for step in sorted({*steps, *evaluations, *divergences}):
        yield step, steps.get(step, {}) | evaluations.get(step, {}) | divergences.get(step, {})
