"""Run folders made by the real intake, ledger and scheduler in virtual time: hours of a cluster in a second of a test.

Only the nodes are made up: each computes at the cost per second it is given.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import orjson

from realign_cluster.domain.events import (
    Discard,
    Event,
    Finish,
    Grant,
    LoadUnits,
    NodeLost,
    NodeReady,
    ResultReceived,
    RevokeAttempts,
    Tick,
    UnitsLoaded,
    WorkerExited,
)
from realign_cluster.domain.ids import AttemptId, NodeName, UnitId
from realign_cluster.domain.job import Fields
from realign_cluster.domain.scheduler import Scheduler
from realign_cluster.store.intake import ScanOptions, scan_into_ledger
from realign_cluster.store.ledger import Entry, Ledger, ResultRecord
from realign_cluster.store.readers import Sources, expand_inputs

WALL = 1_790_000_000.0
MONOTONIC = 5_000.0


@dataclass(slots=True)
class MadeNode:
    name: str
    speed: float  # cost per second
    ready_after: float = 1.0
    calibrated: float | None = None  # what it claims at join
    queue: list[tuple[AttemptId, UnitId]] = field(default_factory=list)
    busy: bool = False
    life: int = 0  # a new one after each loss or restart: what was computed before is gone


@dataclass(frozen=True, slots=True)
class Fault:
    at: float  # seconds after the sitting began
    node: str
    kind: str  # "worker" or "node"
    back_after: float


def write_rows(path: Path, rows: int, seed: int = 7) -> Path:
    """JSONL with texts of log-normal lengths."""
    random_ = random.Random(seed)
    words = ("the", "cluster", "scores", "what", "it", "reads", "and", "keeps", "can", "prove")
    with path.open("wb") as file:
        for index in range(rows):
            length = max(2, int(random_.lognormvariate(3.4, 0.8)))
            text = " ".join(random_.choice(words) for _ in range(length))
            file.write(orjson.dumps({"prompt": f"question {index}?", "response": text, "topic": random_.choice("abc")}))
            file.write(b"\n")
    return path


def make_run(
    folder: Path,
    *,
    rows: int = 2000,
    nodes: Iterable[MadeNode] = (),
    faults: Iterable[Fault] = (),
    sittings: Iterable[float] = (math.inf,),
) -> Path:
    """A run folder with its ledger. `sittings`: how many seconds each lasts before the coordinator is killed."""
    folder.mkdir(parents=True)
    source = write_rows(folder.parent / f"{folder.name}.jsonl", rows)
    sources = Sources(expand_inputs([str(source)]), cache=folder / "input-cache")
    with Ledger.create(folder / "ledger.sqlite", {"input": source.name}) as ledger:
        scan_into_ledger(ledger, sources, ("loglik", "ifd"), Fields(), ScanOptions(unit_cost=512.0, unit_rows=32))
        begin = MONOTONIC
        for seconds in sittings:
            begin = _Sitting(ledger, begin, list(nodes), list(faults), seconds).run() + 30.0
    return folder


class _Sitting:
    def __init__(
        self, ledger: Ledger, begin: float, nodes: list[MadeNode], faults: list[Fault], seconds: float
    ) -> None:
        self.ledger = ledger
        self.begin = self.now = begin
        self.until = begin + seconds
        self.nodes = {node.name: MadeNode(node.name, node.speed, node.ready_after, node.calibrated) for node in nodes}
        self.faults = faults
        self.scheduler = Scheduler()
        self.random = random.Random(11)
        self.heap: list[tuple[float, int, object]] = []
        self.order = count()
        self.rows: dict[UnitId, tuple[float, int]] = {}
        self.finished = False

    def run(self) -> float:
        opened = self.ledger.open_epoch(self.begin, self.wall)
        self.epoch = opened.epoch
        self.handle(opened)
        for node in self.nodes.values():
            speed = node.calibrated or node.speed
            self.later(node.ready_after, NodeReady(at=0, node=_name(node), cost_per_second=speed, measured=True))
        for fault in self.faults:
            self.later(fault.at, fault)
        self.later(0.5, "tick")
        while self.heap and not self.finished:
            at, _, what = heapq.heappop(self.heap)
            if at > self.until:
                return self.now
            self.now = at
            self.happen(what)
        self.ledger.close_epoch(self.wall)
        return self.now

    @property
    def wall(self) -> float:
        return WALL + self.now - MONOTONIC

    def later(self, seconds: float, what: object) -> None:
        heapq.heappush(self.heap, (self.now + seconds, next(self.order), what))

    def happen(self, what: object) -> None:
        match what:
            case "tick":
                self.handle(Tick(at=self.now))
                self.later(0.25, "tick")
            case NodeReady(node=node, cost_per_second=speed):
                self.handle(NodeReady(at=self.now, node=node, cost_per_second=speed, measured=True))
            case Fault(node=name, kind=kind, back_after=back_after):
                self.fail(self.nodes[name], kind, back_after)
            case (node, life, attempt, unit, seconds):
                self.computed(node, life, attempt, unit, seconds)  # type: ignore[arg-type]

    def fail(self, node: MadeNode, kind: str, back_after: float) -> None:
        computing = node.queue[0][0] if node.queue else None
        node.queue.clear()
        node.busy, node.life = False, node.life + 1
        if kind == "worker":
            self.handle(WorkerExited(at=self.now, node=_name(node), reason="killed by signal 9", computing=computing))
        else:
            self.handle(NodeLost(at=self.now, node=_name(node), reason="no beat for 3.0 s"))
        self.later(back_after, NodeReady(at=0, node=_name(node), cost_per_second=node.speed, measured=True))

    def computed(self, node: MadeNode, life: int, attempt: AttemptId, unit: UnitId, seconds: float) -> None:
        if life != node.life:
            return
        node.busy = False
        if node.queue and node.queue[0][0] == attempt:
            node.queue.pop(0)
        event = ResultReceived(
            at=self.now, node=_name(node), attempt=attempt, unit=unit, epoch=self.epoch, valid=True,
            compute_seconds=seconds,
        )  # fmt: skip
        rows = self.rows[unit][1]
        record = ResultRecord(
            unit=unit, attempt=attempt, epoch=self.epoch, node=_name(node), payload=self.payload(rows), rows=rows,
            tokens=rows * 60, compute_seconds=seconds, shape="8x128",
        )  # fmt: skip
        self.handle(event, record)
        self.start(node)

    def payload(self, rows: int) -> bytes:
        lines = []
        for _ in range(rows):
            tokens = self.random.randint(4, 90)
            mean = -self.random.gammavariate(6, 0.4)
            scores: Mapping[str, object] = {
                "loglik": {"sum": mean * tokens, "mean": mean, "tokens": tokens, "truncated": False},
                "ifd": {
                    "value": self.random.lognormvariate(-0.2, 0.25), "nll_conditioned": -mean,
                    "nll_alone": -mean * 1.2, "tokens": tokens, "truncated": False,
                },
            }  # fmt: skip
            lines.append(orjson.dumps(scores))
        return b"\n".join(lines)

    def start(self, node: MadeNode) -> None:
        if node.busy or not node.queue:
            return
        attempt, unit = node.queue[0]
        node.busy = True
        seconds = self.rows[unit][0] / node.speed * self.random.uniform(0.93, 1.07)
        self.later(seconds + 0.004, (node, node.life, attempt, unit, seconds))

    def handle(self, event: Event, record: ResultRecord | None = None) -> None:
        decision = self.scheduler.handle(event)
        if decision.commands or not isinstance(event, Tick):
            self.ledger.record([Entry(event=event, commands=decision.commands, result=record)], self.wall)
        for command in decision.commands:
            match command:
                case LoadUnits(count=wanted):
                    units, exhausted = self.ledger.load_pending(wanted)
                    self.rows.update((unit.unit, (unit.cost, unit.rows)) for unit in units)
                    self.handle(UnitsLoaded(at=self.now, units=units, exhausted=exhausted))
                case Grant(node=name, attempts=attempts):
                    self.nodes[name].queue += attempts
                    self.start(self.nodes[name])
                case RevokeAttempts(node=name, attempts=attempts):
                    node = self.nodes[name]
                    gone = {attempt for attempt in attempts if not (node.busy and node.queue[0][0] == attempt)}
                    node.queue = [pair for pair in node.queue if pair[0] not in gone]
                case Finish():
                    self.finished = True
                case Discard():
                    pass
                case _:
                    pass


def _name(node: MadeNode) -> NodeName:
    return NodeName(node.name)
