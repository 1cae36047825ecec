"""Who holds which parts of which states, and which whole states follow from it.

A state is whole when every part of one step, layout and generation is held by somebody who is there. Parts of the same
step that different generations wrote are never mixed: their rounding may differ. Knows no files and no time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.run_memory import GoBack
from realign_cluster.domain.world import StatePart

Holder = NodeName | None  # None is the run folder
Group = tuple[int, int, str, int]  # step, generation, layout, parts: what belongs together


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All parts of one state, in order."""

    parts: tuple[StatePart, ...]

    @property
    def step(self) -> int:
        return self.parts[0].step

    @property
    def group(self) -> Group:
        return group_of(self.parts[0])


def group_of(part: StatePart) -> Group:
    return part.step, part.generation, part.layout, part.parts


class Inventory:
    """A holder has one part of a name at a time, as its folder has. Parts that were given up or proved unusable are
    remembered as such and never offered.
    """

    def __init__(self, go_backs: Iterable[GoBack] = ()) -> None:
        self._held: dict[Holder, dict[str, StatePart]] = {}
        self._go_backs = tuple(go_backs)
        self._unusable: set[Group] = set()
        self._states: list[State] | None = None

    def set(self, holder: Holder, parts: Iterable[StatePart]) -> None:
        """All that it holds."""
        self._held[holder] = {part.name: part for part in parts}
        self._states = None

    def forget(self, holder: Holder) -> None:
        """It is not there any more."""
        self._held.pop(holder, None)
        self._states = None

    def add(self, holder: Holder, part: StatePart) -> None:
        self._held.setdefault(holder, {})[part.name] = part
        self._states = None

    def remove(self, holder: Holder, part: StatePart) -> None:
        held = self._held.get(holder, {})
        if held.get(part.name) == part:
            del held[part.name]
            self._states = None

    def go_back(self, go_back: GoBack) -> None:
        self._go_backs += (go_back,)
        self._states = None

    def condemn(self, state: State) -> None:
        """It cannot be loaded, wherever it comes from."""
        self._unusable.add(state.group)
        self._states = None

    def holds(self, holder: Holder, part: StatePart) -> bool:
        return self._held.get(holder, {}).get(part.name) == part

    def holders(self, part: StatePart) -> list[Holder]:
        """Nodes first, the run folder last."""
        found: list[Holder] = [holder for holder, held in self._held.items() if held.get(part.name) == part]
        return sorted(found, key=lambda holder: (holder is None, holder or ""))

    def parts_of(self, holder: Holder) -> list[StatePart]:
        return list(self._held.get(holder, {}).values())

    def nodes(self) -> list[NodeName]:
        return [holder for holder in self._held if holder is not None]

    def is_wanted(self, part: StatePart) -> bool:
        """Whether it may ever be started from."""
        return group_of(part) not in self._unusable and not any(
            part.generation <= back.generation and part.step > back.step for back in self._go_backs
        )

    def states(self) -> list[State]:
        """Whole ones, the newest first."""
        if self._states is None:
            self._states = _whole(
                part for held in self._held.values() for part in held.values() if self.is_wanted(part)
            )
        return self._states

    def states_without(self, node: NodeName) -> list[State]:
        """What would be whole if that node went."""
        return self._states_of(part for holder, held in self._held.items() if holder != node for part in held.values())

    def stored_states(self) -> list[State]:
        """What the run folder has whole."""
        return self._states_of(self._held.get(None, {}).values())

    def checkpoints(self) -> list[State]:
        """What nodes have whole as checkpoints."""
        return self._states_of(
            part
            for holder, held in self._held.items()
            if holder is not None
            for part in held.values()
            if part.kind == "checkpoint"
        )

    def _states_of(self, parts: Iterable[StatePart]) -> list[State]:
        return _whole(part for part in parts if self.is_wanted(part))


def _whole(parts: Iterable[StatePart]) -> list[State]:
    groups: dict[Group, dict[int, dict[StatePart, int]]] = {}
    for part in parts:
        counts = groups.setdefault(group_of(part), {}).setdefault(part.part, {})
        counts[part] = counts.get(part, 0) + 1
    whole = [
        State(parts=tuple(_most_held(group[index]) for index in sorted(group)))
        for key, group in groups.items()
        if len(group) == key[-1]
    ]
    return sorted(whole, key=lambda state: state.group, reverse=True)


def _most_held(counts: dict[StatePart, int]) -> StatePart:
    """Where ranks wrote the same part, the one that has to be sent to the fewest."""
    return min(counts, key=lambda part: (-counts[part], part.kind, part.digest))
