"""Which section a rank is in, said to the daemon, and a thread that ends the process when one lasts too long.

A rank that waits for a dead or stopped peer cannot be interrupted: no signal handler runs inside a collective. A
thread of its own can still end the process, and the coordinator then starts a new generation.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from realign_cluster.domain.rank_report import Failed, RankReport, Section, SectionName

HANG_EXIT = 75
LOOK_SECONDS = 0.25
# Seconds in a section without any progress. "step" and "reduce" grow with the slowest step that was seen.
LIMITS: dict[str, float] = {
    "load": 1800.0,
    "wait": 3600.0,
    "join": 60.0,
    "reference": 600.0,
    "step": 600.0,
    "reduce": 600.0,
    "snapshot": 600.0,
    "evaluate": 600.0,
    "generate": 600.0,
    "save": 1800.0,
}
STEP_LEAST_SECONDS = 5.0
STEP_FACTOR = 3.0


class Watchdog:
    """`enter` begins a section, or says that the one it is in gets further."""

    def __init__(self, say: Callable[[RankReport], None], limits: Mapping[str, float]) -> None:
        self._say = say
        self._limits = LIMITS | dict(limits)
        self._slowest_step = 0.0
        self._section: SectionName = "load"
        self._step = -1  # nothing was said yet
        self._since = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    @property
    def section(self) -> SectionName:
        return self._section

    @property
    def step(self) -> int:
        return max(0, self._step)

    def enter(self, section: SectionName, step: int) -> None:
        changed = (section, step) != (self._section, self._step)
        self._section, self._step, self._since = section, step, time.monotonic()
        if changed:
            self._say(Section(section=section, step=step))

    @contextmanager
    def unattended(self) -> Iterator[None]:
        """For a call that keeps Python's lock while it waits, as making a group does: no thread of ours can watch
        then, so the process is ended by C code, with a traceback, if it lasts longer than its section may.
        """
        faulthandler.dump_traceback_later(self.limit(self._section), exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def step_took(self, seconds: float) -> None:
        """The first step also loads kernels: it counts, so that the limit begins generous."""
        self._slowest_step = max(self._slowest_step, seconds)

    def stop(self) -> None:
        self._stopped.set()

    def limit(self, section: str) -> float:
        if section in ("step", "reduce") and self._slowest_step:
            return max(STEP_LEAST_SECONDS, STEP_FACTOR * self._slowest_step)
        return self._limits[section]

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(LOOK_SECONDS):
            now = time.monotonic()
            if now - looked > 1.0:  # this process itself was stopped for a while: nothing follows from that
                self._since += now - looked
            looked = now
            section, since = self._section, self._since
            if now - since > self.limit(section):
                message = f"no progress in section {section} for {now - since:.1f} s"
                self._say(Failed(code="hang", message=message, step=max(0, self._step), fatal=False))
                os._exit(HANG_EXIT)
