"""Which runs there are and how each stands, from their folders alone: read-only, so that no run is disturbed."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.coordinator.report_data import shown_command
from realign_cluster.coordinator.train_status import TrainStatus, train_status
from realign_cluster.coordinator.workflow_status import WorkflowStatus, workflow_status
from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.store.ledger_file import ledger_kind
from realign_cluster.store.ledger_reader import Counters, EpochRecord, LedgerReader, NodeSummary
from realign_cluster.store.run_folder import LOCK_NAME, RunFolder

SEARCH_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """`state` is "running" while a process holds the run, else that of its summary, else "incomplete"."""

    name: str
    folder: Path
    state: str
    holder: str  # "process 4711 on host", "" when nobody holds it
    counters: Counters
    nodes: tuple[NodeSummary, ...]
    sittings: tuple[EpochRecord, ...]
    outcomes: dict[str, int]  # of attempts: "committed", "revoked", "live", ...
    summary: dict[str, Any]
    request: dict[str, Any]
    command: str

    @property
    def begun(self) -> datetime | None:
        return datetime.fromtimestamp(self.sittings[0].opened_at, UTC) if self.sittings else None

    @property
    def rows_done(self) -> int:
        return self.counters.committed_rows + self.counters.quarantined_rows + self.counters.bad_rows

    def as_json(self) -> dict[str, Any]:
        begun = self.begun
        return {
            "name": self.name,
            "folder": str(self.folder),
            "state": self.state,
            "holder": self.holder,
            "begun": begun.isoformat(timespec="seconds") if begun else None,
            "rows": self.counters.rows,
            "rows_done": self.rows_done,
            "pending_rows": self.counters.pending_rows,
            "sittings": len(self.sittings),
            "attempts": self.outcomes,
            "nodes": {
                str(node.node): {
                    "rows": node.rows,
                    "units": node.units,
                    "share": node.share,
                    "busy_seconds": node.busy_seconds,
                }
                for node in self.nodes
            },
            "kinds": list(self.request.get("kinds") or ()),
            "model": self.request.get("model", ""),
        }


def find_runs(root: Path) -> Iterator[Path]:
    """Run folders at or under `root`, by name; what lies inside a run is not looked at."""
    yield from _find(root, SEARCH_DEPTH)


def locate_run(run: str, root: Path) -> Path:
    """The folder that `run` means: a path, or a name under `root`. Raises UsageError that lists what there is."""
    for candidate in (Path(run), root / run):
        if _is_run(candidate):
            return candidate
    names = [str(found.relative_to(root)) for found in find_runs(root)] if root.is_dir() else []
    listed = (
        f"there are: {', '.join(names[:8])}" if names else f"there are no runs in {root}: name its folder, or --root"
    )
    raise UsageError(f"there is no run '{run}'{did_you_mean(run, names)}", listed)


Status = RunStatus | TrainStatus | WorkflowStatus


def run_status(folder: Path) -> Status:
    """Raises UsageError when `folder` is not a run, or one whose ledger this version cannot read."""
    run = RunFolder.read(folder)
    holder = _holder(folder)
    summary = _summary(run.summary)
    record = run.read_run_toml() if run.run_toml.is_file() else {}
    request, command = record.get("request") or {}, shown_command(str(record.get("command", "")))
    if run.ledger.is_file() and ledger_kind(run.ledger) == "train":
        return train_status(folder, run.ledger, holder=holder, summary=summary, request=request, command=command)
    if run.ledger.is_file() and ledger_kind(run.ledger) == "workflow":
        body = workflow_status(folder)
        return WorkflowStatus(
            name=folder.name,
            folder=folder.absolute(),
            state="running" if holder else body["state"],
            holder=holder,
            command=command,
            request=request,
            summary=summary,
            body=body,
        )
    ledger = LedgerReader(run.ledger)
    try:
        outcomes = Counter(_outcome(attempt.outcome) for attempt in ledger.attempts())
        return RunStatus(
            name=folder.name,
            folder=folder.absolute(),
            state="running" if holder else str(summary.get("state", "incomplete")),
            holder=holder,
            counters=ledger.counters(),
            nodes=tuple(ledger.nodes_summary()),
            sittings=tuple(ledger.epochs()),
            outcomes=dict(outcomes.most_common()),
            summary=summary,
            request=request,
            command=command,
        )
    finally:
        ledger.close()


def statuses(root: Path) -> tuple[list[Status], list[tuple[Path, RealignError]]]:
    """Every run under `root`, oldest first, and those that cannot be read, with why."""
    found: list[Status] = []
    unreadable: list[tuple[Path, RealignError]] = []
    for folder in find_runs(root):
        try:
            found.append(run_status(folder))
        except RealignError as error:
            unreadable.append((folder, error))
    return sorted(found, key=lambda status: (status.begun is not None, status.begun or 0, status.name)), unreadable


def _find(folder: Path, depth: int) -> Iterator[Path]:
    if _is_run(folder):
        yield folder
    elif depth and folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                yield from _find(entry, depth - 1)


def _is_run(folder: Path) -> bool:
    return (folder / "ledger.sqlite").is_file()


def _holder(folder: Path) -> str:
    """Who has the run's lock. Taking it shared, for an instant, disturbs nobody."""
    try:
        with (folder / LOCK_NAME).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200).decode("utf-8", "replace").strip() or "another process"
    except FileNotFoundError:
        pass
    return ""


def _outcome(outcome: str | None) -> str:
    return "live" if outcome is None else outcome.split(":", 1)[0]


def _summary(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
