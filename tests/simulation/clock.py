"""Virtual time: a heap of calls, equal times in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (max(time, self.now), self._sequence, call, args))

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.at(self.now + seconds, call, *args)

    def step(self) -> bool:
        if not self._heap:
            return False
        self.now, _, call, args = heappop(self._heap)
        self.count += 1
        call(*args)
        return True
