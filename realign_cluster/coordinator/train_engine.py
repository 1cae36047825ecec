"""The loop around recovery: reports come in, the ledger has them, the state machine decides, commands go out.

    report -> event -> recovery -> ledger (one commit for all that came in meanwhile) -> effects

Decides nothing itself. Effects, acknowledgements among them, come only after the ledger has the event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import structlog
from pydantic import ValidationError

from realign_cluster.coordinator.inbox import (
    Barred,
    Connected,
    Disconnected,
    Happened,
    Inbox,
    Incoming,
    Interrupted,
    Left,
    ModelProgress,
)
from realign_cluster.coordinator.part_store import PartStore
from realign_cluster.coordinator.progress import Level
from realign_cluster.coordinator.rank_board import RankBoard
from realign_cluster.coordinator.share_watch import ShareWatch
from realign_cluster.coordinator.stop import StopAsked
from realign_cluster.coordinator.train_desk import TrainDesk
from realign_cluster.coordinator.training_session import TrainingSession
from realign_cluster.domain import rank_report as r
from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.events import NodeLost as NodeSilent
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.liveness import Liveness
from realign_cluster.domain.recovery import Recovery
from realign_cluster.domain.recovery_codec import encode
from realign_cluster.domain.world import StatePart, WorldPlan
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.store.train_ledger import Measurement, StepRecord

log = structlog.get_logger()

SHOW_SECONDS = 0.25
TICK_SECONDS = 0.25
MOST_AT_ONCE = 512  # reports in one commit
REFERENCE_ROWS = 10_000  # in one message to a rank


@dataclass(slots=True, kw_only=True)
class _Batch:
    """What came in since the last commit, and what it led to."""

    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    commands: list[c.Command] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    reference: list[tuple[int, float, float]] = field(default_factory=list)
    acknowledge: dict[NodeName, tuple[int, int]] = field(default_factory=dict)  # (generation, sequence)
    memory: dict[str, Any] | None = None  # the last that is to be remembered


class TrainEngine:
    """Runs one sitting of a training run, from Opened to Finish. `welcome` hears of every node that is there; `replan`
    answers with a plan or with why there is none.
    """

    def __init__(
        self,
        *,
        desk: TrainDesk,
        sessions: Mapping[NodeName, TrainingSession],
        rank_hosts: Mapping[NodeName, str],
        inbox: Inbox,
        parts: PartStore,
        shares: ShareWatch,
        board: RankBoard,
        welcome: Callable[[NodeName, common.NodeInfo], None],
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
        self._parts = parts
        self.board = board
        self._welcome = welcome
        self._replan = replan
        self._note = note
        self._show = show
        self._interrupted = interrupted
        self._clock = clock
        self.recovery: Recovery | None = None
        self._liveness = Liveness()
        self._ports: dict[tuple[int, NodeName], int] = {}
        self._shares = shares
        self._tasks: set[asyncio.Task[None]] = set()
        self._finish: c.Finish | None = None
        self._failure: BaseException | None = None
        self._looked: float | None = None
        self._interrupts = 0
        self._go_backs = 0
        self._cut_said = False

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
                    steps=batch.steps,
                    measurements=batch.measurements,
                    reference=batch.reference,
                    memory=batch.memory,
                    when_full=self._when_full,
                )
                for node, (generation, sequence) in batch.acknowledge.items():
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
        if self._looked is not None and now - self._looked > 1.0 + TICK_SECONDS:
            self._decide(e.Stalled(at=now, gap=now - self._looked), batch)
        self._looked = now
        for item in came:
            match item:
                case Incoming(node=node, report=report):
                    self._on_report(node, report, now, batch)
                case Happened(event=event):
                    self._decide(event, batch)
                case Interrupted():
                    self._interrupts += 1
                    again = "" if self._interrupts > 1 else "; again to stop at once"
                    self._note(
                        f"interrupted: stopping, after this step with a checkpoint if one is under way{again}",
                        "warning",
                    )
                    self._decide(e.StopAsked(at=now), batch)
                case _:
                    raise TypeError(f"a training run heard {type(item).__name__}")
        for fact in self._liveness.check(now):
            if isinstance(fact, NodeSilent):
                self._lost(fact.node, fact.reason, now, batch)
        self._decide(e.Tick(at=now), batch)
        return batch

    def _on_report(self, node: NodeName, report: object, now: float, batch: _Batch) -> None:
        match report:
            case Connected(info=info):
                self._liveness.watch(node, now)
                self._welcome(node, info)
                self.board.connected(node, info)
            case Disconnected(reason=reason):
                self.board.disconnected(node, reason)
            case Left(reason=reason):
                self._liveness.forget(node)
                self.board.lost(node, reason)
                self._note(f"{node} leaves: {reason}", "info")
                self._decide(e.NodeLost(at=now, node=node, reason=reason, clean=True), batch)
            case Barred(message=message):
                self._note(message, "error")
                self._liveness.forget(node)
                self.board.barred(node, message)
                self._decide(e.NodeLost(at=now, node=node, reason=message, barred=True), batch)
            case ModelProgress(sent=sent, total=total):
                self.board.receiving(node, sent, total)
            case pb.NodeMessage():
                if self._liveness.silent_for(node, now) is None:
                    return  # the rest of a stream that is over for us
                self._liveness.heard_anything(node, now)
                self._on_message(node, report, now, batch)
            case _:
                raise TypeError(f"a session reported {type(report).__name__}")

    def _on_message(self, node: NodeName, message: pb.NodeMessage, now: float, batch: _Batch) -> None:
        match message.WhichOneof("body"):
            case "beat":
                self.board.beat(node, message.beat)
            case "worker_refused":
                text = f"{node} cannot do this job: {message.worker_refused.message}"
                self._note(text, "error")
                self._liveness.forget(node)
                self.board.barred(node, text)
                self._decide(e.NodeLost(at=now, node=node, reason=text, barred=True), batch)
            case "training_ready":
                ready = message.training_ready
                parts = tuple(StatePart.model_validate_json(part) for part in ready.parts)
                generation = ready.generation if ready.running else None
                self.board.ready(node)
                self._decide(e.NodeReady(at=now, node=node, parts=parts, generation=generation, boot=ready.boot), batch)
            case "rank_report":
                self._on_rank_report(node, message.rank_report, now, batch)
            case "rank_exited":
                self._on_rank_exited(node, message.rank_exited, now, batch)
            case "part_fetched":
                part = StatePart.model_validate_json(message.part_fetched.part)
                self._decide(
                    self._parts.fetched(
                        node, part, message.part_fetched.error, corrupt=message.part_fetched.corrupt, now=now
                    ),
                    batch,
                )

    def _on_rank_report(self, node: NodeName, message: pb.RankReport, now: float, batch: _Batch) -> None:
        batch.acknowledge[node] = (message.generation, message.sequence)
        try:
            report = r.RANK_REPORT.validate_json(message.body)
        except ValidationError as error:
            text = f"{node} sent a report that cannot be read: {error.error_count()} faults"
            self._decide(
                e.RankFailed(at=now, node=node, generation=message.generation, code="report", message=text, fatal=True),
                batch,
            )
            return
        generation = message.generation
        self.board.reported(node, generation, report)
        self._note_down(node, generation, report, batch)
        for event in self._events_of(node, generation, report, now):
            self._decide(event, batch)

    def _note_down(self, node: NodeName, generation: int, report: r.RankReport, batch: _Batch) -> None:
        """What the ledger keeps of a report besides the events."""
        wall = time.time()
        body = report.model_dump(mode="json", exclude={"op"})
        match report:
            case r.StepDone(step=step):
                batch.steps.append(StepRecord(step=step, generation=generation, node=node, wall=wall, body=body))
            case r.ReferenceRows(rows=rows):
                batch.reference += rows
            case r.Section():
                pass
            case _:
                step = getattr(report, "step", 0) if not isinstance(report, r.Kept) else report.part.step
                batch.measurements.append(
                    Measurement(kind=report.op, step=step, generation=generation, node=node, wall=wall, body=body)
                )

    def _events_of(self, node: NodeName, generation: int, report: r.RankReport, now: float) -> list[e.Event]:
        match report:
            case r.Section():
                return [
                    e.RankSection(
                        at=now,
                        node=node,
                        generation=generation,
                        section=report.section,
                        step=report.step,
                        patience_seconds=report.patience_seconds,
                    )
                ]
            case r.Loaded(port=port, config=config):
                self._ports[(generation, node)] = port
                self._say_what_was_cut(report)
                return [e.RankLoaded(at=now, node=node, generation=generation, config=config)]
            case r.Joined():
                return [e.RankJoined(at=now, node=node, generation=generation)]
            case r.StepDone():
                done = e.StepDone(at=now, node=node, generation=generation, step=report.step, seconds=report.seconds)
                moved = self._shares.step(node, generation, report, now)
                return [done] if moved is None else [done, moved]
            case r.Kept(part=part):
                return [e.PartKept(at=now, node=node, part=part)]
            case r.NotKept(kind=kind, step=step, reason=reason):
                self._note(f"{node} could not keep the {kind} of step {step}, training goes on: {reason}", "warning")
                return []
            case r.Evaluated(step=step, metrics=metrics):
                loss = metrics.get("loss")
                return [] if loss is None else [e.LossMeasured(at=now, generation=generation, step=step, loss=loss)]
            case r.Diverged(step=step, kl=kl):
                return [e.KlMeasured(at=now, generation=generation, step=step, kl=kl)]
            case r.ReferenceRows():
                return []
            case r.Ended():
                return [
                    e.RankEnded(
                        at=now,
                        node=node,
                        generation=generation,
                        step=report.step,
                        complete=report.complete,
                        reason=report.reason,
                        digest=report.digest,
                    )
                ]
            case r.Failed():
                message = self._parts.explain(report)
                return [
                    e.RankFailed(
                        at=now,
                        node=node,
                        generation=generation,
                        code=report.code,
                        message=f"{node}: {message}",
                        fatal=report.fatal,
                    )
                ]
            case _:
                assert_never(report)

    def _say_what_was_cut(self, loaded: r.Loaded) -> None:
        """Once: it is the same on every rank."""
        if loaded.truncated_rows and not self._cut_said:
            self._cut_said = True
            self._note(
                f"{loaded.truncated_rows:,} of {loaded.rows:,} training rows were longer than the limit and were cut;"
                f" of {loaded.empty_rows:,} nothing is left to learn: they are left out",
                "warning",
            )

    def _on_rank_exited(self, node: NodeName, exited: pb.RankExited, now: float, batch: _Batch) -> None:
        if exited.sequence == 0:
            event: e.Event = e.StartFailed(at=now, node=node, generation=exited.generation, reason=exited.reason)
        else:
            batch.acknowledge[node] = (exited.generation, exited.sequence)
            event = e.RankExited(
                at=now,
                node=node,
                generation=exited.generation,
                reason=exited.reason,
                asked=exited.asked,
                wedged=exited.wedged,
            )
        self.board.exited(node, exited.generation, exited.reason, asked=exited.asked, last_lines=exited.last_lines)
        self._decide(event, batch)

    def _lost(self, node: NodeName, reason: str, now: float, batch: _Batch) -> None:
        self._note(f"{node} is lost: {reason}", "warning")
        self.board.lost(node, reason)
        self._sessions[node].start_over()
        self._decide(e.NodeLost(at=now, node=node, reason=reason), batch)

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
                addresses = tuple(f"{self._rank_hosts[node]}:{self._ports[(generation, node)]}" for node in nodes)
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
