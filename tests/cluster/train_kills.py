"""Kills inside named phases of a training: a rank is stopped at a random instant, the ledger says what it was doing,
and if that is the phase that is wanted, the victim dies there: the rank itself, its daemon, or the coordinator.

What is killed comes back after a while, as a machine or a user would bring it back. Knows no cluster: a `Ground` starts
things and kills them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import psutil

from realign_cluster.store.durable import TEMPORARY_SUFFIX
from tests.cluster.train_kit import WAIT, Training, ledger_of

Phase = Literal["load", "reduce", "snapshot", "evaluate", "save"]
Victim = Literal["rank", "pause", "daemon", "coordinator", "host", "power", "cut"]  # pause: the rank stays stopped
PHASES: tuple[Phase, ...] = ("load", "reduce", "snapshot", "evaluate", "save")
WRITTEN = {"snapshot": "snapshot", "save": "checkpoint"}  # what a rank writes in a phase
SETTLED_SECONDS = 0.15  # in which a rank's last word is in the ledger
LOAD_SECONDS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """`away`: seconds until what was killed is started again; a rank is started by whom it belongs to."""

    phase: Phase
    victim: Victim
    node: str
    away: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A kill as it came: `place` is what the ledger had of the rank by then."""

    kill: Kill
    generation: int
    at: float  # wall clock
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a hit cost. Seconds count from the kill; None where the next one fell before there was a new step."""

    hit: Hit
    lost: int  # steps that were done again
    left_out: int  # of those, whose snapshots were left out because the one before was being written
    limit: float  # seconds in which what cannot be seen must be detected: three of the slowest step, at least five
    detected: float | None
    started: float | None
    loaded: float | None
    stepped: float | None


class Field(Protocol):
    """Where ranks are that are to be hit."""

    def rank(self, node: str) -> int | None:
        """Its process number, if there is one."""

    def states(self, node: str, run_id: str) -> Path:
        """The folder of a run's states on that node."""

    def kill(self, victim: Victim, node: str, training: Training) -> None: ...


class Ground(Field, Protocol):
    """Where whole trainings run that are to be hit."""

    nodes: tuple[str, ...]

    def begin(self, run: str) -> Training: ...

    def bring_back(self, victim: Victim, node: str, training: Training) -> Training:
        """The training that goes on: another one after a coordinator's death."""


def drawn(seed: int, phases: Sequence[Phase], nodes: Sequence[str], victims: Sequence[Victim]) -> list[Kill]:
    """One for each of `phases`; every victim comes about equally often."""
    rng = random.Random(seed)
    pool = list(itertools.islice(itertools.cycle(rng.sample(list(victims), len(victims))), len(phases)))
    return [
        Kill(phase=phase, victim=victim, node=rng.choice(list(nodes)), away=rng.choice((0.0, 1.0, 4.5)))
        for phase, victim in zip(phases, pool, strict=True)
    ]


def run_with_kills(ground: Ground, run: str, kills: Sequence[Kill], rng: random.Random) -> tuple[Training, list[Hit]]:
    """A training that is hit by all of these, one after the other, and ends."""
    training = ground.begin(run)
    hits: list[Hit] = []
    for kill in kills:
        before = hits[-1].generation if hits else 0
        if kill.phase != "load":
            wait_for_new_steps(training, before, 2)
        hits.append(strike(kill, ground, training, before, rng))
        if kill.victim not in ("rank", "pause"):
            time.sleep(kill.away)
        training = ground.bring_back(kill.victim, kill.node, training)
    training.finish()
    return training, hits


def strike(kill: Kill, ground: Field, training: Training, after: int, rng: random.Random) -> Hit:
    """The kill, once the node's rank is in that phase of a generation later than `after`."""
    with _stopped_in(kill, ground, training, after, rng) as (generation, place):
        hit = Hit(kill=kill, generation=generation, at=time.time(), place=place)
        ground.kill(kill.victim, kill.node, training)
    return hit


def wait_for_new_steps(training: Training, after: int, count: int) -> None:
    """Of a generation later than `after`."""

    def done() -> bool:
        newest = training.generation
        steps = {
            report["step"]
            for event in training.events()
            if (report := event.body["event"])["kind"] == "StepDone" and report["generation"] == newest
        }
        return newest > after and len(steps) >= count

    training.wait_for(done, f"{count} steps after generation {after}")


@contextlib.contextmanager
def _stopped_in(
    kill: Kill, ground: Field, training: Training, after: int, rng: random.Random
) -> Iterator[tuple[int, str]]:
    """Within this the rank on the kill's node does not run, and is in the phase. Generation and place."""
    deadline = time.monotonic() + 3 * WAIT
    while time.monotonic() < deadline:
        pid = _wait_for_instant(kill, ground, training, after, rng)
        if pid is None:
            continue
        with _stopped(pid) as stop:
            generation = training.generation
            place = _place(kill, ground, training, generation) if stop.succeeded and generation > after else ""
            if place and ground.rank(kill.node) == pid:
                stop.stays = kill.victim == "pause"
                yield generation, place
                return
    raise AssertionError(f"no {kill.phase} on {kill.node} was hit\n{training.said()}")


def _wait_for_instant(kill: Kill, ground: Field, training: Training, after: int, rng: random.Random) -> int | None:
    """A moment that may lie in the phase; the rank's process number then."""
    pid = training.wait_for(lambda: ground.rank(kill.node), f"a rank on {kill.node}")
    match kill.phase:
        case "load":
            training.wait_for(lambda: training.generation > after, "another generation")
            time.sleep(rng.uniform(0.0, LOAD_SECONDS))
        case "reduce":
            time.sleep(rng.uniform(0.0, _step_seconds(training)))
        case "evaluate":
            node, generation = kill.node, training.generation
            training.wait_for(
                lambda: ground.rank(node) != pid or _in_section("evaluate", training.reports(node, generation)),
                "an evaluation",
            )
        case "snapshot" | "save":
            with ledger_of(training.folder) as ledger:
                folder = ground.states(kill.node, ledger.meta("run_id"))
            pattern, until = f"{WRITTEN[kill.phase]}-*.safetensors{TEMPORARY_SUFFIX}", time.monotonic() + WAIT
            while not any(folder.glob(pattern)):
                if time.monotonic() > until or training.process.poll() is not None:
                    return None
                time.sleep(0.0005)
    return ground.rank(kill.node)


def _step_seconds(training: Training) -> float:
    seconds = [event.body["event"]["seconds"] for event in training.events() if _kind(event) == "StepDone"]
    return median(seconds[-10:]) if seconds else 1.0


@dataclass(slots=True)
class _Stop:
    succeeded: bool  # else there is no such process any more
    stays: bool = False  # it is not for us to let it go on


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[_Stop]:
    """SIGSTOP, and SIGCONT if it is still there."""
    stop = _Stop(succeeded=True)
    try:
        os.kill(pid, signal.SIGSTOP)
        process = psutil.Process(pid)
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
    except (ProcessLookupError, psutil.NoSuchProcess):
        stop.succeeded = False
    try:
        yield stop
    finally:
        if stop.succeeded and not stop.stays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _place(kill: Kill, ground: Field, training: Training, generation: int) -> str:
    """Where the stopped rank is, by the ledger, once its last word is there; "" if not in the phase."""
    said = -1
    while (now := len(training.reports(kill.node, generation))) != said:
        said = now
        time.sleep(SETTLED_SECONDS)
    return place_in(kill.phase, training, kill.node, generation)


def place_in(phase: Phase, training: Training, node: str, generation: int) -> str:
    """What the ledger says of this rank, if its last word was in that phase; else ""."""
    reports = training.reports(node, generation)
    kinds = {report["kind"] for report in reports}
    if kinds & {"RankExited", "RankFailed", "RankEnded"} and phase != "load":
        reports = [report for report in reports if report["kind"] not in ("RankExited", "RankFailed")]
    match phase:
        case "load":
            return "" if "RankLoaded" in kinds else "loading"
        case "reduce" | "evaluate":
            return f"{phase}, step {reports[-1]['step']}" if _in_section(phase, reports) else ""
        case "snapshot" | "save":
            entered = [report["step"] for report in reports if _in_section(phase, [report])]
            kept = {
                (part["kind"], part["step"])
                for event in training.events()
                if _kind(event) == "PartKept" and event.body["event"]["node"] == node
                if (part := event.body["event"]["part"])["generation"] == generation
            }
            missing = entered and (WRITTEN[phase], entered[-1]) not in kept
            return f"{phase} of step {entered[-1]}" if missing else ""


def _in_section(section: str, reports: Sequence[dict[str, Any]]) -> bool:
    return bool(reports) and reports[-1]["kind"] == "RankSection" and reports[-1]["section"] == section


def _kind(event: Any) -> str:
    return str(event.body["event"]["kind"])


# --- what it cost -----------------------------------------------------------------------------------------------------


def costs(training: Training, hits: Sequence[Hit]) -> list[Recovered]:
    return [_cost(training, hit, after) for hit, after in itertools.zip_longest(hits, hits[1:])]


def _cost(training: Training, hit: Hit, after: Hit | None) -> Recovered:
    starts = {
        command["spec"]["generation"]: (wall, command["spec"]) for wall, command in training.commands("StartRank")
    }
    number = min(generation for generation in starts if generation > hit.generation)
    started, spec = starts[number]
    done = [
        event
        for event in training.events()
        if _kind(event) == "StepDone" and event.body["event"]["generation"] == hit.generation
    ]
    last = max((event.body["event"]["step"] for event in done), default=starts[hit.generation][1]["start_step"])
    written = {
        report["step"]
        for node in starts[hit.generation][1]["world"]["nodes"]
        for report in training.reports(node, hit.generation)
        if _in_section("snapshot", [report]) or _in_section("save", [report])
    }
    again = range(spec["start_step"] + 1, last + 1)

    def since(found: list[float]) -> float | None:
        return min(found) - hit.at if found else None

    struck_again = after is not None and after.generation == number and after.kill.phase == "load"
    return Recovered(
        hit=hit,
        lost=len(again),
        left_out=sum(step not in written for step in again[:-1]),
        limit=max([5.0, *(3 * event.body["event"]["seconds"] for event in done)]),
        detected=since([wall for wall, text in _said(training) if wall > hit.at and _is_detection(text)]),
        started=started - hit.at,
        loaded=since([wall for wall, command in training.commands("Go") if command["generation"] == number]),
        stepped=None
        if struck_again
        else since(
            [
                event.wall
                for event in training.events()
                if _kind(event) == "StepDone" and event.body["event"]["generation"] >= number
            ]
        ),
    )


def _said(training: Training) -> list[tuple[float, str]]:
    """Notes, and the beginning of sittings."""
    opened = [(event.wall, "opened") for event in training.events() if _kind(event) == "Opened"]
    return opened + [(wall, command["text"]) for wall, command in training.commands("NoteLine")]


def _is_detection(text: str) -> bool:
    return text == "opened" or "cannot go on" in text


def cold_start(training: Training) -> float:
    """Seconds from the first StartRank to the first step."""
    started = training.commands("StartRank")[0][0]
    return min(event.wall for event in training.events() if _kind(event) == "StepDone") - started


def table(found: Sequence[Recovered]) -> str:
    lines = [
        f"{'phase':9} {'victim':12} {'node':9} {'place':22} {'lost':>4} "
        f"{'detected':>9} {'started':>8} {'loaded':>8} {'new step':>9}"
    ]
    for each in found:
        kill = each.hit.kill
        seconds = [
            f"{value:.1f} s" if value is not None else "-"
            for value in (each.detected, each.started, each.loaded, each.stepped)
        ]
        lines.append(
            f"{kill.phase:9} {kill.victim:12} {kill.node:9} {each.hit.place:22} {each.lost:>4} "
            f"{seconds[0]:>9} {seconds[1]:>8} {seconds[2]:>8} {seconds[3]:>9}"
        )
    return "\n".join(lines)
