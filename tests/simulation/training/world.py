"""A whole training run in virtual time around the very Recovery that the coordinator uses.

What is simulated is what surrounds it: clock, network, disks, daemons, ranks and their groups. Connections deliver in
order and late, and lose what is in flight when they break, or deliver it late to a daemon all the same; on a new one
the daemon says again what it said last. A seed decides everything.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.run_memory import Options, RunMemory
from realign_cluster.domain.world import RankSpec, WorldPlan
from tests.simulation.clock import Clock
from tests.simulation.ledger import Violation, must

from .faults import strike
from .group import Group
from .judge import Judge
from .node import LEASE_SECONDS, Copy, Node
from .script import Script
from .shell import Coordinator

VIRTUAL_LIMIT = 3000.0
EVENT_LIMIT = 100_000
SITTINGS_LIMIT = 20


class World:
    def __init__(self, script: Script, trace: Callable[[str], None] | None = None) -> None:
        self.script = script
        self.trace = trace
        self.rng = Random(script.seed ^ 0x5EED)
        self.clock = Clock()
        self.judge = Judge(self)
        self.nodes = [Node(node, self) for node in script.nodes]
        self.by_name = {node.name: node for node in self.nodes}
        self.groups: dict[int, Group] = {}
        self.options = Options(
            steps=script.steps,
            nodes=tuple(self.by_name),
            reproducible=script.reproducible,
            wait_seconds=script.wait_seconds,
            least_nodes=1 if script.fewer else None,
            snapshot_every=script.snapshot_every,
            kl_budget=0.1 if script.kl_every else None,
            kl_action=script.kl_action,
        )
        # the run folder
        self.memory = RunMemory()
        self.folder: dict[str, Copy] = {}
        self.full_until = 0.0
        self.recorded: list[tuple[e.Event, tuple[c.Command, ...]]] = []
        # the coordinator
        self.coordinator: Coordinator | None = None
        self.sittings = 0
        self.die_at_append = -1
        self.appends = 0
        self.quarantined: list[NodeName] = []
        self.ends: list[c.Finish] = []
        self.healed = False  # all faults are over: the next sitting has to be the last
        self.over: c.Finish | None = None

    def run(self) -> c.Finish:
        for node in self.nodes:
            self.clock.at(node.script.joins_at, node.start)
        for fault in self.script.faults:
            self.clock.at(fault.at, strike, self, fault)
        self.start_coordinator()
        while self.over is None:
            must(self.clock.step(), "nothing happens any more and the run is not over")
            must(self.clock.now < VIRTUAL_LIMIT, f"not over after {VIRTUAL_LIMIT:.0f} virtual seconds")
            must(self.clock.count < EVENT_LIMIT, f"not over after {EVENT_LIMIT} events")
        return self.over

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.clock.now:10.3f}  {text}")

    def record(self, event: e.Event, commands: tuple[c.Command, ...]) -> None:
        if commands or not isinstance(event, e.Tick):
            self.recorded.append((event, commands))
            if self.trace is not None:
                self.say(str(event))
                for command in commands:
                    self.say(f"    -> {command}")

    def plan(self, nodes: tuple[NodeName, ...]) -> tuple[WorldPlan | None, str]:
        """The planner: as many as there are, or exactly as many as the model is cut for."""
        script = self.script
        if len(nodes) < script.least_nodes:
            return None, f"the model does not fit on {len(nodes)} nodes"
        match script.parallel:
            case "single":
                chosen = nodes[:1]
            case "tensor":
                chosen = nodes[:2]
            case _:
                chosen = nodes
        parallel = "single" if script.parallel == "data" and len(chosen) == 1 else script.parallel
        layers = tuple((index, index + 1) for index in range(len(chosen))) if parallel == "pipeline" else ()
        shares = tuple(1 / len(chosen) for _ in chosen)
        return WorldPlan(parallel=parallel, nodes=chosen, shares=shares, layers=layers), ""

    def group(self, spec: RankSpec) -> Group:
        if spec.generation not in self.groups:
            self.groups[spec.generation] = Group(self, spec)
        return self.groups[spec.generation]

    # --- the coordinator

    def start_coordinator(self) -> None:
        if self.over is None and (self.coordinator is None or not self.coordinator.alive):
            self.sittings += 1
            must(self.sittings <= SITTINGS_LIMIT, f"not over after {SITTINGS_LIMIT} sittings")
            for node in self.nodes:
                self.break_link(node)
            self.coordinator = Coordinator(self, self.sittings)
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

    def finished(self, finish: c.Finish) -> None:
        """One that is incomplete is begun again: by the user who interrupted it, or after all that was wrong is put
        right.
        """
        self.say(str(finish))
        self.ends.append(finish)
        self.judge.finished(finish)
        assert self.coordinator is not None
        self.coordinator.alive = False
        if finish.state != "incomplete":
            self.over = finish
            return
        for node in self.nodes:
            self.break_link(node)
        if not finish.reason.startswith("interrupted"):
            self.heal()
        self.clock.after(4.0, self.start_coordinator)

    def heal(self) -> None:
        """Everybody is there, sound and reachable, from now on."""
        must(not self.healed, f"it ended although nothing was wrong any more: {self.ends[-1]}")
        self.say("all faults are over")
        self.healed = True
        self.full_until = 0.0
        for node in self.nodes:
            node.down()
            node.boots += 1
            node.wedged = False
            node.start()
            node.frozen_until = 0.0
            node.cut_until = node.mute_until = self.clock.now
            node.unlinked_until = node.full_until = node.gone_until = node.refuses_until = self.clock.now

    # --- the network

    def is_connected(self, node: Node) -> bool:
        """Whether the coordinator hears the daemon."""
        return self.hears(node) and self.clock.now >= node.mute_until

    def hears(self, node: Node) -> bool:
        """Whether the daemon hears the coordinator."""
        return bool(node.link) and self.clock.now >= max(node.cut_until, node.frozen_until)

    def update_silence(self, node: Node) -> None:
        """After anything that may end, or begin, that a daemon hears its coordinator."""
        coordinator = self.coordinator
        talking = coordinator is not None and coordinator.alive and self.clock.now >= coordinator.paused_until
        if talking and self.hears(node):
            node.silent_since = None
        elif node.silent_since is None:
            node.silent_since = self.clock.now
            self.clock.after(LEASE_SECONDS, node.check_lease, self.clock.now)

    def reconnect(self, node: Node) -> None:
        self.clock.after(0.1 + 0.4 * self.rng.random(), self.connect, node)

    def connect(self, node: Node) -> None:
        coordinator = self.coordinator
        if self.over is not None or coordinator is None or not coordinator.alive or node.link or not node.up:
            return
        later = max(node.cut_until, node.mute_until, node.frozen_until, node.gone_until, coordinator.paused_until)
        if later > self.clock.now:
            self.clock.at(later + 0.1, self.connect, node)
            return
        node.links += 1
        node.link = node.links
        node.clear = [self.clock.now, self.clock.now]
        self.update_silence(node)
        self.send_down(node, ("hello", coordinator.epoch))

    def break_link(self, node: Node) -> None:
        if node.link:
            coordinator = self.coordinator
            if coordinator is not None and node.name in coordinator.heard and self.is_connected(node):
                coordinator.heard[node.name] = self.clock.now
            node.link = 0
            self.update_silence(node)
            self.reconnect(node)

    def _arrival(self, node: Node, way: int) -> float | None:
        """When what is sent now arrives; None if it does not."""
        script, rng = self.script, self.rng
        if not node.link:
            return None
        if script.resets and not self.healed and rng.random() < script.resets:
            self.say(f"connection to {node.name} is gone")
            self.break_link(node)
            return None
        delay = script.latency * (0.5 + rng.random())
        if script.spikes and not self.healed and rng.random() < script.spikes:
            delay += rng.random() * 2.0
        node.clear[way] = max(node.clear[way], self.clock.now + delay)
        return node.clear[way]

    def send_down(self, node: Node, message: tuple[Any, ...]) -> None:
        arrival = self._arrival(node, 0)
        if arrival is not None:
            self.clock.at(arrival, self.deliver_down, node, node.link, message)

    def send_up(self, node: Node, message: tuple[type[Any], dict[str, Any]]) -> None:
        arrival = self._arrival(node, 1)
        if arrival is not None:
            self.clock.at(arrival, self.deliver_up, node, node.link, message)

    def deliver_down(self, node: Node, link: int, message: tuple[Any, ...], late: bool = False) -> None:
        later = max(node.cut_until, node.frozen_until)
        if self.clock.now < later:
            self.clock.at(later, self.deliver_down, node, link, message)
        elif node.up and node.link == link:
            node.receive(message)
        elif node.up and not late and self.rng.random() < 0.3:  # what was said last over a broken one may be heard yet
            self.clock.after(self.rng.random(), self.deliver_down, node, node.link, message, True)

    def deliver_up(self, node: Node, link: int, message: tuple[type[Any], dict[str, Any]]) -> None:
        coordinator = self.coordinator
        if coordinator is None or not coordinator.alive or node.link != link:
            return
        later = max(node.cut_until, node.mute_until, node.frozen_until, coordinator.paused_until)
        if self.clock.now < later:
            self.clock.at(later, self.deliver_up, node, link, message)
        else:
            coordinator.receive(node, *message)


__all__ = ["Violation", "World"]
