"""Ledgers of training runs, made by the real state machine and the real ledger in virtual time. What the ranks say is
made up: the loss of a step is a function of the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.rank_report import Diverged, Ended, Evaluated, Kept, Loaded, NotKept, RankReport, StepDone
from realign_cluster.domain.recovery_codec import encode
from realign_cluster.domain.world import StatePart
from realign_cluster.store.train_ledger import Measurement, StepRecord, TrainLedger
from tests.domain.train_by_hand import TrainRun, part

WALL = 1_790_000_000.0
STEP_SECONDS = 0.5


def loss_of(step: int) -> float:
    return 0.5 + 5.0 * math.exp(-step / 10)


class MadeTraining(TrainRun):
    """One sitting of a run in `folder`, `slept` seconds after the one before. `history` ends it. Checkpoints come into
    the run folder at once.
    """

    def __init__(
        self,
        folder: Path,
        nodes: str = "ab",
        *,
        slept: float = 0.0,
        metrics: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        path = folder / "ledger.sqlite"
        folder.mkdir(exist_ok=True)
        self.ledger = TrainLedger.open(path, {}) if path.exists() else TrainLedger.create(path, {})
        self.ledger._writer.execute("PRAGMA synchronous = OFF")  # a made run need not survive a power cut
        times = self.ledger.sittings()
        self.wall = (times[-1].last_at + slept if times else WALL) - options.get("now", 0.0)
        self.ledger.open_epoch(self.wall)
        self.metrics = metrics or {}
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.steps: list[StepRecord] = []
        self.measurements: list[Measurement] = []
        super().__init__(nodes, **options)

    def handle(self, event: e.Event) -> None:
        commands = self.recovery.apply(event)
        self.said += commands
        self.new += commands
        if commands or not isinstance(event, e.Tick):
            body = {"event": encode(event), "commands": [encode(command) for command in commands]}
            self.events.append((event.at, body))
        for command in commands:
            if isinstance(command, c.Replan):
                self.handle(self.replanned(command.nodes))
            elif isinstance(command, c.Store):
                parts = tuple(each for _, each in command.parts)
                self.handle(e.CheckpointStored(at=event.at, step=command.step, parts=parts))

    def say(self, report: RankReport, nodes: Iterable[str], *, step: int = 0) -> None:
        """A report that is no event."""
        body = report.model_dump(mode="json", exclude={"op"})
        self.measurements += [
            Measurement(
                kind=report.op, step=step, generation=self.generation, node=node, wall=self.wall + self.now, body=body
            )
            for node in nodes
        ]

    def goes(self) -> list[c.Command]:
        """Loading takes two seconds and joining one."""
        nodes = self.running
        self.now += 2.0
        self.say(
            Loaded(port=1, config="", versions={}, rows=9, valid_rows=0, parameters=9, seconds=2.0, peak_bytes=10_000),
            nodes,
        )
        self.of_rank(e.RankLoaded, nodes)
        self.now += 1.0
        return self.of_rank(e.RankJoined, nodes)

    def train(self, last: int, *, first: int = 1, snapshot_every: int = 5, checkpoint_every: int = 20) -> MadeTraining:
        """Steps `first` to `last`, on all ranks, with the states that they leave."""
        for step in range(first, last + 1):
            self.now += STEP_SECONDS
            nodes = self.running
            self.steps += [self._record(step, node, len(nodes)) for node in nodes]
            self.of_rank(e.StepDone, nodes, step=step, seconds=STEP_SECONDS)
            if step % checkpoint_every == 0 or step % snapshot_every == 0:
                kind = "checkpoint" if step % checkpoint_every == 0 else "snapshot"
                self.leave(part(step, kind=kind, generation=self.generation))
        return self

    def _record(self, step: int, node: str, ranks: int) -> StepRecord:
        report = StepDone(
            step=step,
            loss=loss_of(step),
            metrics={"tokens": 400.0, **self.metrics},
            tokens=800,
            rows=8,
            own_tokens=800 // ranks,
            own_padded=500,
            seconds=STEP_SECONDS,
            compute_seconds=0.4,
            reduce_seconds=0.05,
            gradient_norm=1.5,
            learning_rate=1e-4,
        )
        body = report.model_dump(mode="json", exclude={"op"})
        return StepRecord(step=step, generation=self.generation, node=node, wall=self.wall + self.now, body=body)

    def leave(self, *parts: StatePart) -> None:
        for each in parts:
            self.say(Kept(part=each, seconds=0.02, blocked_seconds=0.001), self.running, step=each.step)
            self.keep(self.running, each)

    def arrive(self) -> None:
        """What was to be fetched is there."""
        for fetch in self.all(c.Fetch):
            self.handle(e.PartFetched(at=self.now, node=fetch.node, part=fetch.part))

    def could_not_keep(self, node: str, step: int) -> None:
        self.say(NotKept(kind="snapshot", step=step, reason="no space left"), [node], step=step)

    def evaluate(self, step: int, **metrics: float) -> None:
        self.say(Evaluated(step=step, metrics={"loss": loss_of(step) + 0.1, **metrics}, seconds=0.2), "ab", step=step)

    def diverge(self, step: int, kl: float) -> None:
        self.say(Diverged(step=step, kl=kl, tokens=100, seconds=0.2), self.running, step=step)
        self.handle(e.KlMeasured(at=self.now, generation=self.generation, step=step, kl=kl))

    def all_done(self, step: int) -> None:
        """All ranks end after the last step."""
        self.say(Ended(step=step, complete=True, reason="", digest="w", peak_bytes=20_000), self.running, step=step)
        for node in self.running:
            self.of_rank(e.RankEnded, node, step=step, complete=True, reason="all steps are done", digest="w")
            self.exits(node, "exit status 0")

    def history(self) -> TrainHistory:
        """Of all that was so far."""
        for at, together in groupby(self.events, key=lambda event: event[0]):  # their wall clock is that of the commit
            self.ledger.record(self.wall + at, events=list(together))
        self.ledger.record(self.wall + self.now, steps=self.steps, measurements=self.measurements)
        self.events, self.steps, self.measurements = [], [], []
        self.ledger.close_epoch(self.wall + self.now)
        return read_train_history(self.ledger)
