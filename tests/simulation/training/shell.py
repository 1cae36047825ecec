"""What the coordinator does around the Recovery under test: hears nodes, records, carries out, is sometimes away."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, assert_never

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.ids import Epoch, NodeName
from realign_cluster.domain.recovery import Recovery

from .node import Copy, Node
from .script import policy_of

if TYPE_CHECKING:
    from .world import World

LEASE_SECONDS = 3.0
TICK_SECONDS = 0.5


class Coordinator:
    """One sitting."""

    def __init__(self, world: World, epoch: int) -> None:
        self.world = world
        self.epoch = epoch
        self.alive = True
        self.paused_until = 0.0
        self.looked_at = world.clock.now
        self.heard: dict[NodeName, float] = {}  # nodes with a session; when it was last heard, while it is silent
        self.waiting: deque[e.Event] = deque()

    def begin(self) -> None:
        world = self.world
        checkpoints = tuple(copy.part for copy in world.folder.values())
        opened = e.Opened(
            at=world.clock.now,
            epoch=Epoch(self.epoch),
            options=world.options,
            memory=world.memory,
            checkpoints=checkpoints,
        )
        self.recovery = Recovery(opened, policy_of(world.script))
        self.handle(opened)
        for node in world.nodes:
            world.update_silence(node)
            world.reconnect(node)
        world.clock.after(TICK_SECONDS, self.tick)

    def tick(self) -> None:
        world = self.world
        if not self.alive or world.over is not None:
            return
        now = world.clock.now
        if now < self.paused_until:
            world.clock.at(self.paused_until, self.tick)
            return
        gap = now - self.looked_at - TICK_SECONDS
        self.looked_at = now
        if gap > 1.0:
            self.handle(e.Stalled(at=now, gap=gap))
            for name in self.heard:
                self.heard[name] = min(now, self.heard[name] + gap)
        for name in list(self.heard):
            node = world.by_name[name]
            if world.is_connected(node):
                self.heard[name] = now
            elif now - self.heard[name] > LEASE_SECONDS:
                self.lose(node, f"not heard for {now - self.heard[name]:.1f} s")
        generation = self.recovery.generation
        if generation is not None and generation.step and world.rng.random() < 0.02:
            shares, reason = generation.plan.shares, "as measured"
            self.handle(e.SharesMeasured(at=now, generation=generation.number, shares=shares, reason=reason))
        self.handle(e.Tick(at=now))
        world.clock.after(TICK_SECONDS, self.tick)

    def lose(self, node: Node, reason: str, clean: bool = False, barred: bool = False) -> None:
        if self.heard.pop(node.name, None) is not None or barred:
            self.world.break_link(node)
            now = self.world.clock.now
            self.handle(e.NodeLost(at=now, node=node.name, reason=reason, clean=clean, barred=barred))

    def receive(self, node: Node, kind: type[Any], values: dict[str, Any]) -> None:
        now = self.world.clock.now
        if kind is e.NodeReady:
            self.heard[node.name] = now
        elif node.name not in self.heard:
            return
        if kind not in (e.KlMeasured, e.LossMeasured):
            values = {"node": node.name, **values}
        self.handle(kind(at=now, **values))

    # --- events in, commands out

    def handle(self, event: e.Event) -> None:
        """One after the other, also those that commands lead to at once."""
        self.waiting.append(event)
        if len(self.waiting) > 1:
            return
        while self.waiting and self.alive and self.world.over is None:
            self._handle(self.waiting[0])
            self.waiting.popleft()

    def _handle(self, event: e.Event) -> None:
        world = self.world
        commands = self.recovery.apply(event)
        world.record(event, commands)
        for command in commands:
            if isinstance(command, c.Remember):
                world.memory = command.memory
        if world.dies_after_append():
            world.kill_coordinator(0.5)
            return
        world.judge.decided(event, commands)
        for command in commands:
            self.carry_out(command)

    def carry_out(self, command: c.Command) -> None:
        world, epoch = self.world, self.epoch
        match command:
            case c.Replan():
                plan, refusal = world.plan(command.nodes)
                replanned = e.Replanned(at=world.clock.now, nodes=command.nodes, plan=plan, refusal=refusal)
                self.waiting.append(replanned)
            case c.StartRank():
                self.send(command.node, "start", epoch, command.spec)
            case c.Go():
                for node in command.nodes:
                    self.send(node, "go", epoch, command.generation)
            case c.AskStop():
                for node in command.nodes:
                    self.send(node, "stop", epoch, command.generation)
            case c.KillRank():
                self.send(command.node, "kill", epoch, command.generation, command.grace_seconds)
            case c.DropParts():
                self.send(command.node, "drop", epoch, command.parts)
            case c.Fetch():
                self.send(command.node, "fetch", epoch, command.part, command.source)
            case c.Store():
                world.clock.after(0.1 + 0.5 * world.rng.random(), self.store, command)
            case c.Finish():
                world.finished(command)
            case c.Quarantine():
                world.quarantined.append(command.node)
            case c.Remember() | c.ShiftShares() | c.NoteLine():
                pass
            case _:
                assert_never(command)

    def send(self, node: NodeName, *message: Any) -> None:
        self.world.send_down(self.world.by_name[node], message)

    def store(self, command: c.Store) -> None:
        """Pulls part by part, verifies, writes the manifest last."""
        world = self.world
        now = world.clock.now
        if not self.alive:
            return
        if now < self.paused_until:
            world.clock.at(self.paused_until, self.store, command)
            return
        problem = "disk full" if now < world.full_until else ""
        corrupt = []
        for name, part in command.parts:
            node = world.by_name[name]
            copy = node.disk.get(part.name)
            if not world.is_connected(node):
                problem = f"{name} does not answer"
            elif copy is None or copy.part != part or copy.corrupt:
                problem = f"{part.name} of {name} is damaged"
                corrupt.append((name, part))
        if problem:
            self.handle(e.StoreFailed(at=now, step=command.step, reason=problem, corrupt=tuple(corrupt)))
            return
        parts = tuple(part for _, part in command.parts)
        for part in parts:
            world.folder[part.name] = Copy(part, now, acknowledged=True)
        self.handle(e.CheckpointStored(at=now, step=command.step, parts=parts))
