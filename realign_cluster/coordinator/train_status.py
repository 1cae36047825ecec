"""How a training run stands, from its folder alone: read-only, so that no run is disturbed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from realign_cluster.store.train_ledger import Sitting, TrainLedgerReader


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainStatus:
    """`state` is "running" while a process holds the run, else that of its summary, else "incomplete"."""

    name: str
    folder: Path
    state: str
    holder: str  # "process 4711 on host", "" when nobody holds it
    steps_done: int
    sittings: tuple[Sitting, ...]
    summary: dict[str, Any]
    request: dict[str, Any]
    command: str

    @property
    def begun(self) -> datetime | None:
        return datetime.fromtimestamp(self.sittings[0].opened_at, UTC) if self.sittings else None

    @property
    def settings(self) -> dict[str, Any]:
        return self.request.get("settings") or {}

    @property
    def steps(self) -> int:
        return int(self.settings.get("steps", 0))

    def as_json(self) -> dict[str, Any]:
        begun = self.begun
        return {
            "name": self.name,
            "folder": str(self.folder),
            "state": self.state,
            "holder": self.holder,
            "begun": begun.isoformat(timespec="seconds") if begun else None,
            "steps": self.steps,
            "steps_done": self.steps_done,
            "sittings": len(self.sittings),
            "method": self.settings.get("method", "sft"),
            "fine_tune": self.settings.get("fine_tune", "lora"),
            "nodes": self.summary.get("nodes") or {},
            "model": self.request.get("model", ""),
        }


def train_status(
    folder: Path, ledger: Path, *, holder: str, summary: dict[str, Any], request: dict[str, Any], command: str
) -> TrainStatus:
    """Raises UsageError for a ledger that this version cannot read."""
    reader = TrainLedgerReader(ledger)
    try:
        return TrainStatus(
            name=folder.name,
            folder=folder.absolute(),
            state="running" if holder else str(summary.get("state", "incomplete")),
            holder=holder,
            steps_done=reader.last_step(),
            sittings=tuple(reader.sittings()),
            summary=summary,
            request=request,
            command=command,
        )
    finally:
        reader.close()
