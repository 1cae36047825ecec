"""Runs recorded events through the scheduler again: what it decided then, it decides now.

Reads no ledger: the caller passes the events in their order, over all sittings of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from realign_cluster.domain.events import Command, Event, RunOpened
from realign_cluster.domain.scheduler import Policy, Scheduler


def replay(events: Iterable[Event], policy: Policy | None = None) -> Iterator[tuple[Event, tuple[Command, ...]]]:
    """Each event with the commands it leads to. A RunOpened begins a new sitting, with a scheduler that knows nothing
    of the last.

    Nodes may become ready before their sitting's RunOpened only in the first sitting: later ones are recorded after it.
    """
    scheduler = Scheduler(policy)
    opened = False
    for event in events:
        if isinstance(event, RunOpened):
            if opened:
                scheduler = Scheduler(policy)
            opened = True
        yield event, scheduler.handle(event).commands
