"""A whole run in virtual time: a heap of events around the very Scheduler and Liveness that the coordinator uses.

What is simulated is what surrounds them: clock, network, disk, daemons, workers. Connections deliver in order, late
and sometimes twice, and lose what is in flight when they break (as HTTP/2 streams do); on a new connection both sides
offer again what the other may have missed. A seed decides everything.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from realign_cluster.domain import events as e
from realign_cluster.domain.scheduler import Policy

from .clock import Clock
from .ledger import Ledger, Violation, must
from .node import Node
from .script import Fault, Script
from .shell import Coordinator

VIRTUAL_LIMIT = 3600.0
EVENT_LIMIT = 400_000


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
            node.down.clear()
            node.up_way.clear()

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
            for _ in range(1 + self._comes_again()):
                node.down.append((node.clear_down, node.link, message))
                self.clock.at(node.clear_down, self.deliver_down, node)

    def send_up(self, node: Node, message: tuple[Any, ...]) -> None:
        if self._sent(node):
            node.clear_up = max(node.clear_up, self.clock.now + self._delay())
            for _ in range(1 + (message[0] == "result" and self._comes_again())):
                node.up_way.append((node.clear_up, node.link, message))
                self.clock.at(node.clear_up, self.deliver_up, node)

    def _comes_again(self) -> bool:
        return bool(self.script.repeats) and self.rng.random() < self.script.repeats

    def deliver_down(self, node: Node) -> None:
        """Whatever is due, in order. During a cut it is sent again until it comes through or the connection is given
        up.
        """
        now = self.clock.now
        if now < node.cut_until:
            self.clock.at(node.cut_until, self.deliver_down, node)
            return
        while node.down and node.down[0][0] <= now:
            _, link, message = node.down.popleft()
            if node.link == link and node.up:
                node.receive(message)

    def deliver_up(self, node: Node) -> None:
        now = self.clock.now
        coordinator = self.coordinator
        later = max(node.cut_until, coordinator.paused_until if coordinator is not None and coordinator.alive else 0.0)
        if now < later:
            self.clock.at(later, self.deliver_up, node)
            return
        while node.up_way and node.up_way[0][0] <= now:
            _, link, message = node.up_way.popleft()
            coordinator = self.coordinator
            if node.link == link and coordinator is not None and coordinator.alive:
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
