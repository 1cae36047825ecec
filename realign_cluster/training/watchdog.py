"""Which section a rank is in, said to the daemon, and a thread that ends the process when one lasts too long.

A rank that waits for a dead or stopped peer cannot be interrupted: no signal handler runs inside a collective. A
thread of its own can still end the process, and the coordinator then starts a new generation.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from realign_cluster.domain.rank_report import Failed, RankReport, Section
from realign_cluster.domain.section_limits import Pace, SectionLimits, SectionName

HANG_EXIT = 75
LOOK_SECONDS = 0.25
SAY_SECONDS = 1.0  # between two words on one section
MEASURED = frozenset({"evaluate", "reference", "generate"})  # whose signs of progress each end a piece of computing


class Watchdog:
    """`enter` begins a section, or says that the one it is in gets further."""

    def __init__(self, say: Callable[[RankReport], None], limits: SectionLimits) -> None:
        self._say = say
        self._pace = Pace(limits)
        self._section: SectionName = "load"
        self._step = -1  # nothing was said yet
        self._work = 0
        self._since = time.monotonic()
        self._said = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    @property
    def section(self) -> SectionName:
        return self._section

    @property
    def step(self) -> int:
        return max(0, self._step)

    def enter(self, section: SectionName, step: int, work: int = 0) -> None:
        """`work`: tokens of the longest piece to come; 0: as before."""
        with self._lock:
            self._enter(section, step, work)

    def written(self) -> None:
        """A thread of ours that writes a state got further: a sign of progress where the training waits for it."""
        with self._lock:
            if self._section in ("snapshot", "save"):
                self._enter(self._section, self._step, 0)

    def _enter(self, section: SectionName, step: int, work: int) -> None:
        now = time.monotonic()
        if self._section in MEASURED:
            self._pace.took(self._section, now - self._since, self._work)
        changed = (section, step) != (self._section, self._step)
        self._work = work or (self._work if section in (self._section, "reduce") else 0)
        self._section, self._step, self._since = section, step, now
        if changed or now - self._said > SAY_SECONDS:
            self._said = now
            self._say(Section(section=section, step=step, patience_seconds=self._patience()))

    @contextmanager
    def unattended(self) -> Iterator[None]:
        """For a call that keeps Python's lock while it waits, as making a group does: no thread of ours can watch
        then, so the process is ended by C code, with a traceback, if it lasts longer than its section may.
        """
        faulthandler.dump_traceback_later(self._patience(), exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def step_took(self, seconds: float, work: int) -> None:
        """The first step also loads kernels: it counts, so that the limit begins generous."""
        with self._lock:
            self._pace.took("step", seconds, work)

    def stop(self) -> None:
        self._stopped.set()

    def _patience(self) -> float:
        return self._pace.patience(self._section, self._work)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(LOOK_SECONDS):
            with self._lock:
                now = time.monotonic()
                if now - looked > 1.0:  # this process itself was stopped for a while: nothing follows from that
                    self._since += now - looked
                looked = now
                if now - self._since > self._patience():
                    message = f"no progress in section {self._section} for {now - self._since:.1f} s"
                    self._say(Failed(code="hang", message=message, step=self.step, fatal=False))
                    os._exit(HANG_EXIT)
