"""Builds what the dashboard shows from what engine, roster and scheduler know. Reads only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from realign_cluster.coordinator.progress import NodeLine, Phase, ProgressSnapshot
from realign_cluster.coordinator.roster import Roster, RosterLine
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.scheduler import NodeView, Scheduler

RATE_SECONDS = 20.0


class Rate:
    """Rows per second over the last RATE_SECONDS."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def at(self, now: float, rows: int) -> float | None:
        self._points.append((now, rows))
        while len(self._points) > 2 and now - self._points[0][0] > RATE_SECONDS:
            self._points.popleft()
        (first, before), (last, after) = self._points[0], self._points[-1]
        return (after - before) / (last - first) if last - first > 0.5 else None


class Snapshots:
    """One per sitting: keeps the short history that rates need."""

    def __init__(
        self,
        *,
        rows_total: int,
        rows_before: int,
        expected_shares: Mapping[str, float],
        memory_limits: Mapping[NodeName, int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows_total = rows_total
        self._rows_before = rows_before
        self._expected = expected_shares
        self._limits = memory_limits
        self._clock = clock
        self._started = clock()
        self._rate = Rate()
        self._node_rates: dict[NodeName, Rate] = {}

    def take(self, phase: Phase, roster: Roster, scheduler: Scheduler) -> ProgressSnapshot:
        now = self._clock()
        done = self._rows_before + roster.rows_committed
        failed = roster.rows_quarantined
        views = scheduler.node_states()
        speed = sum(view.cost_per_second for view in views.values() if view.status == "ready")
        left = scheduler.remaining_cost / speed if speed > 0 else None
        return ProgressSnapshot(
            phase=phase,
            rows_done=done,
            rows_total=self._rows_total,
            rows_failed=failed,
            rows_per_second=self._rate.at(now, roster.rows_committed),
            seconds_elapsed=now - self._started,
            seconds_left=left,
            nodes=tuple(self._line(name, line, views.get(name), now) for name, line in roster.lines.items()),
            retries=roster.retries,
        )

    def _line(self, name: NodeName, line: RosterLine, view: NodeView | None, now: float) -> NodeLine:
        state: str = line.state
        if state == "ready":
            state = "computing" if line.computing_attempt or (view is not None and view.units_outstanding) else "idle"
        health = line.health
        return NodeLine(
            name=name,
            state=state,
            detail=line.detail,
            share=view.cost_share if view is not None else None,
            expected_share=self._expected.get(name),
            rows_done=line.rows,
            rows_per_second=self._node_rates.setdefault(name, Rate()).at(now, line.rows),
            in_flight=f"attempt {line.computing_attempt}" if line.computing_attempt else "",
            units_outstanding=view.units_outstanding if view is not None else 0,
            retries=line.worker_restarts,
            memory_bytes=int(health.worker_rss_bytes) if health is not None else None,
            memory_limit_bytes=self._limits.get(name),
            thermal=health.thermal_pressure if health is not None else "",
        )
