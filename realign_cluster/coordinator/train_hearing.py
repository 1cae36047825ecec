"""What nodes and their ranks say, as events for recovery and as rows for the ledger.

Translates and decides nothing: an event says what happened, in the order in which it was heard. Also who is heard at
all: what comes of a node that counts as lost is the rest of a stream that is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from pydantic import ValidationError

from realign_cluster.coordinator.inbox import Barred, Connected, Disconnected, Left, ModelProgress
from realign_cluster.coordinator.part_store import PartStore
from realign_cluster.coordinator.progress import Level
from realign_cluster.coordinator.rank_board import RankBoard
from realign_cluster.coordinator.share_watch import ShareWatch
from realign_cluster.domain import rank_report as r
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.events import NodeLost as NodeSilent
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.liveness import Liveness
from realign_cluster.domain.world import StatePart
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.store.train_ledger import Measurement, StepRecord


@dataclass(slots=True, kw_only=True)
class Heard:
    """Since the last commit. Reports are acknowledged once it is in the ledger."""

    events: list[e.Event] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    reference: list[tuple[int, float, float]] = field(default_factory=list)
    acknowledge: dict[NodeName, tuple[int, int]] = field(default_factory=dict)  # (generation, sequence)


class Hearing:
    """For one sitting. `welcome` hears of every node that is there."""

    def __init__(
        self,
        *,
        parts: PartStore,
        shares: ShareWatch,
        board: RankBoard,
        welcome: Callable[[NodeName, common.NodeInfo], None],
        note: Callable[[str, Level], None],
    ) -> None:
        self._parts = parts
        self._shares = shares
        self._board = board
        self._welcome = welcome
        self._note = note
        self._liveness = Liveness()
        self._ports: dict[tuple[int, NodeName], int] = {}
        self._cut_said = False

    def port(self, generation: int, node: NodeName) -> int:
        """Where that rank will listen; it has said so when it was loaded."""
        return self._ports[(generation, node)]

    def silent(self, now: float, heard: Heard) -> list[NodeName]:
        """Nodes that count as lost from now on."""
        lost = [fact for fact in self._liveness.check(now) if isinstance(fact, NodeSilent)]
        for fact in lost:
            self._note(f"{fact.node} is lost: {fact.reason}", "warning")
            self._board.lost(fact.node, fact.reason)
            heard.events.append(e.NodeLost(at=now, node=fact.node, reason=fact.reason))
        return [fact.node for fact in lost]

    def hear(self, node: NodeName, report: object, now: float, heard: Heard) -> None:
        match report:
            case Connected(info=info):
                self._liveness.watch(node, now)
                self._welcome(node, info)
                self._board.connected(node, info)
            case Disconnected(reason=reason):
                self._board.disconnected(node, reason)
            case Left(reason=reason):
                self._liveness.forget(node)
                self._board.lost(node, reason)
                self._note(f"{node} leaves: {reason}", "info")
                heard.events.append(e.NodeLost(at=now, node=node, reason=reason, clean=True))
            case Barred(message=message):
                self._bar(node, message, now, heard)
            case ModelProgress(sent=sent, total=total):
                self._board.receiving(node, sent, total)
            case pb.NodeMessage():
                if self._liveness.silent_for(node, now) is not None:
                    self._liveness.heard_anything(node, now)
                    self._on_message(node, report, now, heard)
            case _:
                raise TypeError(f"a session reported {type(report).__name__}")

    def _bar(self, node: NodeName, message: str, now: float, heard: Heard) -> None:
        self._note(message, "error")
        self._liveness.forget(node)
        self._board.barred(node, message)
        heard.events.append(e.NodeLost(at=now, node=node, reason=message, barred=True))

    def _on_message(self, node: NodeName, message: pb.NodeMessage, now: float, heard: Heard) -> None:
        match message.WhichOneof("body"):
            case "beat":
                self._board.beat(node, message.beat)
            case "worker_refused":
                self._bar(node, f"{node} cannot do this job: {message.worker_refused.message}", now, heard)
            case "training_ready":
                ready = message.training_ready
                parts = tuple(StatePart.model_validate_json(part) for part in ready.parts)
                generation = ready.generation if ready.running else None
                self._board.ready(node)
                heard.events.append(e.NodeReady(at=now, node=node, parts=parts, generation=generation, boot=ready.boot))
            case "rank_report":
                self._on_rank_report(node, message.rank_report, now, heard)
            case "rank_exited":
                self._on_rank_exited(node, message.rank_exited, now, heard)
            case "part_fetched":
                said = message.part_fetched
                part = StatePart.model_validate_json(said.part)
                heard.events.append(self._parts.fetched(node, part, said.error, corrupt=said.corrupt, now=now))

    def _on_rank_report(self, node: NodeName, message: pb.RankReport, now: float, heard: Heard) -> None:
        generation = message.generation
        heard.acknowledge[node] = (generation, message.sequence)
        try:
            report = r.RANK_REPORT.validate_json(message.body)
        except ValidationError as error:
            text = f"{node} sent a report that cannot be read: {error.error_count()} faults"
            heard.events.append(
                e.RankFailed(at=now, node=node, generation=generation, code="report", message=text, fatal=True)
            )
            return
        self._board.reported(node, generation, report)
        _note_down(node, generation, report, heard)
        heard.events += self._events_of(node, generation, report, now)

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

    def _on_rank_exited(self, node: NodeName, exited: pb.RankExited, now: float, heard: Heard) -> None:
        generation, reason = exited.generation, exited.reason
        self._board.exited(node, generation, reason, asked=exited.asked, last_lines=exited.last_lines)
        if exited.sequence == 0:
            heard.events.append(e.StartFailed(at=now, node=node, generation=generation, reason=reason))
            return
        heard.acknowledge[node] = (generation, exited.sequence)
        heard.events.append(
            e.RankExited(
                at=now, node=node, generation=generation, reason=reason, asked=exited.asked, wedged=exited.wedged
            )
        )


def _note_down(node: NodeName, generation: int, report: r.RankReport, heard: Heard) -> None:
    """What the ledger keeps of a report besides the events."""
    wall = time.time()
    body = report.model_dump(mode="json", exclude={"op"})
    match report:
        case r.StepDone(step=step):
            heard.steps.append(StepRecord(step=step, generation=generation, node=node, wall=wall, body=body))
        case r.ReferenceRows(rows=rows):
            heard.reference += rows
        case r.Section():
            pass
        case _:
            step = getattr(report, "step", 0) if not isinstance(report, r.Kept) else report.part.step
            heard.measurements.append(
                Measurement(kind=report.op, step=step, generation=generation, node=node, wall=wall, body=body)
            )
