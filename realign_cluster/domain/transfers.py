"""Parts on their way from one holder to another: which, from where, how often it was tried.

Chooses sources; the copying itself is the nodes'. Time is passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.inventory import Holder, Inventory
from realign_cluster.domain.recovery_commands import Fetch
from realign_cluster.domain.world import StatePart

_Key = tuple[NodeName, StatePart]


@dataclass(slots=True, kw_only=True)
class Transfer:
    source: Holder
    since: float
    copy: bool  # wanted in case a node is lost, not to start from


class Transfers:
    def __init__(self) -> None:
        self._under_way: dict[_Key, Transfer] = {}
        self._failures: Counter[_Key] = Counter()
        self._failures_of: Counter[tuple[_Key, Holder]] = Counter()
        self._again_at: dict[_Key, float] = {}

    def fetch(
        self, inventory: Inventory, node: NodeName, part: StatePart, now: float, reason: str, copy: bool = False
    ) -> Fetch | None:
        """None if it is on its way already, failed a moment ago, or nobody else has it."""
        if (node, part) in self._under_way or now < self._again_at.get((node, part), 0.0):
            return None
        busy = Counter(transfer.source for transfer in self._under_way.values())
        sources = [holder for holder in inventory.holders(part) if holder != node]
        if not sources:
            return None
        source = min(
            sources, key=lambda holder: (self._failures_of[(node, part), holder], holder is None, busy[holder])
        )
        self._under_way[node, part] = Transfer(source=source, since=now, copy=copy)
        return Fetch(node=node, part=part, source=source, reason=reason)

    def ended(self, node: NodeName, part: StatePart) -> bool:
        """It arrived, or its source turned out not to have it. Whether it was on its way at all."""
        self._failures.pop((node, part), None)
        return self._under_way.pop((node, part), None) is not None

    def failed(self, node: NodeName, part: StatePart, again_at: float) -> None:
        """Neither part nor source is to blame."""
        transfer = self._under_way.pop((node, part), None)
        if transfer is not None:
            self._failures_of[(node, part), transfer.source] += 1
        self._failures[node, part] += 1
        self._again_at[node, part] = again_at

    def failures(self, node: NodeName, part: StatePart) -> int:
        """In a row."""
        return self._failures[node, part]

    def forgive(self) -> None:
        self._failures.clear()

    def give_up(self, node: NodeName) -> None:
        """It is cut off: nothing comes to it or from it any more."""
        self._keep_only(lambda key, transfer: node not in (key[0], transfer.source))

    def say_again(self, node: NodeName) -> None:
        """Its stream is new: what was said over the old one may not have come through."""
        self._keep_only(lambda key, _: key[0] != node)

    def overdue(self, now: float, seconds: float) -> list[_Key]:
        return [key for key, transfer in self._under_way.items() if now - transfer.since > seconds]

    @property
    def copying(self) -> bool:
        return any(transfer.copy for transfer in self._under_way.values())

    def steps(self) -> set[int]:
        """Of the parts that are on their way."""
        return {part.step for _, part in self._under_way}

    def _keep_only(self, wanted: Callable[[_Key, Transfer], bool]) -> None:
        self._under_way = {key: transfer for key, transfer in self._under_way.items() if wanted(key, transfer)}
