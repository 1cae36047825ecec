"""Units that wait for a node, in the order they should go out.

Three kinds: fresh ones, longest first (what a lost node gives back goes to the front); those that failed on some
node, which prefer another; suspected ones, which are leased alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from realign_cluster.domain.events import UnitRef
from realign_cluster.domain.ids import UnitId


class Backlog:
    """`cost` is the sum over all that wait."""

    __slots__ = ("blamed", "cost", "fresh", "suspects")

    def __init__(self) -> None:
        self.fresh: deque[UnitRef] = deque()
        self.blamed: list[UnitRef] = []
        self.suspects: list[UnitRef] = []
        self.cost = 0.0

    def __bool__(self) -> bool:
        return bool(self.fresh or self.blamed or self.suspects)

    def __len__(self) -> int:
        return len(self.fresh) + len(self.blamed) + len(self.suspects)

    def load(self, refs: Iterable[UnitRef]) -> None:
        """From the ledger: to the back, in the order given."""
        for ref in refs:
            self.cost += ref.cost
            if ref.suspected:
                self.suspects.append(ref)
            elif ref.failed_on:
                self.blamed.append(ref)
            else:
                self.fresh.append(ref)

    def give_back(self, refs: Iterable[UnitRef]) -> None:
        """From a node: to the front, in the order given."""
        fresh: list[UnitRef] = []
        blamed: list[UnitRef] = []
        suspects: list[UnitRef] = []
        for ref in refs:
            self.cost += ref.cost
            (suspects if ref.suspected else blamed if ref.failed_on else fresh).append(ref)
        self.fresh.extendleft(reversed(fresh))
        self.blamed[:0] = blamed
        self.suspects[:0] = suspects

    def took(self, refs: Iterable[UnitRef]) -> None:
        """These were taken off by the caller."""
        for ref in refs:
            self.cost -= ref.cost
        if not self:
            self.cost = 0.0

    def take_blamed(self, may_take: Callable[[UnitRef], bool]) -> UnitRef | None:
        return self._take_first(self.blamed, may_take)

    def take_suspect(self, may_take: Callable[[UnitRef], bool]) -> UnitRef | None:
        return self._take_first(self.suspects, may_take)

    def take(self, unit: UnitId) -> UnitRef | None:
        """This one, wherever it waits. Looks at all that is loaded: for rare events only."""
        for refs in (self.suspects, self.blamed, self.fresh):
            for position, ref in enumerate(refs):
                if ref.unit == unit:
                    del refs[position]
                    self.took((ref,))
                    return ref
        return None

    def _take_first(self, refs: list[UnitRef], may_take: Callable[[UnitRef], bool]) -> UnitRef | None:
        for position, ref in enumerate(refs):
            if may_take(ref):
                del refs[position]
                self.took((ref,))
                return ref
        return None
