"""The loop around the decisions: reports come in, the ledger has them, the scheduler decides, commands go out.

    report -> event -> scheduler -> ledger (one commit for all that came in meanwhile) -> effects

Decides nothing itself: a question of the form "should we" belongs to `domain`. Effects come only after the ledger
has the event.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import assert_never

import structlog
from pydantic import ValidationError

from realign_cluster.coordinator.admission import Admission, Admitted
from realign_cluster.coordinator.dispatch import Dispatch
from realign_cluster.coordinator.inbox import (
    Barred,
    Connected,
    Disconnected,
    Happened,
    Inbox,
    Incoming,
    Interrupted,
    Left,
    Loaded,
    ModelProgress,
)
from realign_cluster.coordinator.ledger_desk import LedgerDesk
from realign_cluster.coordinator.progress import Level
from realign_cluster.coordinator.roster import Roster
from realign_cluster.coordinator.session import ScoringNode
from realign_cluster.domain.events import (
    Blame,
    Command,
    Commit,
    Discard,
    DrainAsked,
    Event,
    Finish,
    Grant,
    LoadUnits,
    NodeLost,
    NodeReady,
    Quarantine,
    RestartWorkerOn,
    ResultReceived,
    RevokeAttempts,
    RunOpened,
    SetAside,
    Split,
    StorageChanged,
    Tick,
    UnitFailed,
    UnitsLoaded,
    WorkerExited,
    WorkerStalled,
)
from realign_cluster.domain.ids import AttemptId, Epoch, NodeName, UnitId
from realign_cluster.domain.liveness import Liveness
from realign_cluster.domain.report import WorkerReport
from realign_cluster.domain.scheduler import Scheduler
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.store.ledger import Entry, ResultRecord
from realign_cluster.store.space import StorageFull

log = structlog.get_logger()

SHOW_SECONDS = 0.25
DRAIN_SECONDS = 5.0
ROOM_SECONDS = 1.0
MOST_AT_ONCE = 512  # reports in one commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    complete: bool
    reason: str
    interrupted: bool = False
    no_nodes: bool = False
    fault_of_the_job: str | None = None  # every node refuses the model or the options for this reason, with the fix


class Engine:
    """Runs one sitting of a run, from an opened epoch to Finish."""

    def __init__(
        self,
        *,
        desk: LedgerDesk,
        sessions: Mapping[NodeName, ScoringNode],
        inbox: Inbox,
        admission: Admission,
        roster: Roster,
        note: Callable[[str, Level], None],
        show: Callable[[Engine], None],
        room: Callable[[], tuple[bool, int]],
        stop_asked: Callable[[], bool] = lambda: False,
        give_up_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk = desk
        self._sessions = dict(sessions)
        self._inbox = inbox
        self._admission = admission
        self.roster = roster
        self._note = note
        self._show = show
        self._room = room
        self._stop_asked = stop_asked
        self._give_up_seconds = give_up_seconds
        self._clock = clock
        self.scheduler = Scheduler()
        self._liveness = Liveness()
        self._dispatch = Dispatch(desk, self._sessions)
        self._tasks: set[asyncio.Task[None]] = set()
        self._finish: Finish | None = None
        self._interrupts = 0
        self._epoch = Epoch(0)
        self._writable = True
        self._full = False  # the ledger could not be written when it was tried last
        self._room_checked = float("-inf")
        self._look_in = 0.5
        self._idle_since: float | None = None
        self._failure: BaseException | None = None

    async def run(self, opened: RunOpened) -> Outcome:
        self._epoch = opened.epoch
        for name in self._sessions:
            self._spawn(self._dispatch.run(name))
        no_nodes = False
        shown = float("-inf")
        entries = self._decide(opened)
        try:
            while True:
                await self._desk.record([entry for entry in entries if _worth_recording(entry)], self._when_full)
                if self._full:
                    self._full = False
                    self._note("the ledger can be written again: going on", "info")
                self._carry_out(entries)
                if self._finish is not None:
                    break
                if self._clock() - shown >= SHOW_SECONDS:
                    shown = self._clock()
                    self._expect_progress()
                    self._show(self)
                entries = await self._next_entries()
                if self._failure is not None:
                    raise self._failure
                if self._finish is None and self._nobody_left():
                    no_nodes = True
                    self._finish = Finish(complete=False, reason=self.roster.why_nobody())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._show(self)
        return Outcome(
            complete=self._finish.complete,
            reason=self._finish.reason,
            interrupted=self._interrupts > 0 and not self._finish.complete,
            no_nodes=no_nodes,
            fault_of_the_job=self.roster.fault_of_the_job() if no_nodes else None,
        )

    def _expect_progress(self) -> None:
        """Tells the watchdog what the workers have in hand. While no result is taken, an idle worker is no wonder."""
        taking = self._writable and not self._full
        for view in self.scheduler.node_states().values():
            holds = self._sessions[view.name].outstanding if taking else 0
            self._liveness.expect(view.name, view.slowest_unit_seconds, holds)

    # --- what came in ---

    async def _next_entries(self) -> list[Entry]:
        """Waits for a report or for time to pass, then decides on everything that is there."""
        came: list[Incoming | Loaded | Interrupted | Happened] = []
        with contextlib.suppress(TimeoutError):
            came.append(await asyncio.wait_for(self._inbox.get(), timeout=min(self._look_in, SHOW_SECONDS)))
        while not self._inbox.empty() and len(came) < MOST_AT_ONCE:
            came.append(self._inbox.get_nowait())
        now = self._clock()
        entries: list[Entry] = []
        for item in came:
            match item:
                case Incoming(node=node, report=report):
                    entries += self._on_report(node, report, now)
                case Loaded(units=units, exhausted=exhausted):
                    entries += self._decide(UnitsLoaded(at=now, units=units, exhausted=exhausted))
                case Interrupted():
                    entries += self._on_interrupt(now)
                case Happened():
                    raise TypeError("a scoring run heard of a training")
        for fact in self._liveness.check(now):
            entries += self._on_silence(fact)
        if now - self._room_checked >= ROOM_SECONDS:
            self._room_checked = now
            writable, needed = self._room()
            if writable != self._writable:
                self._writable = writable
                self._note_room(writable, needed)
                entries += self._decide(StorageChanged(at=now, writable=writable, needed_bytes=needed))
        entries += self._decide(Tick(at=now))
        return entries

    def _on_report(self, node: NodeName, report: object, now: float) -> list[Entry]:
        match report:
            case Connected(info=info):
                self._liveness.watch(node, now)
                self.roster.connected(node, info)
            case Disconnected(reason=reason):
                self.roster.disconnected(node, reason)
            case Left(reason=reason):
                self._note(f"{node} leaves: {reason}", "info")
                self.roster.lost(node, reason)
                self._liveness.forget(node)
                return self._decide(NodeLost(at=now, node=node, reason=reason, clean=True))
            case Barred(message=message):
                self._note(message, "error")
                self.roster.barred(node, message)
                self._liveness.forget(node)
                return self._decide(NodeLost(at=now, node=node, reason=message))
            case ModelProgress(sent=sent, total=total):
                self.roster.receiving_model(node, sent, total)
            case pb.NodeMessage():
                return self._on_message(node, report, now)
            case _:
                raise TypeError(f"a session reported {type(report).__name__}")
        return []

    def _on_message(self, node: NodeName, message: pb.NodeMessage, now: float) -> list[Entry]:
        if self._liveness.silent_for(node, now) is None:
            return []  # the rest of a stream that is over for us: lost, left or barred, and not greeted again since
        body = message.WhichOneof("body")
        # the node itself: what our session says of it is no sign of life
        self._liveness.heard_anything(node, now, work=body in ("result", "unit_failed"))
        match body:
            case "beat":
                beat = message.beat
                self.roster.beat(node, beat.health, beat.computing_attempt, beat.phase)
                computing = AttemptId(beat.computing_attempt) if beat.computing_attempt else None
                self._liveness.heard(node, now, phase=beat.phase, computing=computing, progress=beat.progress)
            case "measuring":
                self.roster.measuring(node, message.measuring.what, message.measuring.fraction)
            case "worker_ready":
                return self._on_worker_ready(node, message.worker_ready.report, now)
            case "worker_refused":
                text = f"{node} cannot do this job: {message.worker_refused.message}"
                self._note(text, "error")
                self.roster.barred(node, text, code=message.worker_refused.code)
                self._liveness.forget(node)
                return self._decide(NodeLost(at=now, node=node, reason=text))
            case "worker_exited":
                return self._on_worker_exited(node, message.worker_exited, now)
            case "result":
                return self._on_result(node, message.result, now)
            case "unit_failed":
                failed = message.unit_failed
                return self._decide(
                    UnitFailed(
                        at=now,
                        node=node,
                        attempt=AttemptId(failed.attempt),
                        unit=UnitId(failed.unit),
                        code=failed.code,
                        message=failed.message,
                    )
                )
        return []

    def _on_worker_ready(self, node: NodeName, report_json: bytes, now: float) -> list[Entry]:
        try:
            report = WorkerReport.model_validate_json(report_json)
        except ValidationError as error:
            admitted = Admitted(refusal=f"{node} sent a report that cannot be read: {error.error_count()} faults")
        else:
            admitted = self._admission.judge(node, report)
        if admitted.refusal is not None:
            self._note(admitted.refusal, "error")
            self.roster.barred(node, admitted.refusal)
            self._liveness.forget(node)
            self._spawn(self._sessions[node].release("refused by the coordinator"))
            return self._decide(NodeLost(at=now, node=node, reason=admitted.refusal))
        self.roster.ready(node, admitted.cost_per_second)
        return self._decide(
            NodeReady(at=now, node=node, cost_per_second=admitted.cost_per_second, measured=admitted.measured)
        )

    def _on_worker_exited(self, node: NodeName, exited: pb.WorkerExited, now: float) -> list[Entry]:
        level: Level = "info" if exited.asked else "warning"
        self._note(
            f"{node}: the worker is gone ({exited.reason}); it starts again in {exited.back_off_seconds:.1f} s", level
        )
        self.roster.worker_gone(node, exited.reason)
        computing = AttemptId(exited.computing_attempt) if exited.computing_attempt else None
        return self._decide(
            WorkerExited(at=now, node=node, reason=exited.reason, computing=computing, asked=exited.asked)
        )

    def _on_result(self, node: NodeName, result: pb.Result, now: float) -> list[Entry]:
        attempt = AttemptId(result.attempt)
        rows = self._dispatch.rows_sent(attempt)
        intact = hashlib.blake2b(result.payload, digest_size=16).digest() == result.checksum
        objects = rows is None or _is_objects(result.payload, rows)
        timed = math.isfinite(result.compute_seconds) and result.compute_seconds >= 0
        event = ResultReceived(
            at=now,
            node=node,
            attempt=attempt,
            unit=UnitId(result.unit),
            epoch=Epoch(result.epoch),
            valid=intact and objects and timed,
            compute_seconds=result.compute_seconds,
        )
        record = ResultRecord(
            unit=event.unit,
            attempt=attempt,
            epoch=event.epoch,
            node=node,
            payload=result.payload,
            checksum=result.checksum,
            compute_seconds=result.compute_seconds,
            tokens=result.tokens,
            rows=rows or 0,
            shape=result.shape,
        )
        return self._decide(event, record)

    def _on_silence(self, fact: NodeLost | WorkerStalled) -> list[Entry]:
        match fact:
            case NodeLost(node=node, reason=reason):
                self._note(f"{node} is lost: {reason}; its work goes to others", "warning")
                self.roster.lost(node, reason)
                self._sessions[node].start_over()
            case WorkerStalled(node=node, seconds=seconds):
                self._note(f"{node}: no progress for {seconds:.0f} s, restarting its worker", "warning")
            case _:
                assert_never(fact)
        return self._decide(fact)

    def _on_interrupt(self, now: float) -> list[Entry]:
        self._interrupts += 1
        if self._interrupts > 1:
            self._finish = Finish(complete=False, reason="interrupted twice")
            return []
        self._note("interrupted: waiting for what is being computed (again to stop at once)", "warning")
        return self._decide(DrainAsked(at=now, until=now + DRAIN_SECONDS))

    def _decide(self, event: Event, result: ResultRecord | None = None) -> list[Entry]:
        decision = self.scheduler.handle(event)
        self._look_in = decision.seconds_to_next_look
        return [Entry(event=event, commands=decision.commands, result=result)]

    # --- what goes out ---

    def _carry_out(self, entries: list[Entry]) -> None:
        settled: dict[NodeName, list[AttemptId]] = defaultdict(list)
        for entry in entries:
            self._dispatch.forget_what_ended(entry.event)
            for command in entry.commands:
                self._carry_out_one(command, settled)
        for node, attempts in settled.items():
            self._sessions[node].acknowledge(attempts)

    def _carry_out_one(self, command: Command, settled: dict[NodeName, list[AttemptId]]) -> None:
        match command:
            case LoadUnits(count=count):
                self._spawn(self._load(count))
            case Grant():
                self._dispatch.grant(command)
            case RevokeAttempts(node=node, attempts=attempts, reason=reason):
                self._dispatch.forget(attempts)
                self._sessions[node].revoke(attempts, reason)
            case Commit(node=node, attempt=attempt):
                rows = self._dispatch.rows_sent(attempt) or 0
                self._dispatch.forget([attempt])
                settled[node].append(attempt)
                self.roster.committed(node, rows)
            case Discard(node=node, attempt=attempt):
                self._dispatch.forget([attempt])
                settled[node].append(attempt)
            case RestartWorkerOn(node=node, reason=reason):
                self._sessions[node].restart_worker(reason)
            case SetAside(node=node, reason=reason):
                self._note(f"{node} is set aside: {reason}", "error")
                self.roster.set_aside(node, reason)
            case Quarantine(message=message):
                self._note(f"a row is quarantined: {message}", "warning")
                self.roster.quarantined()
            case Finish():
                self._finish = command
            case Split() | Blame():
                log.info("poison", command=command)
            case _:
                assert_never(command)

    async def _load(self, count: int) -> None:
        units, exhausted = await self._desk.load_pending(count)
        await self._inbox.put(Loaded(units=units, exhausted=exhausted))

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error  # the loop raises it at its next turn, within SHOW_SECONDS

    # --- nobody left, no room ---

    def _nobody_left(self) -> bool:
        """True when every node is barred, or none was usable for `give_up_seconds`."""
        now = self._clock()
        if self.roster.anyone_usable():
            self._idle_since = None
            return False
        if not self.roster.anyone_may_come():
            return True
        if self._idle_since is None:
            self._idle_since = now
        return now - self._idle_since >= self._give_up_seconds

    def _when_full(self, full: StorageFull) -> bool:
        """Whether to wait for room: what is to be recorded is kept meanwhile. Not when the user wants it to end."""
        if not self._full:
            self._full = True
            self._note(f"{full.message}: nothing is handed out or acknowledged until there is room", "error")
        return not self._stop_asked()

    def _note_room(self, writable: bool, needed: int) -> None:
        if writable:
            self._note("there is room on the disk again: going on", "info")
        else:
            self._note(
                f"the disk is nearly full: no lease is given out until {needed / 1e6:.0f} MB more are free", "error"
            )


def _is_objects(payload: bytes, rows: int) -> bool:
    """Whether a result has the form of `rows` JSON objects, one per line: a line break within one would be escaped."""
    whole = payload.startswith(b"{") and payload.endswith(b"}")
    return whole and payload.count(b"\n") == payload.count(b"}\n{") == rows - 1


def _worth_recording(entry: Entry) -> bool:
    return bool(entry.commands) or not isinstance(entry.event, Tick)
