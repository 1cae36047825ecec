"""The loop around recovery: what was heard is decided on, the ledger has it, commands go out.

    report -> event -> recovery -> ledger (one commit for all that came in meanwhile) -> effects

`train_hearing` makes the events. Decides nothing itself. Effects, acknowledgements among them, come only after the
ledger has the event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import structlog

from realign_cluster.coordinator.inbox import Happened, Inbox, Incoming, Interrupted
from realign_cluster.coordinator.part_store import PartStore
from realign_cluster.coordinator.progress import Level
from realign_cluster.coordinator.rank_board import RankBoard
from realign_cluster.coordinator.share_watch import ShareWatch
from realign_cluster.coordinator.stop import StopAsked
from realign_cluster.coordinator.train_desk import TrainDesk
from realign_cluster.coordinator.train_hearing import Heard, Hearing
from realign_cluster.coordinator.training_session import TrainingSession
from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.recovery import Recovery
from realign_cluster.domain.recovery_codec import encode
from realign_cluster.domain.world import WorldPlan

log = structlog.get_logger()

SHOW_SECONDS = 0.25
TICK_SECONDS = 0.25
MOST_AT_ONCE = 512  # reports in one commit
REFERENCE_ROWS = 10_000  # in one message to a rank


@dataclass(slots=True, kw_only=True)
class _Batch:
    """What was heard since the last commit, and what it led to."""

    heard: Heard = field(default_factory=Heard)
    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    commands: list[c.Command] = field(default_factory=list)
    memory: dict[str, Any] | None = None  # the last that is to be remembered


class TrainEngine:
    """Runs one sitting of a training run, from Opened to Finish. `replan` answers with a plan or with why there is
    none.
    """

    def __init__(
        self,
        *,
        desk: TrainDesk,
        sessions: Mapping[NodeName, TrainingSession],
        rank_hosts: Mapping[NodeName, str],
        inbox: Inbox,
        hearing: Hearing,
        parts: PartStore,
        shares: ShareWatch,
        board: RankBoard,
        replan: Callable[[tuple[NodeName, ...]], WorldPlan | str],
        note: Callable[[str, Level], None],
        show: Callable[[TrainEngine], None],
        interrupted: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk = desk
        self._sessions = dict(sessions)
        self._rank_hosts = rank_hosts
        self._inbox = inbox
        self._hearing = hearing
        self._parts = parts
        self.board = board
        self._replan = replan
        self._note = note
        self._show = show
        self._interrupted = interrupted
        self._clock = clock
        self.recovery: Recovery | None = None
        self._shares = shares
        self._tasks: set[asyncio.Task[None]] = set()
        self._finish: c.Finish | None = None
        self._failure: BaseException | None = None
        self._looked: float | None = None
        self._interrupts = 0
        self._go_backs = 0

    async def run(self, opened: e.Opened) -> c.Finish:
        """Raises StopAsked when it was interrupted while there was no room to record anything."""
        self.recovery = Recovery(opened)
        self._go_backs = len(opened.memory.go_backs)
        batch = _Batch()
        self._decide(opened, batch)
        shown = float("-inf")
        try:
            while True:
                await self._desk.record(
                    events=batch.events,
                    steps=batch.heard.steps,
                    measurements=batch.heard.measurements,
                    reference=batch.heard.reference,
                    memory=batch.memory,
                    when_full=self._when_full,
                )
                for node, (generation, sequence) in batch.heard.acknowledge.items():
                    self._sessions[node].acknowledge_report(generation, sequence)
                for command in batch.commands:
                    self._carry_out(command)
                if self._finish is not None:
                    break
                if self._clock() - shown >= SHOW_SECONDS:
                    shown = self._clock()
                    self._show(self)
                batch = await self._next()
                if self._failure is not None:
                    raise self._failure
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._show(self)
        return self._finish

    # --- what came in ---

    async def _next(self) -> _Batch:
        came = []
        with contextlib.suppress(TimeoutError):
            came.append(await asyncio.wait_for(self._inbox.get(), timeout=TICK_SECONDS))
        while not self._inbox.empty() and len(came) < MOST_AT_ONCE:
            came.append(self._inbox.get_nowait())
        now = self._clock()
        batch = _Batch()
        heard = batch.heard
        if self._looked is not None and now - self._looked > 1.0 + TICK_SECONDS:
            heard.events.append(e.Stalled(at=now, gap=now - self._looked))
        self._looked = now
        for item in came:
            match item:
                case Incoming(node=node, report=report):
                    self._hearing.hear(node, report, now, heard)
                case Happened(event=event):
                    heard.events.append(event)
                case Interrupted():
                    self._interrupts += 1
                    again = "" if self._interrupts > 1 else "; again to stop at once"
                    self._note(
                        f"interrupted: stopping, after this step with a checkpoint if one is under way{again}",
                        "warning",
                    )
                    heard.events.append(e.StopAsked(at=now))
                case _:
                    raise TypeError(f"a training run heard {type(item).__name__}")
        for node in self._hearing.silent(now, heard):
            self._sessions[node].start_over()
        for event in (*heard.events, e.Tick(at=now)):
            self._decide(event, batch)
        return batch

    def _decide(self, event: e.Event, batch: _Batch) -> None:
        """Also what follows at once from the answer of the planner, which is asked here: it is pure."""
        waiting = [event]
        while waiting:
            now = waiting.pop(0)
            assert self.recovery is not None
            commands = self.recovery.apply(now)
            if commands or not isinstance(now, e.Tick):
                batch.events.append(
                    (now.at, {"event": encode(now), "commands": [encode(command) for command in commands]})
                )
            batch.commands += commands
            for command in commands:
                if isinstance(command, c.Remember):
                    batch.memory = encode(command)
                if isinstance(command, c.Replan):
                    answer = self._replan(command.nodes)
                    plan, refusal = (answer, "") if isinstance(answer, WorldPlan) else (None, answer)
                    waiting.append(e.Replanned(at=now.at, nodes=command.nodes, plan=plan, refusal=refusal))

    # --- what goes out ---

    def _carry_out(self, command: c.Command) -> None:
        match command:
            case c.Remember(memory=memory):
                if len(memory.go_backs) > self._go_backs:
                    self._go_backs = len(memory.go_backs)
                    self._spawn(self._parts.forget(memory.go_backs))
            case c.Replan():
                pass  # answered already
            case c.Fetch(node=node, part=part, source=source):
                self._spawn(self._parts.fetch(node, part, source))
            case c.StartRank(node=node, spec=spec):
                self._shares.begin(spec)
                self.board.starting(node, spec)
                self._sessions[node].start_rank(spec)
            case c.Go(generation=generation, nodes=nodes):
                addresses = tuple(f"{self._rank_hosts[node]}:{self._hearing.port(generation, node)}" for node in nodes)
                reference = self._desk.reference()
                for node in nodes:
                    for at in range(0, len(reference), REFERENCE_ROWS):
                        rows = reference[at : at + REFERENCE_ROWS]
                        self._sessions[node].tell_rank(generation, {"op": "reference", "rows": rows})
                    self._sessions[node].go(generation, addresses)
            case c.AskStop(generation=generation, nodes=nodes, reason=reason):
                for node in nodes:
                    self._sessions[node].tell_rank(generation, {"op": "stop"})
                self._note(f"asked all ranks to stop: {reason}", "info")
            case c.KillRank(node=node, generation=generation, grace_seconds=grace, reason=reason):
                self._sessions[node].stop_rank(generation, kill=True, reason=reason, grace_seconds=grace)
            case c.DropParts(node=node, parts=parts):
                self._sessions[node].drop_parts(parts)
            case c.Store(step=step, parts=parts):
                self._spawn(self._parts.store(step, parts))
            case c.ShiftShares(generation=generation, version=version, shares=shares, reason=reason):
                self._shares.moved(version, shares)
                shown = " : ".join(f"{share:.1%}" for share in shares)
                self._note(f"shares are now {shown}: {reason}", "info")
                frame = {"op": "shares", "version": version, "shares": list(shares)}
                for node in self.board.nodes_of(generation):
                    self._sessions[node].tell_rank(generation, frame)
            case c.Quarantine(node=node, reason=reason):
                self._note(f"{node} is set aside: {reason}", "error")
                self.board.barred(node, reason)
            case c.NoteLine(text=text, level=level):
                self._note(text, level)
            case c.Finish():
                self._finish = command
            case _:
                assert_never(command)

    def _when_full(self, reason: str) -> None:
        """Raises StopAsked: an interruption cannot be recorded either, and need not be."""
        if self._interrupted():
            raise StopAsked
        self._note(f"the ledger cannot be written: {reason}; waiting for room", "warning")

    def _spawn(self, work: Coroutine[Any, Any, e.Event | None]) -> None:
        async def report() -> None:
            try:
                event = await work
                if event is not None:
                    await self._inbox.put(Happened(event=event))
            except asyncio.CancelledError:
                raise
            except Exception as error:  # the border of the task: the loop ends with it
                self._failure = error
                raise

        task = asyncio.create_task(report())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
