"""Which nodes of a training run are there, and which of them ranks may be given to.

Knows nothing of ranks and states. Time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from realign_cluster.domain.ids import NodeName


@dataclass(slots=True, kw_only=True)
class Member:
    name: NodeName
    present: bool = False  # its session is up
    left: bool = False  # it said goodbye: nobody waits for it
    barred: str = ""  # why it takes no part in this sitting: nobody waits for it either
    set_aside: str = ""  # why it is given no ranks
    needs_reboot: str = ""  # why; over when its boot changes
    boot: str = ""
    strikes: int = 0
    indispensable: bool = False  # the others could not go on without it: not set aside again

    @property
    def usable(self) -> bool:
        return self.present and not self.set_aside and not self.needs_reboot


class Crew:
    """In the order they were first heard of."""

    def __init__(self) -> None:
        self.members: dict[NodeName, Member] = {}

    def member(self, name: NodeName) -> Member:
        if name not in self.members:
            self.members[name] = Member(name=name)
        return self.members[name]

    def ready(self, name: NodeName, boot: str) -> Member:
        member = self.member(name)
        member.present, member.left, member.barred = True, False, ""
        if boot != member.boot and member.boot:
            member.needs_reboot = ""
        member.boot = boot or member.boot
        return member

    def lost(self, name: NodeName, clean: bool) -> None:
        member = self.member(name)
        member.present, member.left = False, clean

    def bar(self, name: NodeName, reason: str) -> None:
        self.member(name).barred = reason.partition("\n")[0]

    def barred(self, names: Iterable[NodeName]) -> dict[NodeName, str]:
        """Those of them that take no part, and why."""
        return {name: self.members[name].barred for name in names if name in self.members and self.members[name].barred}

    def is_present(self, name: NodeName) -> bool:
        return name in self.members and self.members[name].present

    def usable(self) -> tuple[NodeName, ...]:
        """By name: the same nodes are named in the same order whoever came first."""
        return tuple(sorted(member.name for member in self.members.values() if member.usable))

    def missing(self, wanted: Iterable[NodeName]) -> list[NodeName]:
        """Those that are worth waiting for."""
        return [name for name in wanted if self._may_come(name)]

    def _may_come(self, name: NodeName) -> bool:
        member = self.members.get(name)
        gone = member is not None and (member.left or member.barred or member.set_aside or member.needs_reboot)
        return member is None or not (member.present or gone)

    def absent(self, wanted: Iterable[NodeName]) -> list[NodeName]:
        return [name for name in wanted if not self.is_present(name)]

    def forgive(self, names: Iterable[NodeName]) -> None:
        for name in names:
            self.member(name).strikes = 0

    def take_back(self) -> list[NodeName]:
        """Those set aside for their crashes: nobody can go on without them."""
        back = [member for member in self.members.values() if member.set_aside and member.present]
        for member in back:
            member.set_aside, member.strikes, member.indispensable = "", 0, True
        return [member.name for member in back]
