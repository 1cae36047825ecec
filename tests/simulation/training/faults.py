"""What a fault does to the world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from realign_cluster.domain import recovery_events as e

from .node import Node
from .script import Fault

if TYPE_CHECKING:
    from .world import World


def strike(world: World, fault: Fault) -> None:
    if world.over is not None or world.healed:
        return
    world.say(f"FAULT {fault}")
    node = world.by_name.get(fault.node)  # type: ignore[call-overload]
    if node is None:
        strike_coordinator(world, fault)
    elif fault.kind.endswith("rank"):
        strike_rank(world, fault, node)
    else:
        strike_node(world, fault, node)


def strike_rank(world: World, fault: Fault, node: Node) -> None:
    rank = node.rank
    if rank is None or not rank.alive:
        return
    match fault.kind:
        case "crash rank":
            rank.die("killed by signal 9", False)
        case "hang rank":
            rank.hung = True
        case "stop rank":
            rank.frozen_until = max(rank.frozen_until, world.clock.now + fault.seconds)
        case "wedge rank":
            rank.hung = rank.wedged = node.wedged = True
        case _:
            raise ValueError(fault.kind)


def strike_node(world: World, fault: Fault, node: Node) -> None:
    now = world.clock.now
    until = now + fault.seconds
    match fault.kind:
        case "cut":
            node.cut_until = max(node.cut_until, until)
            _silence(world, node, node.cut_until)
        case "unlink":
            node.unlinked_until = max(node.unlinked_until, until)
        case "mute":
            node.mute_until = max(node.mute_until, until)
        case "freeze":
            node.frozen_until = max(node.frozen_until, until)
            _silence(world, node, node.frozen_until)
        case "reset":
            world.break_link(node)
        case "kill node" | "power off" if node.up:
            node.down()
            node.boots += 1
            node.wedged = False
            if fault.kind == "power off":
                lose_what_was_not_synced(world, node)
            world.clock.after(fault.seconds, node.start)
        case "restart daemon" if node.up:
            node.down()
            world.clock.after(fault.seconds, node.start)
        case "leave" if node.link and world.coordinator is not None and not (node.rank and node.rank.wedged):
            node.gone_until = until
            rank, node.rank = node.rank, None
            if rank is not None:
                rank.alive = False
                if rank.group is not None:
                    rank.group.member_died()
            world.coordinator.lose(node, "it left", clean=True)
        case "bar" if node.up and world.coordinator is not None:
            node.gone_until = until
            world.coordinator.lose(node, "its disk is full", barred=True)
        case "refuse to start":
            node.refuses_until = max(node.refuses_until, until)
        case "disk full":
            node.full_until = max(node.full_until, until)
        case "corrupt" if node.disk:
            copy = node.disk[world.rng.choice(sorted(node.disk))]
            copy.corrupt = True
            world.judge.damage = True
        case _:
            pass  # there is nothing to strike


def lose_what_was_not_synced(world: World, node: Node) -> None:
    """Snapshots are not synced: a loss of power takes some of them, or leaves them torn."""
    for name, copy in list(node.disk.items()):
        if copy.part.kind == "snapshot" and world.rng.random() < 0.6:
            if world.rng.random() < 0.5:
                del node.disk[name]
            else:
                copy.corrupt = True
            world.judge.damage = True


def strike_coordinator(world: World, fault: Fault) -> None:
    coordinator = world.coordinator
    match fault.kind:
        case "no room":
            world.full_until = max(world.full_until, world.clock.now + fault.seconds)
        case "corrupt stored":
            if world.folder:
                world.folder[world.rng.choice(sorted(world.folder))].corrupt = True
                world.judge.damage = True
        case _ if coordinator is None or not coordinator.alive:
            pass
        case "kill coordinator" if fault.seconds == 0.05:
            world.die_at_append = world.appends + 1
        case "kill coordinator":
            world.kill_coordinator(fault.seconds)
        case "pause coordinator":
            coordinator.paused_until = max(coordinator.paused_until, world.clock.now + fault.seconds)
            for node in world.nodes:
                _silence(world, node, coordinator.paused_until)
        case "stop" | "stop twice":
            coordinator.handle(e.StopAsked(at=world.clock.now))
            if fault.kind == "stop twice":
                world.clock.after(1.0, _stop_again, world, coordinator)
        case _:
            raise ValueError(fault.kind)


def _stop_again(world: World, coordinator: object) -> None:
    if world.coordinator is coordinator and world.coordinator is not None:
        world.coordinator.handle(e.StopAsked(at=world.clock.now))


def _silence(world: World, node: Node, until: float) -> None:
    """From now until then neither hears the other."""
    world.update_silence(node)
    world.clock.at(until, world.update_silence, node)
