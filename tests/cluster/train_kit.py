"""Training runs as tests watch them: where each rank is while the run goes on, by its ledger, and what it came to.

A `Training` is one command that was started. Its run folder may be one that another command left.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil

from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.domain.errors import RealignError
from realign_cluster.store.train_ledger import EventRecord, TrainLedgerReader
from tests.cluster.kit import TINY_MODEL, CurateCluster
from tests.cluster_kit import wait_until

WAIT = 90.0
NODES = ("alpha", "beta")
STEPS = 60  # more than ranks do in the five seconds that they outlive their coordinator
TRAINING = (
    *("--steps", str(STEPS), "--global-batch", "16", "--learning-rate", "1e-3", "--checkpoint-every", "8"),
    *("--snapshot-every", "1", "--keep-checkpoints", "2", "--parallel", "data"),
)
SAME = (*TRAINING, "--reproducible")
REPORTS = ("RankSection", "StepDone", "RankLoaded", "RankJoined", "RankEnded", "RankFailed", "RankExited")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to. Equal for two reproducible runs, whatever happened to one of them on the way."""

    digest: str  # of the trained weights, as every rank said
    losses: tuple[float, ...]  # by step
    files: dict[str, str]  # what was written out, by name, hashed


def outcome(run: Path) -> Outcome:
    with ledger_of(run) as ledger:
        ends = {end.body["digest"] for end in ledger.measurements("ended") if end.body["complete"]}
    [digest] = ends
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "a step is missing, or there twice"
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((run / "output").iterdir())}
    return Outcome(digest=digest, losses=tuple(line["loss"] for line in lines), files=files)


@contextlib.contextmanager
def ledger_of(run: Path) -> Iterator[TrainLedgerReader]:
    ledger = TrainLedgerReader(run / "ledger.sqlite")
    try:
        yield ledger
    finally:
        ledger.close()


def history_of(run: Path) -> TrainHistory:
    with ledger_of(run) as ledger:
        return read_train_history(ledger)


@dataclass(slots=True)
class Command:
    """A command that was started on a run folder, as a process."""

    process: subprocess.Popen[str]
    folder: Path
    errors: Path
    WAIT: ClassVar[float] = WAIT  # seconds for what is waited for on the way
    WHOLE: ClassVar[float] = 2 * WAIT  # and for its end

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float | None = None) -> Any:
        """The condition's first true value. Fails at once when the command ends meanwhile."""

        def look() -> Any:
            over = self.process.poll() is not None
            value = condition()
            assert value or not over, f"the command ended before {what}\n{self.said()}"
            return value

        return wait_until(look, self.WAIT if seconds is None else seconds, what)

    def finish(self, status: int = 0, seconds: float | None = None) -> str:
        """What it said on standard error."""
        seconds = self.WHOLE if seconds is None else seconds
        try:
            assert self.process.wait(seconds) == status, self.said()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on after {seconds:g} s\n{self.said()}") from None
        return self.said()


@dataclass(slots=True)
class Training(Command):
    """A `realign train`, or its resumption, as a process."""

    _ledger: TrainLedgerReader | None = None
    _events: list[EventRecord] = field(default_factory=list)

    def events(self) -> list[EventRecord]:
        """All that the ledger has by now, of earlier sittings too."""
        with contextlib.suppress(RealignError, sqlite3.Error):  # it is just being made, or its disk is full
            if self._ledger is None and (self.folder / "ledger.sqlite").exists():
                self._ledger = TrainLedgerReader(self.folder / "ledger.sqlite")
            if self._ledger is not None:
                self._events += self._ledger.events(self._events[-1].seq if self._events else 0)
        return self._events

    @property
    def generation(self) -> int:
        """The newest that was started; 0 before the first."""
        numbers = [
            command["spec"]["generation"]
            for event in self.events()
            for command in event.body["commands"]
            if command["kind"] == "StartRank"
        ]
        return max(numbers, default=0)

    def last_step(self, generation: int | None = None) -> int:
        """The highest that a rank reported, of one generation or of all."""
        steps = [
            event.body["event"]["step"]
            for event in self.events()
            if event.body["event"]["kind"] == "StepDone" and generation in (None, event.body["event"]["generation"])
        ]
        return max(steps, default=0)

    def reach(self, step: int, generation: int | None = None) -> None:
        self.wait_for(lambda: self.last_step(generation) >= step, f"step {step}")

    def reports(self, node: str, generation: int) -> list[dict[str, Any]]:
        """What the rank of this node and generation said, in order."""
        return [
            event.body["event"]
            for event in self.events()
            if event.body["event"]["kind"] in REPORTS
            and (event.body["event"]["node"], event.body["event"]["generation"]) == (node, generation)
        ]

    def commands(self, kind: str) -> list[tuple[float, dict[str, Any]]]:
        """With the wall clock at which they were decided."""
        return [
            (event.wall, command)
            for event in self.events()
            for command in event.body["commands"]
            if command["kind"] == kind
        ]

    def notes(self) -> list[str]:
        return [command["text"] for _, command in self.commands("NoteLine")]

    def kill(self) -> None:
        """kill -9, and reaped."""
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        self.kill()
        if self._ledger is not None:
            self._ledger.close()


class TrainCommands:
    """`realign train` on a cluster's nodes, each command of its own process; those that still run are killed at the
    end: the nodes are then the next one's within the lease.
    """

    def __init__(self, cluster: CurateCluster) -> None:
        self.cluster = cluster
        self._running: list[Training] = []

    def __enter__(self) -> TrainCommands:
        return self

    def __exit__(self, *_: object) -> None:
        for training in self._running:
            training.close()

    def command(
        self, data: Path, out: Path, *more: str, hosts: Path | None = None, model: Path = TINY_MODEL
    ) -> list[str]:
        return [
            *(sys.executable, "-m", "realign_cluster.cli.main", "train", "--data", str(data), "--out", str(out)),
            *("--model", str(model), "--hostfile", str(hosts or self.cluster.hostfile(*NODES)), *more),
        ]

    def start(self, command: Sequence[str], out: Path) -> Training:
        errors = self.cluster.folder / f"train-{len(self.cluster.processes)}.stderr"
        with errors.open("w") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, text=True,
                env=self.cluster.environment,
            )  # fmt: skip
        self.cluster.processes.append(process)
        training = Training(process=process, folder=out, errors=errors)
        self._running.append(training)
        return training

    def states(self, run: Path, node: str) -> dict[int, Path]:
        return states_of(run, self.cluster.daemons[node].folder.root)

    def resume(self, out: Path) -> Training:
        return self.start([sys.executable, "-m", "realign_cluster.cli.main", "runs", "resume", str(out)], out)

    def rank(self, node: str) -> int:
        """Its process number, once there is one."""
        [pid] = wait_until(lambda: self.cluster.daemons[node].rank_pids(), WAIT, f"a rank on {node}")
        return int(pid)


class NodeProcesses:
    """Ranks and daemons of a cluster on this machine, to be found and killed."""

    def __init__(self, cluster: CurateCluster) -> None:
        self._daemons = cluster.daemons

    def rank(self, node: str) -> int | None:
        daemon = self._daemons[node]
        return next(iter(daemon.rank_pids()), None) if daemon.running else None

    def states(self, node: str, run_id: str) -> Path:
        return self._daemons[node].folder.training / "runs" / run_id

    def kill(self, victim: str, node: str, training: Training) -> None:
        if victim == "rank":
            pid = self.rank(node)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        elif victim == "daemon":
            self._daemons[node].kill()
        else:
            training.kill()


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def held(pid: int, seconds: float = 1.5) -> Iterator[None]:
    """Within this the process gets nowhere. It runs for a moment now and then: its daemon kills what stands still."""
    over = threading.Event()

    def hold() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.wait(0.005):
                os.kill(pid, signal.SIGSTOP)
                over.wait(seconds)
                os.kill(pid, signal.SIGCONT)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        yield
    finally:
        over.set()
        holding.join()


def states_of(run: Path, node_folder: Path) -> dict[int, Path]:
    """Whole parts that a node has of this run, by step, the newest first. For states of one part."""
    with ledger_of(run) as ledger:
        folder = node_folder / "training" / "runs" / ledger.meta("run_id")
    found = {int(path.name.split("-")[1][:8]): path for path in folder.glob("*.safetensors") if _is_whole(path)}
    return dict(sorted(found.items(), reverse=True))


def _is_whole(part: Path) -> bool:
    return part.with_suffix(".json").exists()


def damage(path: Path) -> None:
    """One bit of its last byte."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        [last] = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


def steps_lost(run: Path) -> list[int]:
    """At each change of generations: steps that were done and had to be done again."""
    generations = history_of(run).generations
    return [
        max(0, max(before.last_step, before.start_step) - after.start_step)
        for before, after in itertools.pairwise(generations)
    ]
