"""The generations of ranks that a training run's events tell of: when each was started, loaded and joined, how it
ended, and what it took the next one to take over.

All times are wall clock, in seconds; None where the events do not say. Reads events only: losses and tokens are
`train_history`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from realign_cluster.store.train_ledger import EventRecord

# Phases of a takeover, in order. "noticed": from the last word of a rank to the notice that it is gone.
PHASES = ("noticed", "stopped", "planned", "fetched", "loaded", "joined", "stepped")
COORDINATOR_GONE = "the coordinator was gone"
_FAILURES = frozenset({"RankExited", "RankFailed", "StartFailed", "NodeLost", "Tick"})  # Tick: a rank made no progress
_WITNESSES = frozenset({"peer", "group"})  # codes of ranks that fail because another one went
_TERMINATED = "killed by signal 15"


@dataclass(slots=True, kw_only=True)
class GenerationRecord:
    """`opened` is when the sitting began whose first generation this is. `why` it ended; "" while it runs."""

    number: int
    epoch: int
    nodes: tuple[str, ...]
    parallel: str
    shares: tuple[float, ...]
    start_step: int
    start_generation: int  # that computed the state it began from; 0 where it began from step 0
    started: float
    opened: float | None = None
    fetched: tuple[float, float] | None = None  # before it was started states came to its nodes, from then to then
    loaded: float | None = None  # all ranks
    joined: float | None = None  # all ranks
    first_step: float | None = None
    last_step: int = 0
    last_word: float | None = None  # of any rank
    failed_word: float | None = None  # the last one of who failed
    noticed: float | None = None  # that it cannot, or is not to, go on
    gone: float | None = None  # all its ranks are known to be dead
    failed: bool = False
    why: str = ""
    _blamed: bool = True  # `why` names who failed, not only who noticed
    _asked: str = ""  # why its ranks were asked to stop after a step
    _words: dict[str, float] = field(default_factory=dict)
    _loaded: set[str] = field(default_factory=set)
    _joined: set[str] = field(default_factory=set)
    _ended: set[str] = field(default_factory=set)
    _failed: set[str] = field(default_factory=set)

    @property
    def over(self) -> float | None:
        """When it trained no more."""
        return self.noticed or self.gone

    def hear(self, wall: float, body: Mapping[str, Any]) -> None:
        """An event of one of its ranks."""
        node, everyone = body["node"], set(self.nodes)
        if body["kind"] not in ("RankExited", "StartFailed"):
            self._words[node] = self.last_word = wall
        match body["kind"]:
            case "RankLoaded":
                self._loaded.add(node)
                if self._loaded == everyone:
                    self.loaded = wall
            case "RankJoined":
                self._joined.add(node)
                if self._joined == everyone:
                    self.joined = wall
            case "StepDone":
                self.first_step = self.first_step or wall
            case "RankFailed":
                self._failed.add(node)
            case "RankEnded":
                self._ended.add(node)
                self.why = self.why or self._asked or body["reason"]
                if not body["complete"]:
                    self.noticed = self.noticed or wall
            case "RankExited" | "StartFailed":
                if not self._blamed and node not in self._failed:
                    self._blame(node, body)

    def _blame(self, node: str, body: Mapping[str, Any]) -> None:
        """Names the rank that went, where another one was heard first. By then its daemon may have been told to kill
        it, and say so; a rank that died of that is not the one.
        """
        asked = body.get("asked", False)
        how = body["reason"].rpartition(" (")[2].removesuffix(")") if asked else body["reason"]
        if not (asked and how == _TERMINATED):
            self.why, self._blamed = f"the rank on {node} exited: {how}", True
            self.failed_word = self._words.get(node)

    def notice(self, wall: float, body: Mapping[str, Any], commands: Sequence[Mapping[str, Any]]) -> None:
        """The first event that ends it before its time, and what is known of it later."""
        asked = [each["reason"] for each in commands if each["kind"] == "AskStop" and each["generation"] == self.number]
        self._asked = self._asked or next(iter(asked), "")
        over = f"generation {self.number} is over"  # what recovery says once all its ranks are known to be dead
        if any(each["kind"] == "NoteLine" and each["text"].startswith(over) for each in commands):
            self.gone = self.gone or wall
        kind, node = body["kind"], body.get("node", "")
        if self.noticed is not None:
            if kind == "NodeLost" and not self._blamed and node in self.nodes:
                self.why, self._blamed = f"{node} is lost: {body['reason']}", True
                self.failed_word = self._words.get(node)
            return
        mine = body.get("generation") == self.number or (kind == "NodeLost" and node in self.nodes)
        dead = kind in ("RankExited", "StartFailed", "NodeLost") and mine and node not in self._ended
        killed = [each for each in commands if each["kind"] == "KillRank" and each["generation"] == self.number]
        killed = [each for each in killed if each["node"] not in self._ended]
        if dead or killed:
            self.noticed, self.failed = wall, kind in _FAILURES and not body.get("clean", False)
            self._blamed = body.get("code") not in _WITNESSES
            self.failed_word = self._words.get(node, self.last_word)
            self.why = killed[0]["reason"] if killed else f"{node}: {body['reason']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of a takeover, called by what was reached at its end."""

    name: str
    begin: float
    end: float


def takeover(before: GenerationRecord | None, after: GenerationRecord) -> list[Phase]:
    """From the last word of who failed to the first step of the next generation, without gaps, as far as it came. The
    time in which no coordinator was there is left out.
    """
    reached: list[tuple[str, float | None]] = [("", after.opened)]
    if before is not None and after.opened is None:
        reached = [("", before.failed_word)] if before.failed else []
        reached += [("noticed", before.noticed), ("stopped", before.gone)]
    if after.fetched is not None:
        reached += [("planned", after.fetched[0]), ("fetched", after.fetched[1])]
    reached += [("planned", after.started), ("loaded", after.loaded)]
    reached += [("joined", after.joined), ("stepped", after.first_step)]
    known = [(name, at) for name, at in reached if at is not None]
    return [Phase(name=name, begin=begin, end=end) for (_, begin), (name, end) in pairwise(known)]


class Course:
    """Which generation's steps make up the run as it stands: the newest one's, those that led to the state that it
    began from, and so on back to step 0.
    """

    def __init__(self, generations: Sequence[GenerationRecord]) -> None:
        by_number = {each.number: each for each in generations}
        self._spans: list[tuple[int, int, float]] = []  # (generation, after this step, up to this one)
        each, end = (by_number[max(by_number)] if by_number else None), float("inf")
        while each is not None and all(each.number != number for number, _, _ in self._spans):
            self._spans.append((each.number, each.start_step, end))
            end = each.start_step
            each = by_number.get(each.start_generation)

    def has(self, step: int, generation: int) -> bool:
        """Whether step `step` of that generation counts. Step 0, before training, is that of who began there."""
        return any(
            number == generation and (start < step <= end or start == step == 0) for number, start, end in self._spans
        )


class GenerationReader:
    """Takes the events of all sittings in order."""

    def __init__(self) -> None:
        self._found: dict[int, GenerationRecord] = {}
        self._newest: GenerationRecord | None = None
        self._opened: float | None = None
        self._fetched: tuple[float, float] | None = None

    def records(self) -> list[GenerationRecord]:
        return [self._found[number] for number in sorted(self._found)]

    def take(self, event: EventRecord) -> None:
        body, commands, newest = event.body["event"], event.body["commands"], self._newest
        if body["kind"] == "Opened":
            self._open(event.wall)
        elif newest is not None and newest.epoch == event.epoch:
            newest.notice(event.wall, body, commands)
            if body.get("generation") == newest.number and body.get("node") in newest.nodes:
                newest.hear(event.wall, body)
        if body["kind"] == "StepDone" and (done := self._found.get(body["generation"])) is not None:
            done.last_step = max(done.last_step, body["step"])  # daemons keep what a coordinator that died did not hear
        if body["kind"] == "PartFetched" and self._fetched is not None:
            self._fetched = (self._fetched[0], event.wall)
        for command in commands:
            self._carried_out(event, command)

    def _open(self, wall: float) -> None:
        self._opened, self._fetched = wall, None
        if self._newest is not None and not self._newest.why:
            self._newest.why = COORDINATOR_GONE

    def _carried_out(self, event: EventRecord, command: Mapping[str, Any]) -> None:
        newest = self._newest
        if command["kind"] == "StartRank":
            self._start(event, command["spec"])
        elif command["kind"] == "Fetch" and self._fetched is None:
            runs = newest is not None and newest.epoch == event.epoch and newest.over is None
            if not runs:  # else it is a copy for safety
                self._fetched = (event.wall, event.wall)

    def _start(self, event: EventRecord, spec: Mapping[str, Any]) -> None:
        number, world = spec["generation"], spec["world"]
        if number in self._found:
            return
        self._newest = self._found[number] = GenerationRecord(
            number=number,
            epoch=event.epoch,
            nodes=tuple(world["nodes"]),
            parallel=world["parallel"],
            shares=tuple(world["shares"]),
            start_step=spec["start_step"],
            start_generation=spec["start"][0]["generation"] if spec["start"] else 0,
            started=event.wall,
            opened=self._opened,
            fetched=self._fetched,
        )
        self._opened = self._fetched = None
