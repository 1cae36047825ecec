"""The shell of a simulated coordinator around the very Scheduler and Liveness that the real one uses."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from realign_cluster.domain import events as e
from realign_cluster.domain.ids import AttemptId
from realign_cluster.domain.liveness import Liveness, LivenessPolicy
from realign_cluster.domain.scheduler import Scheduler

from .ledger import must
from .node import BEAT_SECONDS, Node

if TYPE_CHECKING:
    from .world import World

STALL = LivenessPolicy(stall_least_seconds=4.0, load_stall_seconds=30.0)


class Coordinator:
    """The shell around Scheduler and Liveness, as thin as can be: event, ledger, commands, messages."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.paused_until = 0.0
        self.held: list[e.ResultReceived] = []  # while the disk is full
        self.full = False
        self.scheduler = Scheduler(world.policy)
        self.liveness = Liveness(STALL)
        self.outstanding: dict[str, OrderedDict[int, int]] = {node.name: OrderedDict() for node in world.nodes}
        self.ready: set[str] = set()
        self.last_at = 0.0

    def begin(self) -> None:
        planned = {node.name: node.script.claimed for node in self.world.nodes}
        self.handle(self.world.ledger.open(self.clock_now(), planned))
        self.look()

    def clock_now(self) -> float:
        return self.world.clock.now

    def look(self) -> None:
        """The timer of the loop: deadlines, ticks, beats, connections."""
        if not self.alive:
            return
        world = self.world
        if self.clock_now() < self.paused_until:
            world.clock.at(self.paused_until, self.look)
            return
        for fact in self.liveness.check(self.clock_now()):
            if isinstance(fact, e.NodeLost):
                world.lost.append(fact.node)
                self.lose(fact)
            else:
                self.handle(fact)
        if not self.alive:
            return
        for node in world.nodes:
            world.connect(node)
            world.send_down(node, ("beat",))
        seconds = self.handle(e.Tick(at=self.clock_now()))
        if self.alive:
            world.clock.after(min(seconds, BEAT_SECONDS), self.look)

    def lose(self, fact: e.NodeLost) -> None:
        node = self.world.by_name[fact.node]
        self.outstanding[fact.node].clear()
        self.ready.discard(fact.node)
        self.world.break_link(node)
        self.handle(fact)

    def receive(self, node: Node, message: tuple[Any, ...]) -> None:
        now = self.clock_now()
        name = node.name
        if message[0] == "beat":
            _, phase, computing, progress = message
            view = self.scheduler.node_states().get(name)
            if view is not None:
                self.liveness.expect(name, view.slowest_unit_seconds, 0 if self.full else view.units_outstanding)
            attempt = AttemptId(computing) if computing is not None else None
            self.liveness.heard(name, now, phase=phase, computing=attempt, progress=progress)
            return
        self.liveness.heard_anything(name, now)
        match message:
            case ("ready",):
                self.ready.add(name)
                self.handle(
                    e.NodeReady(at=now, node=name, cost_per_second=node.script.claimed, measured=node.script.measured)
                )
            case ("result", attempt, unit, epoch, seconds, valid):
                result = e.ResultReceived(
                    at=now, node=name, attempt=attempt, unit=unit, epoch=epoch, valid=valid, compute_seconds=seconds
                )
                if self.full:
                    self.held.append(result)
                else:
                    self.handle(result)
            case ("failed", attempt, unit, epoch):
                if epoch == self.world.ledger.epoch:
                    self.outstanding[name].pop(attempt, None)
                    self.handle(
                        e.UnitFailed(at=now, node=name, attempt=attempt, unit=unit, code="bad-row", message="refused")
                    )
            case ("exited", reason, computing, asked, epoch):
                self.ready.discard(name)
                self.outstanding[name].clear()
                if epoch == self.world.ledger.epoch:
                    self.handle(e.WorkerExited(at=now, node=name, reason=reason, computing=computing, asked=asked))

    def handle(self, event: e.Event) -> float:
        """Ledger first, then effects. Returns how long the scheduler can wait."""
        if not self.alive:
            return BEAT_SECONDS
        world = self.world
        must(event.at >= self.last_at, "time went back")
        self.last_at = event.at
        decision = self.scheduler.handle(event)
        world.record(event, decision.commands)
        world.ledger.apply(event, decision.commands)
        if world.dies_after_append():
            world.kill_coordinator(0.5)
            return BEAT_SECONDS
        for command in decision.commands:
            self.carry_out(command)
            if not self.alive:
                break
        return decision.seconds_to_next_look

    def carry_out(self, command: e.Command) -> None:
        world = self.world
        match command:
            case e.LoadUnits():
                page = world.ledger.load(command.count, self.clock_now())
                world.clock.after(0.001, self.loaded, page)
            case e.Grant():
                for attempt, unit in command.attempts:
                    self.outstanding[command.node][attempt] = unit
                    world.send_down(world.by_name[command.node], ("assign", attempt, unit))
            case e.RevokeAttempts():
                for attempt in command.attempts:
                    self.outstanding[command.node].pop(attempt, None)
                world.send_down(world.by_name[command.node], ("revoke", command.attempts))
            case e.Commit() | e.Discard():
                self.outstanding[command.node].pop(command.attempt, None)
                world.send_down(world.by_name[command.node], ("ack", command.attempt))
            case e.RestartWorkerOn():
                world.send_down(world.by_name[command.node], ("restart", command.reason))
            case e.Finish():
                self.alive = False
                world.finished(command)
            case e.Split() | e.Quarantine() | e.Blame() | e.SetAside():
                pass

    def loaded(self, page: e.UnitsLoaded) -> None:
        self.handle(e.UnitsLoaded(at=max(self.clock_now(), self.last_at), units=page.units, exhausted=page.exhausted))

    def connected(self, node: Node) -> None:
        self.liveness.watch(node.name, self.clock_now())
        self.world.send_down(node, ("hello", self.world.ledger.epoch))
        for attempt, unit in self.outstanding[node.name].items():
            self.world.send_down(node, ("assign", attempt, unit))
