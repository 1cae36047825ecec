"""Who may use this node: one run at a time, for as long as its coordinator is heard. Pure: the clock is passed in.

The same run with a higher epoch takes over at once (its coordinator was restarted), and so does the same epoch (its
connection broke, and it noticed first). Any other run waits until the holder has been silent for its own lease.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

_REMEMBERED_RUNS = 256
LEASE_BOUNDS = (0.5, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """`lease_seconds` of silence end the tenancy; `heard_at` is the daemon's monotonic clock."""

    run_id: str
    epoch: int
    coordinator: str
    lease_seconds: float
    heard_at: float

    def silent_for(self, now: float) -> float:
        return max(0.0, now - self.heard_at)

    def lapsed(self, now: float) -> bool:
        return self.silent_for(now) > self.lease_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    tenant: Tenant
    same_run: bool  # the one that had it, or was the last to have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    kind: Literal["held", "stale-epoch"]
    tenant: Tenant
    message: str


class Tenancy:
    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._tenant: Tenant | None = None
        self._last_run: str | None = None
        self._epochs: OrderedDict[str, int] = OrderedDict()

    def current(self, now: float) -> Tenant | None:
        return None if self._tenant is None or self._tenant.lapsed(now) else self._tenant

    def claim(self, *, run_id: str, epoch: int, coordinator: str, lease_seconds: float, now: float) -> Granted | Denied:
        tenant = self.current(now)
        if tenant is not None and tenant.run_id != run_id:
            return Denied(
                kind="held",
                tenant=tenant,
                message=f"{self._node_name} is held by run {tenant.run_id} of {tenant.coordinator}, "
                f"heard {tenant.silent_for(now):.1f} s ago\n"
                f"  fix: wait until that run ends, or stop it there; if it is dead, "
                f"the node is free after {tenant.lease_seconds:g} s of silence",
            )
        known = self._epochs.get(run_id, 0)
        claimed = Tenant(
            run_id=run_id,
            epoch=epoch,
            coordinator=coordinator,
            lease_seconds=min(max(lease_seconds, LEASE_BOUNDS[0]), LEASE_BOUNDS[1]),
            heard_at=now,
        )
        if epoch < known:
            return Denied(
                kind="stale-epoch",
                tenant=tenant or claimed,
                message=f"{self._node_name} has already served sitting {known} of run {run_id}; this is sitting {epoch}"
                "\n  fix: end this coordinator: a newer one has taken the run over",
            )
        same_run = self._last_run == run_id
        self._tenant = claimed
        self._last_run = run_id
        self._epochs[run_id] = epoch
        self._epochs.move_to_end(run_id)
        while len(self._epochs) > _REMEMBERED_RUNS:
            self._epochs.popitem(last=False)
        return Granted(tenant=claimed, same_run=same_run)

    def heard(self, run_id: str, epoch: int, now: float) -> None:
        if self._tenant is not None and (self._tenant.run_id, self._tenant.epoch) == (run_id, epoch):
            self._tenant = replace(self._tenant, heard_at=max(now, self._tenant.heard_at))

    def stalled(self, gap_seconds: float, now: float) -> None:
        """This process did not run for a while (sleep, SIGSTOP): what was sent meanwhile has yet to be read."""
        if self._tenant is not None:
            self._tenant = replace(self._tenant, heard_at=min(now, self._tenant.heard_at + gap_seconds))

    def release(self, run_id: str, epoch: int) -> None:
        if self._tenant is not None and (self._tenant.run_id, self._tenant.epoch) == (run_id, epoch):
            self._tenant = None
