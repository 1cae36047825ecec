"""What Ctrl-C and SIGTERM do to a sitting: they are noted, and heard where the sitting can stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from realign_cluster.coordinator.inbox import Inbox, Interrupted


class StopAsked(Exception):
    """Raised out of a scan or of writing when the user interrupted: both go on where they stopped."""


@dataclass(slots=True)
class Stop:
    """What Ctrl-C and SIGTERM do in each phase."""

    asked: bool = False
    engine_inbox: Inbox | None = None

    def ask(self) -> None:
        self.asked = True
        if self.engine_inbox is not None:
            self.engine_inbox.put_nowait(Interrupted())

    def listen(self, inbox: Inbox | None) -> None:
        """From now on the engine hears it, also of what was asked before."""
        self.engine_inbox = inbox
        if self.asked and inbox is not None:
            inbox.put_nowait(Interrupted())

    def raise_if_asked(self) -> None:
        if self.asked:
            raise StopAsked


@contextlib.contextmanager
def signals(stop: Stop) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM)
    for number in caught:
        loop.add_signal_handler(number, stop.ask)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
