"""Who holds which parts of which states, and which whole states follow from it.

A state is whole when every part of one step, layout and generation is held by somebody who is there. Parts of the same
step that different generations wrote are never mixed: their rounding may differ. Knows no files and no time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
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
        self._damaged: set[tuple[Holder, StatePart]] = set()
        self._views: dict[str, list[State]] = {}  # of what is held now

    def set(self, holder: Holder, parts: Iterable[StatePart]) -> None:
        """All that it holds; what is known to be damaged does not count."""
        self._held[holder] = {part.name: part for part in parts if (holder, part) not in self._damaged}
        self._views.clear()

    def forget(self, holder: Holder) -> None:
        """It is not there any more."""
        self._held.pop(holder, None)
        self._views.clear()

    def add(self, holder: Holder, part: StatePart) -> None:
        self._damaged.discard((holder, part))
        self._held.setdefault(holder, {})[part.name] = part
        self._views.clear()

    def remove(self, holder: Holder, part: StatePart) -> None:
        held = self._held.get(holder, {})
        if held.get(part.name) == part:
            del held[part.name]
            self._views.clear()

    def distrust(self, holder: Holder, part: StatePart) -> None:
        """Its copy is damaged, also when it is listed again, until it has another one."""
        self.remove(holder, part)
        self._damaged.add((holder, part))

    def is_damaged(self, holder: Holder, part: StatePart) -> bool:
        return (holder, part) in self._damaged

    def go_back(self, go_back: GoBack) -> None:
        self._go_backs += (go_back,)
        self._views.clear()

    def condemn(self, state: State) -> None:
        """It cannot be loaded, wherever it comes from."""
        self._unusable.add(state.group)
        self._views.clear()

    def held(self, holder: Holder, name: str) -> StatePart | None:
        return self._held.get(holder, {}).get(name)

    def holds(self, holder: Holder, part: StatePart) -> bool:
        return self.held(holder, part.name) == part

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
        if not self._unusable and not self._go_backs:
            return True
        return group_of(part) not in self._unusable and not any(
            back.gives_up(part.generation, part.step) for back in self._go_backs
        )

    def states(self) -> list[State]:
        """Whole ones, the newest first."""
        return self._view("all", lambda holder, part: True)

    def stored_states(self) -> list[State]:
        """What the run folder has whole."""
        return self._view("stored", lambda holder, part: holder is None)

    def checkpoints(self) -> list[State]:
        """What nodes have whole as checkpoints."""
        return self._view("checkpoints", lambda holder, part: holder is not None and part.kind == "checkpoint")

    def states_without(self, node: NodeName) -> list[State]:
        """What would be whole if that node went."""
        return self._whole(lambda holder, part: holder != node)

    def _view(self, name: str, counts: Callable[[Holder, StatePart], bool]) -> list[State]:
        if name not in self._views:
            self._views[name] = self._whole(counts)
        return self._views[name]

    def _whole(self, counts: Callable[[Holder, StatePart], bool]) -> list[State]:
        groups: dict[Group, dict[int, list[StatePart]]] = {}
        for holder, held in self._held.items():
            for part in held.values():
                if counts(holder, part) and self.is_wanted(part):
                    groups.setdefault(group_of(part), {}).setdefault(part.part, []).append(part)
        return [
            State(parts=tuple(_most_held(group[index]) for index in sorted(group)))
            for key, group in sorted(groups.items(), reverse=True)
            if len(group) == key[-1]
        ]


def _most_held(copies: list[StatePart]) -> StatePart:
    """Where ranks wrote the same part, the one that has to be sent to the fewest."""
    if len(copies) == 1:
        return copies[0]
    held = Counter((part.kind, part.digest) for part in copies)
    return min(copies, key=lambda part: (-held[part.kind, part.digest], part.kind, part.digest))
