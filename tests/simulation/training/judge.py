"""What must hold at every moment of any schedule, seen from outside: who lives, what lies on disks, what was asked."""

from __future__ import annotations

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
        self._could_not_load: dict[tuple[NodeName, _Key], set[float]] = {}  # when the copies were written that failed
        self._ended_complete: set[NodeName] = set()  # ranks of the last generation

    # --- what ranks do

    def rank_started(self, spec: RankSpec) -> None:
        self.started = max(self.started, spec.generation)

    def loaded(self, spec: RankSpec) -> None:
        for part in spec.start:
            branch = int(part.digest.split(".")[0])
            backs = self.world.memory.go_backs[branch : branch_of(spec)]
            must(all(part.step <= back.step for back in backs), "a state that was given up is loaded all the same")

    def stepped(self, group: Group) -> None:
        cut_off = all(rank.node.silent_since is not None or rank.node.is_waking for rank in group.ranks)
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
                for part in self.launched[-1].start:
                    copy = self.world.by_name[event.node].disk.get(part.name)
                    written = self._could_not_load.setdefault((event.node, _key(part)), set())
                    if copy is not None:
                        written.add(copy.written_at)
            case e.RankEnded() if event.complete:
                self._ended_complete.add(event.node)
            case _:
                pass
        for command in commands:
            match command:
                case c.DropParts():
                    self._check_drop(command)
                    self._acknowledge(command.node, command.parts, False)  # nobody counts on it any more
                case c.Store():
                    final = command.step >= self.world.script.steps
                    must(not final or self.completed > 0, "the last checkpoint is stored before the end")
                case c.Remember() if command.memory.complete_step is not None and self.launched:
                    last = self.launched[-1]
                    must(self._ended_complete >= set(last.world.nodes), "complete although not all ranks ended")
                case c.Quarantine() if "reboot" in command.reason:
                    node = self.world.by_name[command.node]
                    must(node.wedged or not self.world.is_connected(node), "a node that is well is to be rebooted")
                case c.Remember() | c.NoteLine():
                    pass
                case _:
                    must(bool(command.reason), "a command without a reason")
        starts = [command for command in commands if isinstance(command, c.StartRank)]
        if starts:
            self._check_start(starts)

    def _acknowledge(self, node: NodeName, parts: tuple[StatePart, ...], known: bool = True) -> None:
        for part in parts:
            copy = self.world.by_name[node].disk.get(part.name)
            if copy is not None and copy.part == part:
                copy.acknowledged = known

    def _check_start(self, starts: list[c.StartRank]) -> None:
        world, specs = self.world, [start.spec for start in starts]
        first = specs[0]
        must([spec.rank for spec in specs] == list(range(first.world.size)), "ranks are missing or out of order")
        must(tuple(start.node for start in starts) == first.world.nodes, "ranks are on other nodes than planned")
        for spec in specs[1:]:
            must(spec.model_copy(update={"rank": 0}) == first, "the ranks of a generation are told different things")
        must(len({part.generation for part in first.start}) < 2, "parts of different generations are mixed")
        for node in () if self.damage else [world.by_name[start.node] for start in starts]:
            held = [node.disk[part.name].part for part in first.start if part.name in node.disk]
            must(held == list(first.start) or not world.is_connected(node), f"{node.name} lacks what it starts from")
        must(first.generation == world.memory.generation, f"generation {first.generation} was not remembered")
        must(all(spec.generation < first.generation for spec in self.launched), "a generation's number was used again")
        for node in world.nodes:
            rank = node.rank
            if rank is None or rank.hung or rank.group is None or node.is_waking:
                continue  # nothing that computes, or its daemon kills it soon after the machine wakes
            must(False, f"generation {first.generation} is started while {rank.spec.generation} lives on {node.name}")
        if world.script.reproducible:
            before = self.same_world
            away = before is not None and not set(before.nodes) <= set(first.world.nodes)
            may_change = away and world.script.fewer
            must(may_change or before in (None, first.world), "another world, although the same one was asked for")
            self.same_world = first.world
        best = max(self._good(reachable=True), default=0)
        must(first.start_step >= best, f"from step {first.start_step} although step {best} is there")
        anywhere = max(self._good(reachable=False), default=0)
        must(first.start_step > 0 or not anywhere, f"from step 0 although step {anywhere} is somewhere")
        if self.launched:
            self.steps_lost.append(max(0, self.reached - first.start_step))
        self.reached = first.start_step
        self.launched.append(first)
        self._ended_complete.clear()

    def _check_drop(self, command: c.DropParts) -> None:
        if self.damage:
            return  # what is left may be damaged: that is seen when it is started from
        before = self._good(reachable=True)[:2]
        after = self._good(reachable=True, but=command)[:2]
        must(after == before, f"of the states of steps {before} only those of {after} are left")
        if self.launched and self.launched[-1].world.parts > 1:
            before, after = self._outlasting(None), self._outlasting(command)
            must(after == before, f"of the states of steps {before} that outlast any node only {after} are left")

    def _outlasting(self, but: c.DropParts | None) -> list[int]:
        """The newest step of which something whole is left whichever node goes."""
        left = [set(self._good(True, but, without=node.name)) for node in self.world.nodes if node.up]
        return sorted(set.intersection(*left))[-1:] if left else []

    def _good(self, reachable: bool, but: c.DropParts | None = None, without: str = "") -> list[int]:
        """Steps of undamaged whole states that a coordinator has heard of, the newest first.

        `reachable`: on nodes with a session and in the run folder only. `but`: without what is to be dropped.
        """
        world = self.world
        copies: list[Copy] = list(world.folder.values())
        for node in world.nodes:
            if node.name == without:
                continue
            if not reachable or (world.coordinator is not None and node.name in world.coordinator.heard):
                dropped = but.parts if but is not None and but.node == node.name else ()
                copies += [copy for copy in node.disk.values() if copy.acknowledged and copy.part not in dropped]
        found: dict[_Key, set[int]] = {}
        for copy in copies:
            if not copy.corrupt and not self._is_given_up(copy.part):
                found.setdefault(_key(copy.part), set()).add(copy.part.part)
        return sorted({key[0] for key, parts in found.items() if len(parts) == key[3]}, reverse=True)

    def _is_given_up(self, part: StatePart) -> bool:
        """Of a course that the run left, or shown twice by one node to be of no use."""
        if any(part.generation <= back.generation and part.step > back.step for back in self.world.memory.go_backs):
            return True
        return any(len(copies) > 1 and key == _key(part) for (_, key), copies in self._could_not_load.items())

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
                heard = world.coordinator.heard if world.coordinator is not None else {}
                away = any(node.name not in heard or node.wedged or not node.up for node in world.nodes)
                excuse = finish.reason.startswith("waited") or "takes no part" in finish.reason
                must(away or not excuse, f"nobody is away: {finish}")
