"""What must hold at every moment of any schedule, seen from outside: who lives, what lies on disks, what was asked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.world import RankSpec, StatePart, WorldPlan
from tests.simulation.ledger import must

if TYPE_CHECKING:
    from .group import Group
    from .node import Copy
    from .world import World

_Key = tuple[int, int, str, int]


def _key(part: StatePart) -> _Key:
    return part.step, part.generation, part.layout, part.parts


def branch_of(spec: RankSpec) -> int:
    """How often the run had gone back for its KL."""
    return round(1 / spec.learning_rate_factor).bit_length() - 1


class Judge:
    def __init__(self, world: World) -> None:
        self.world = world
        self.started = 0  # the newest generation of which a rank was started
        self.damage = False  # a copy of a state may be damaged and nobody knows
        self.completed = 0  # generations that came to the end
        self.launched: list[RankSpec] = []  # the first rank's of every generation
        self.reached = 0
        self.steps_lost: list[int] = []
        self.stop_asked = False
        self.same_world: WorldPlan | None = None
        self._could_not_load: Counter[tuple[NodeName, _Key]] = Counter()

    # --- what ranks do

    def rank_started(self, spec: RankSpec) -> None:
        self.started = max(self.started, spec.generation)

    def loaded(self, spec: RankSpec) -> None:
        for part in spec.start:
            branch = int(part.digest.split(".")[0])
            backs = self.world.memory.go_backs[branch : branch_of(spec)]
            must(all(part.step <= back.step for back in backs), "a state that was given up is loaded all the same")

    def stepped(self, group: Group) -> None:
        cut_off = all(rank.node.silent_since is not None for rank in group.ranks)
        must(
            group.number >= self.started or cut_off,
            f"generation {group.number} did step {group.step} after generation {self.started} was started",
        )
        must(group.step <= self.world.script.steps, "a step too many")
        self.reached = max(self.reached, group.step)

    def ended(self, group: Group, complete: bool) -> None:
        if complete:
            must(group.step == self.world.script.steps, f"complete after step {group.step}")
            self.completed += 1

    # --- what is decided

    def decided(self, event: e.Event, commands: tuple[c.Command, ...]) -> None:
        match event:
            case e.Opened():
                self.stop_asked = False
            case e.StopAsked():
                self.stop_asked = True
            case e.PartKept() | e.PartFetched():
                self._acknowledge(event.node, (event.part,))
            case e.NodeReady():
                self._acknowledge(event.node, event.parts)
            case e.RankFailed() if event.code == e.STATE_CODE and self.launched:
                for part in self.launched[-1].start[:1]:
                    self._could_not_load[event.node, _key(part)] += 1
            case _:
                pass
        starts = [command for command in commands if isinstance(command, c.StartRank)]
        if starts:
            self._check_start(starts)
        for command in commands:
            match command:
                case c.DropParts():
                    self._check_drop(command)
                case c.Store():
                    final = command.step >= self.world.script.steps
                    must(not final or self.completed > 0, "the last checkpoint is stored before the end")
                case c.Remember() | c.NoteLine():
                    pass
                case _:
                    must(bool(command.reason), "a command without a reason")

    def _acknowledge(self, node: NodeName, parts: tuple[StatePart, ...]) -> None:
        for part in parts:
            copy = self.world.by_name[node].disk.get(part.name)
            if copy is not None and copy.part == part:
                copy.acknowledged = True

    def _check_start(self, starts: list[c.StartRank]) -> None:
        world, specs = self.world, [start.spec for start in starts]
        first = specs[0]
        must([spec.rank for spec in specs] == list(range(first.world.size)), "ranks are missing or out of order")
        must(tuple(start.node for start in starts) == first.world.nodes, "ranks are on other nodes than planned")
        for spec in specs[1:]:
            must(spec.model_copy(update={"rank": 0}) == first, "the ranks of a generation are told different things")
        must(first.generation == world.memory.generation, f"generation {first.generation} was not remembered")
        must(all(spec.generation < first.generation for spec in self.launched), "a generation's number was used again")
        for node in world.nodes:
            rank = node.rank
            if rank is None or rank.hung or rank.group is None or node.frozen_until > world.clock.now:
                continue  # nothing that computes, or its daemon kills it when the machine wakes
            must(False, f"generation {first.generation} is started while {rank.spec.generation} lives on {node.name}")
        if world.script.reproducible:
            must(self.same_world in (None, first.world), "another world, although the same one was asked for")
            self.same_world = first.world
        best = max(self._good(reachable=True), default=0)
        must(first.start_step >= best, f"from step {first.start_step} although step {best} is there")
        anywhere = max(self._good(reachable=False), default=0)
        must(first.start_step > 0 or not anywhere, f"from step 0 although step {anywhere} is somewhere")
        if self.launched:
            self.steps_lost.append(max(0, self.reached - first.start_step))
        self.reached = first.start_step
        self.launched.append(first)

    def _check_drop(self, command: c.DropParts) -> None:
        if self.damage:
            return  # what is left may be damaged: that is seen when it is started from
        before = max(self._good(reachable=False), default=0)
        after = max(self._good(reachable=False, but=command), default=0)
        must(after == before, f"of step {before} nothing whole is left on {command.node} and elsewhere")

    def _good(self, reachable: bool, but: c.DropParts | None = None) -> list[int]:
        """Steps of undamaged whole states that a coordinator has heard of.

        `reachable`: on nodes with a session and in the run folder only. `but`: without what is to be dropped.
        """
        world = self.world
        copies: list[Copy] = list(world.folder.values())
        for node in world.nodes:
            if not reachable or (world.coordinator is not None and node.name in world.coordinator.heard):
                dropped = but.parts if but is not None and but.node == node.name else ()
                copies += [copy for copy in node.disk.values() if copy.acknowledged and copy.part not in dropped]
        found: dict[_Key, set[int]] = {}
        for copy in copies:
            if not copy.corrupt and not self._is_given_up(copy.part):
                found.setdefault(_key(copy.part), set()).add(copy.part.part)
        return [key[0] for key, parts in found.items() if len(parts) == key[3]]

    def _is_given_up(self, part: StatePart) -> bool:
        """Of a course that the run left, or shown twice by one node to be of no use."""
        if any(part.generation <= back.generation and part.step > back.step for back in self.world.memory.go_backs):
            return True
        return any(count > 1 and key == _key(part) for (_, key), count in self._could_not_load.items())

    # --- how it ends

    def finished(self, finish: c.Finish) -> None:
        script, world = self.world.script, self.world
        match finish.state:
            case "complete":
                must(self.completed > 0, "complete, and no generation came to the end")
                final = [copy.part for copy in world.folder.values() if copy.part.step == script.steps]
                must(bool(final) and len(final) >= final[0].parts, "complete without the last checkpoint")
                last = self.launched[-1].world
                must(script.drifts not in last.nodes or last.size == 1, "complete with different weights")
            case "failed":
                why = {
                    "is no number": script.nan_at > 0,
                    "different weights": bool(script.drifts),
                    "over the budget": script.kl_every > 0,
                }
                must(any(text in finish.reason and asked for text, asked in why.items()), f"no reason for {finish}")
            case "incomplete" if finish.reason.startswith("interrupted"):
                must(self.stop_asked, "interrupted by nobody")
            case "incomplete":
                crashes = any(node.crashes for node in script.nodes)
                must(bool(script.faults) or crashes or script.resets > 0, f"without any fault: {finish}")
