"""A whole run in virtual time: a heap of events around the very Scheduler and Liveness that the coordinator uses.

What is simulated is what surrounds them: clock, network, disk, daemons, workers. Connections deliver in order, late
and sometimes twice, and lose what is in flight when they break (as HTTP/2 streams do); on a new connection both sides
offer again what the other may have missed. A seed decides everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from realign_cluster.domain import events as e
from realign_cluster.domain.ids import AttemptId
from realign_cluster.domain.liveness import Liveness, LivenessPolicy
from realign_cluster.domain.scheduler import Policy, Scheduler

from .ledger import Ledger, Violation, must
from .script import Fault, NodeScript, Script

BEAT_SECONDS = 0.5
LEASE_SECONDS = 3.0
STALL = LivenessPolicy(stall_least_seconds=4.0, load_stall_seconds=30.0)
VIRTUAL_LIMIT = 3600.0
EVENT_LIMIT = 400_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (max(time, self.now), self._sequence, call, args))

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, call, *args)

    def step(self) -> bool:
        if not self._heap:
            return False
        self.now, _, call, args = heappop(self._heap)
        self.count += 1
        call(*args)
        return True


class Worker:
    """The child of a daemon: loads, then computes what its queue holds, in order."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ready = False
        self.hung = False
        self.progress = 0
        self.attempt: int | None = None
        self.unit = -1
        self.began = 0.0
        self.alive = True


class Node:
    """A daemon with its worker. What survives its death is its spool."""

    def __init__(self, script: NodeScript, world: World) -> None:
        self.script = script
        self.world = world
        self.name = script.name
        self.up = False
        self.cut_until = 0.0
        self.left_until = 0.0
        self.link = 0  # generation of the connection; 0 is none
        self.links = 0
        self.clear_down = self.clear_up = 0.0  # a message may not overtake the one before
        self.spool: OrderedDict[int, tuple[int, int, float]] = OrderedDict()  # attempt -> unit, epoch, seconds
        self.epoch = 0
        self.queue: OrderedDict[int, int] = OrderedDict()
        self.worker: Worker | None = None
        self.heard_coordinator = 0.0
        self.generation = 0
        self.computed_cost = 0.0

    # --- life

    def start(self) -> None:
        if self.up:
            return
        self.up = True
        self.generation += 1
        self.queue.clear()
        self.heard_coordinator = self.world.clock.now
        self.start_worker()
        self.beat(self.generation)

    def kill(self, seconds: float) -> None:
        if not self.up:
            return
        self.up = False
        self.generation += 1
        self.stop_worker()
        self.world.break_link(self)
        self.world.clock.after(seconds, self.start)

    def start_worker(self) -> None:
        worker = self.worker = Worker(self)
        self.world.clock.after(self.script.load_seconds, self.loaded, worker)

    def stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.alive = False
            self.worker = None

    def loaded(self, worker: Worker) -> None:
        if not worker.alive:
            return
        worker.ready = True
        self.send(("ready",))
        self.compute_next()

    def worker_died(self, reason: str, asked: bool = False) -> None:
        worker = self.worker
        if worker is None:
            return
        computing = worker.attempt
        self.stop_worker()
        self.queue.clear()
        self.send(("exited", reason, computing, asked, self.epoch))
        self.world.clock.after(0.2, self.back_off, self.generation)

    def back_off(self, generation: int) -> None:
        if self.generation == generation and self.up and self.worker is None:
            self.start_worker()

    def beat(self, generation: int) -> None:
        if generation != self.generation:
            return
        world = self.world
        now = world.clock.now
        world.clock.after(BEAT_SECONDS, self.beat, generation)
        worker = self.worker
        if worker is not None and worker.attempt is not None and not worker.hung:
            worker.progress += 1
        phase = "" if worker is None else "compute" if worker.ready else "load"
        if worker is not None and not worker.ready:
            worker.progress += 1
        self.send(("beat", phase, worker.attempt if worker else None, worker.progress if worker else 0))
        if self.link and now - self.heard_coordinator > LEASE_SECONDS:
            world.break_link(self)
        if not self.link and now - self.heard_coordinator > LEASE_SECONDS:
            self.queue.clear()  # free for another run; the unit in hand goes on

    # --- messages

    def send(self, message: tuple[Any, ...]) -> None:
        self.world.send_up(self, message)

    def receive(self, message: tuple[Any, ...]) -> None:
        self.heard_coordinator = self.world.clock.now
        match message:
            case ("hello", epoch):
                if epoch != self.epoch:
                    self.epoch = epoch
                    self.queue.clear()
                for attempt, (unit, of, seconds) in self.spool.items():
                    self.send(("result", attempt, unit, of, seconds, True))
                if self.worker is not None and self.worker.ready:
                    self.send(("ready",))
            case ("assign", attempt, unit):
                known = attempt in self.queue or attempt in self.spool
                if not known and not (self.worker and self.worker.attempt == attempt):
                    self.queue[attempt] = unit
                    self.compute_next()
            case ("revoke", attempts):
                for attempt in attempts:
                    self.queue.pop(attempt, None)
            case ("ack", attempt):
                self.spool.pop(attempt, None)
            case ("restart", reason):
                self.worker_died(f"restart asked: {reason}", asked=True)
            case ("release",):
                self.queue.clear()
            case ("beat",):
                pass

    # --- computing

    def compute_next(self) -> None:
        worker = self.worker
        if worker is None or not worker.ready or worker.attempt is not None or not self.queue:
            return
        attempt, unit = self.queue.popitem(last=False)
        worker.attempt, worker.unit, worker.began = attempt, unit, self.world.clock.now
        worker.progress += 1
        work = self.world.ledger.units[unit]
        finish = self.finish_time(self.world.clock.now, work.cost)
        poison = next((self.world.script.poison[row] for row in work.rows if row in self.world.script.poison), None)
        rng = self.world.rng
        if poison is None and self.script.breaks and rng.random() < self.script.breaks:
            poison = "kill"
        if poison is None:
            self.world.clock.at(finish, self.finished, worker, attempt)
        else:
            when = worker.began + rng.random() * (finish - worker.began)
            self.world.clock.at(when, self.struck, worker, attempt, poison)

    def finish_time(self, start: float, cost: float) -> float:
        """When `cost` begun at `start` is done at its speed, which changes."""
        speeds = self.script.speeds
        time = start
        for index, (_, speed) in enumerate(speeds):
            until = speeds[index + 1][0] if index + 1 < len(speeds) else float("inf")
            if until <= time:
                continue
            if time + cost / speed <= until:
                return time + cost / speed
            cost -= (until - time) * speed
            time = until
        raise AssertionError("the last speed has no end")

    def cost_in_hand(self) -> float:
        """Of the unit that is being computed, what is done, at most all of it."""
        worker = self.worker
        if worker is None or worker.attempt is None:
            return 0.0
        cost = self.world.ledger.units[worker.unit].cost
        finish = self.finish_time(worker.began, cost)
        now = self.world.clock.now
        return cost * min(1.0, (now - worker.began) / (finish - worker.began))

    def struck(self, worker: Worker, attempt: int, poison: str) -> None:
        if not worker.alive or worker.hung or worker.attempt != attempt:
            return
        if poison == "kill":
            self.worker_died("killed by signal 9")
        elif poison == "hang":
            worker.hung = True
        else:
            self.send(("failed", attempt, worker.unit, self.epoch))
            worker.attempt = None
            self.compute_next()

    def finished(self, worker: Worker, attempt: int) -> None:
        if not worker.alive or worker.hung or worker.attempt != attempt:
            return
        now = self.world.clock.now
        seconds = now - worker.began
        self.computed_cost += self.world.ledger.units[worker.unit].cost
        worker.attempt = None
        worker.progress += 1
        self.spool[attempt] = (worker.unit, self.epoch, seconds)
        valid = not self.script.garbles or self.world.rng.random() >= self.script.garbles
        self.send(("result", attempt, worker.unit, self.epoch, seconds, valid))
        self.compute_next()


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
        self.handle(self.world.ledger.open(self.clock_now()))
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


class World:
    def __init__(
        self, script: Script, policy: Policy | None = None, trace: Callable[[str], None] | None = None
    ) -> None:
        self.script = script
        self.policy = policy or Policy(page=script.page)
        self.trace = trace
        self.rng = Random(script.seed ^ 0x5EED)
        self.clock = Clock()
        self.ledger = Ledger(script.units, script.cost_of_row, self.policy.depth)
        self.nodes = [Node(node, self) for node in script.nodes]
        self.by_name = {node.name: node for node in self.nodes}
        self.coordinator: Coordinator | None = None
        self.recorded: list[tuple[e.Event, tuple[e.Command, ...]]] = []
        self.lost: list[str] = []
        self.over: e.Finish | None = None
        self.sittings = 0
        self.die_at_append = -1
        self.appends = 0

    def run(self) -> e.Finish:
        for node in self.nodes:
            self.clock.at(node.script.joins_at, node.start)
        for fault in self.script.faults:
            self.clock.at(fault.at, self.strike, fault)
        self.start_coordinator()
        while self.over is None:
            must(self.clock.step(), "nothing happens any more and the run is not over")
            must(self.clock.now < VIRTUAL_LIMIT, f"not over after {VIRTUAL_LIMIT:.0f} virtual seconds")
            must(self.clock.count < EVENT_LIMIT, f"not over after {EVENT_LIMIT} events")
        return self.over

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.clock.now:10.3f}  {text}")

    def record(self, event: e.Event, commands: tuple[e.Command, ...]) -> None:
        if commands or not isinstance(event, e.Tick):
            self.recorded.append((event, commands))
            if self.trace is not None:
                self.say(str(event))
                for command in commands:
                    self.say(f"    -> {command}")

    # --- the coordinator

    def start_coordinator(self) -> None:
        if self.over is None and (self.coordinator is None or not self.coordinator.alive):
            self.sittings += 1
            for node in self.nodes:
                self.break_link(node)
            self.coordinator = Coordinator(self)
            self.coordinator.begin()

    def kill_coordinator(self, seconds: float) -> None:
        if self.coordinator is not None and self.coordinator.alive:
            self.say("coordinator killed")
            self.coordinator.alive = False
            for node in self.nodes:
                self.break_link(node)
            self.clock.after(seconds, self.start_coordinator)

    def dies_after_append(self) -> bool:
        """Once in a while the coordinator dies between the ledger and the effects."""
        self.appends += 1
        return self.appends == self.die_at_append

    def finished(self, finish: e.Finish) -> None:
        self.say(str(finish))
        if finish.complete or not finish.reason.startswith("interrupted"):
            self.over = finish
        else:  # the user runs the same command again
            self.clock.after(1.0, self.start_coordinator)

    # --- the network

    def connect(self, node: Node) -> None:
        now = self.clock.now
        if node.link or not node.up or now < node.cut_until or now < node.left_until:
            return
        node.links += 1
        node.link = node.links
        node.heard_coordinator = now
        node.clear_down = node.clear_up = now
        self.say(f"connected to {node.name}")
        assert self.coordinator is not None
        self.coordinator.connected(node)

    def break_link(self, node: Node) -> None:
        if node.link:
            self.say(f"connection to {node.name} is gone")
            node.link = 0

    def _delay(self) -> float:
        script = self.script
        delay = script.latency * (0.5 + self.rng.random())
        if script.spikes and self.rng.random() < script.spikes:
            delay += self.rng.random() * 2.0
        return delay

    def _sent(self, node: Node) -> bool:
        if not node.link:
            return False
        if self.script.resets and self.rng.random() < self.script.resets:
            self.break_link(node)
            return False
        return True

    def send_down(self, node: Node, message: tuple[Any, ...]) -> None:
        if self._sent(node):
            node.clear_down = max(node.clear_down, self.clock.now + self._delay())
            self.clock.at(node.clear_down, self.deliver_down, node, node.link, message)
            if self.script.repeats and self.rng.random() < self.script.repeats:
                self.clock.at(node.clear_down, self.deliver_down, node, node.link, message)

    def send_up(self, node: Node, message: tuple[Any, ...]) -> None:
        if self._sent(node):
            node.clear_up = max(node.clear_up, self.clock.now + self._delay())
            self.clock.at(node.clear_up, self.deliver_up, node, node.link, message)
            if self.script.repeats and message[0] == "result" and self.rng.random() < self.script.repeats:
                self.clock.at(node.clear_up, self.deliver_up, node, node.link, message)

    def deliver_down(self, node: Node, link: int, message: tuple[Any, ...]) -> None:
        if node.link != link or not node.up:
            return
        if self.clock.now < node.cut_until:  # sent again until it comes through, or the connection is given up
            self.clock.at(node.cut_until, self.deliver_down, node, link, message)
        else:
            node.receive(message)

    def deliver_up(self, node: Node, link: int, message: tuple[Any, ...]) -> None:
        coordinator = self.coordinator
        if node.link != link or coordinator is None or not coordinator.alive:
            return
        later = max(coordinator.paused_until, node.cut_until)
        if self.clock.now < later:
            self.clock.at(later, self.deliver_up, node, link, message)
        else:
            coordinator.receive(node, message)

    # --- faults

    def strike(self, fault: Fault) -> None:
        if self.over is not None:
            return
        self.say(f"FAULT {fault}")
        node = self.by_name.get(fault.node)
        coordinator = self.coordinator
        match fault.kind:
            case "kill worker" | "hang worker":
                assert node is not None
                worker = node.worker
                if worker is None or (worker.attempt is not None and self.ledger.units[worker.unit].suspected):
                    return
                if fault.kind == "kill worker":
                    node.worker_died("killed by signal 9")
                elif worker.attempt is not None:
                    worker.hung = True
            case "cut":
                assert node is not None
                node.cut_until = max(node.cut_until, self.clock.now + fault.seconds)
            case "reset":
                assert node is not None
                self.break_link(node)
            case "kill node":
                assert node is not None
                node.kill(fault.seconds)
            case "leave":
                assert node is not None
                node.left_until = self.clock.now + fault.seconds
                if coordinator is not None and coordinator.alive and node.link:
                    coordinator.liveness.forget(node.name)
                    at = max(self.clock.now, coordinator.last_at)
                    coordinator.lose(e.NodeLost(at=at, node=node.script.name, reason="it left", clean=True))
                    node.queue.clear()
            case "pause coordinator":
                if coordinator is not None:
                    coordinator.paused_until = max(coordinator.paused_until, self.clock.now + fault.seconds)
            case "kill coordinator":
                if fault.seconds == 0.05:
                    self.die_at_append = self.appends + 1
                else:
                    self.kill_coordinator(fault.seconds)
            case "disk full":
                self.fill_disk(fault.seconds)
            case "drain":
                if coordinator is not None and coordinator.alive:
                    now = max(self.clock.now, coordinator.last_at)
                    coordinator.handle(e.DrainAsked(at=now, until=now + fault.seconds))
            case _:
                raise ValueError(fault.kind)

    def fill_disk(self, seconds: float) -> None:
        coordinator = self.coordinator
        if coordinator is None or not coordinator.alive or coordinator.full:
            return
        coordinator.full = True
        at = max(self.clock.now, coordinator.last_at)
        coordinator.handle(e.StorageChanged(at=at, writable=False, needed_bytes=1 << 20))
        self.clock.after(seconds, self.empty_disk, coordinator)

    def empty_disk(self, coordinator: Coordinator) -> None:
        if not coordinator.alive:
            return
        coordinator.full = False
        coordinator.handle(e.StorageChanged(at=max(self.clock.now, coordinator.last_at), writable=True))
        held, coordinator.held = coordinator.held, []
        for result in held:
            coordinator.handle(
                e.ResultReceived(
                    at=max(self.clock.now, coordinator.last_at),
                    node=result.node,
                    attempt=result.attempt,
                    unit=result.unit,
                    epoch=result.epoch,
                    valid=result.valid,
                    compute_seconds=result.compute_seconds,
                )
            )


def check(world: World) -> None:
    """What must hold at the end of any schedule."""
    finish, ledger, script = world.over, world.ledger, world.script
    must(finish is not None and finish.complete, f"ended with {finish}")
    rows = set(script.cost_of_row)
    done = ledger.committed.keys() | ledger.quarantined.keys()
    must(rows == done, f"rows {sorted(rows ^ done)} are lost")
    innocent = ledger.quarantined.keys() - script.poison.keys()
    must(not innocent, f"innocent rows {sorted(innocent)} are quarantined")
    must(ledger.quarantined.keys() == script.poison.keys(), "a poison row was committed")
    for row, (code, message) in ledger.quarantined.items():
        must(bool(code) and bool(message), f"row {row} is quarantined without an error")
        must(not any(node.name in message for node in script.nodes), f"the error of row {row} names a node: {message}")


__all__ = ["Violation", "World", "check"]
