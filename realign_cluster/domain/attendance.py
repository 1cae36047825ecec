"""Who is waited for before the next job of a run of many: whoever was there when the last one began.

Also in another sitting: a coordinator that is started again while a node is away is no reason to go on without it.
Pure; the caller looks who is there, and keeps `there` over sittings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from realign_cluster.domain.ids import NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """`there` when the last job began; empty before the first one."""

    there: frozenset[NodeName] = frozenset()

    def away(self, there: Iterable[NodeName], named: Iterable[NodeName]) -> tuple[NodeName, ...]:
        """Those to wait for, by name. `named` are the nodes that the cluster may have at all: the user may have taken
        one out.
        """
        return tuple(sorted((self.there & frozenset(named)) - frozenset(there)))

    def begins(self, there: Iterable[NodeName]) -> Attendance:
        """A job begins with these: who is away now is not waited for again until it has been there. With nobody none
        can begin.
        """
        now = frozenset(there)
        return Attendance(there=now) if now else self
