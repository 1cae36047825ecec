"""Gathers what a report shows from a run folder, read-only: of a run going on, cut short, or complete.

Files that are not there (yet) leave their part out. Knows nothing of HTML.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.coordinator.history import History, NodeCounts, read_history
from realign_cluster.domain.tally import Tally
from realign_cluster.store.ledger_reader import Counters, LedgerReader, NodeSummary

FAILED_ROWS_SHOWN = 25
# What bears on a run's figures; secrets are not among them.
ENVIRONMENT_SHOWN = (
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "LD_PRELOAD",
    "METAL_",
    "MLX_",
    "OMP_",
    "OPENBLAS_",
    "REALIGN_",
    "TOKENIZERS_",
    "VECLIB_",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRow:
    row_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    name: str
    chip: str
    calibrated_share: float | None  # by speed at join
    expected_share: float | None  # by that speed and the time it was there
    planned_share: float | None
    summary: NodeSummary | None  # None: it committed nothing
    counts: NodeCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """`rows` has in, kept, dropped, failed where they are known; `scores` is Tally.score_summary()."""

    name: str
    folder: Path
    state: str  # "complete", "incomplete", "failed", or "running" before there is a summary
    summary: Mapping[str, Any]
    counters: Counters
    rows: Mapping[str, int]
    dropped_by_reason: Mapping[str, int]
    failed_by_code: Mapping[str, int]
    failed_rows: tuple[FailedRow, ...]
    scores: Mapping[str, Mapping[str, Any]]
    nodes: tuple[NodeReport, ...]
    history: History
    plan: Mapping[str, Any]
    request: Mapping[str, Any]
    command: str
    versions: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    host: str = ""


def report_data(run_folder: Path, history: History | None = None) -> ReportData:
    """`history` is read from the ledger if it is not given. Raises UsageError when there is none in `run_folder`."""
    folder = run_folder.absolute()
    ledger = LedgerReader(folder / "ledger.sqlite")
    try:
        summary = _json(folder / "summary.json")
        plan = _json(folder / "plan.json") or summary.get("plan") or {}
        record = _toml(folder / "run.toml")
        history = history or read_history(ledger)
        counters = ledger.counters()
        failed_by_code, failed_rows = _failed(folder / "failed")
        return ReportData(
            name=folder.name,
            folder=folder,
            state=summary.get("state", "running"),
            summary=summary,
            counters=counters,
            rows=_rows(summary, counters),
            dropped_by_reason=summary.get("dropped_by_reason") or {},
            failed_by_code=summary.get("failed_by_code") or failed_by_code,
            failed_rows=failed_rows,
            scores=summary.get("scores", {}) if summary.get("state") == "complete" else _scores(ledger),
            nodes=_nodes(ledger, history, plan),
            history=history,
            plan=plan,
            request=record.get("request") or {},
            command=shown_command(str(record.get("command", ""))),
            versions=summary.get("versions") or {},
            environment=shown_environment(os.environ),
            host=platform.node(),
        )
    finally:
        ledger.close()


def shown_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that bear on a run, without any that could hold a secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(ENVIRONMENT_SHOWN)
        and not any(word in name for word in ("TOKEN_", "_TOKEN", "SECRET", "KEY"))
    }


def shown_command(command: str) -> str:
    """The command as a user types it: the program by its name, wherever it was installed."""
    words = shlex.split(command)
    if words and Path(words[0]).name in ("main.py", "realign"):
        words[0] = "realign"
    return shlex.join(words)


def _nodes(ledger: LedgerReader, history: History, plan: Mapping[str, Any]) -> tuple[NodeReport, ...]:
    summaries = {str(summary.node): summary for summary in ledger.nodes_summary()}
    planned = {node["name"]: node for node in plan.get("nodes") or ()}
    calibrated, expected = history.calibrated_shares(), history.expected_shares()
    by_share = sorted(summaries, key=lambda name: -summaries[name].share)
    names = [*planned, *by_share, *history.counts]
    return tuple(
        NodeReport(
            name=name,
            chip=str(planned.get(name, {}).get("chip", "")),
            calibrated_share=calibrated.get(name),
            expected_share=expected.get(name),
            planned_share=planned.get(name, {}).get("share"),
            summary=summaries.get(name),
            counts=history.counts.get(name, NodeCounts()),
        )
        for name in dict.fromkeys(names)
    )


def _rows(summary: Mapping[str, Any], counters: Counters) -> dict[str, int]:
    """Until the output is written nothing is kept or dropped yet."""
    if summary.get("state") in ("complete", "failed") and "rows" in summary:
        return dict(summary["rows"])
    failed = counters.quarantined_rows + counters.bad_rows
    return {"in": counters.rows, "scored": counters.committed_rows, "failed": failed}


def _scores(ledger: LedgerReader) -> dict[str, dict[str, Any]]:
    """Distributions from the ledger itself, one window in memory at a time."""
    tally = Tally()
    for window in ledger.windows():
        scored = (orjson.loads(line) for line in window.results if line is not None)
        tally.add_scores([scores for scores in scored if "error" not in scores])
    return tally.score_summary()


def _failed(folder: Path) -> tuple[dict[str, int], tuple[FailedRow, ...]]:
    codes: Counter[str] = Counter()
    rows: list[FailedRow] = []
    for part in sorted(folder.glob("*.jsonl")):
        with part.open("rb") as lines:
            for line in lines:
                row = json.loads(line)  # orjson refuses what a failed row may be failed for: lone surrogates, NaN
                error = row.get("error") or {}
                codes[error.get("code", "?")] += 1
                if len(rows) < FAILED_ROWS_SHOWN:
                    rows.append(
                        FailedRow(
                            row_id=str(row.get("row_id", "")),
                            code=str(error.get("code", "?")),
                            message=str(error.get("message", "")),
                        )
                    )
    return dict(codes.most_common()), tuple(rows)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, tomllib.TOMLDecodeError):
        return {}
