"""Ends a rank whose daemon does not run any more: one that is stopped or stuck leaves the pipe open.

Nobody could end the rank then, and the coordinator, which hears nothing of the node, soon starts another generation.
"""

from __future__ import annotations

import os
import sys
import threading
import time

SILENCE_EXIT = 77
LOOK_SECONDS = 0.25


class Lifeline:
    """Watches from the first word on, which says how long there may be none."""

    def __init__(self) -> None:
        self._within_seconds = 0.0
        self._heard_at = 0.0

    def heard(self, within_seconds: float) -> None:
        first = not self._within_seconds
        self._within_seconds, self._heard_at = within_seconds, time.monotonic()
        if first:
            threading.Thread(target=self._watch, daemon=True, name="lifeline").start()

    def _watch(self) -> None:
        looked = time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            if now - looked > 1.0:  # this process itself did not run: what it was told then is not read yet
                self._heard_at += now - looked
            looked = now
            if now - self._heard_at > self._within_seconds:
                print(f"the daemon has said nothing for {now - self._heard_at:.1f} s", file=sys.stderr, flush=True)
                os._exit(SILENCE_EXIT)
