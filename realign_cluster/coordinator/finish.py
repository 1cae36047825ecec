"""The end of a sitting: output in input order, summary.json, events.jsonl, report.html. Repeated whole after a crash.

A run is complete when rows in = kept + dropped + failed; anything else is said so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from realign_cluster.coordinator.engine import Outcome
from realign_cluster.coordinator.events_file import write_events
from realign_cluster.coordinator.history import History, read_history
from realign_cluster.coordinator.progress import Level
from realign_cluster.coordinator.report import write_report
from realign_cluster.coordinator.run_record import Run
from realign_cluster.domain.expression import UNDEFINED
from realign_cluster.domain.tally import Tally
from realign_cluster.rpc.versions import local_versions
from realign_cluster.store.ledger import LedgerReader
from realign_cluster.store.output import write_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    body: Mapping[str, Any]  # summary.json
    notes: tuple[tuple[str, Level], ...]


def finish_run(
    run: Run,
    outcome: Outcome,
    *,
    progress: Callable[[int], None],
    node_versions: Mapping[str, Mapping[str, str]],
) -> Summary:
    """Writes everything that this sitting's end allows: the output only of a run whose every row is accounted for."""
    tally = None
    if outcome.complete:
        tally = write_outputs(run.ledger, run.sources, run.folder.path, run.output_options(), progress)
    history = read_history(run.ledger)
    body = summary_of(run.ledger, history, tally, outcome, plan=run.plan, node_versions=node_versions)
    run.folder.write_json(run.folder.summary, body)
    write_events(run.ledger, run.folder.events)
    write_report(run.folder.path, history)
    if tally is not None and tally.accounted:
        run.ledger.set_meta("written", True)
        run.sources.discard_cache()
    return Summary(body=body, notes=tuple(_notes(run, body)))


def summary_of(
    ledger: LedgerReader,
    history: History,
    tally: Tally | None,
    outcome: Outcome,
    *,
    plan: Mapping[str, Any],
    node_versions: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """summary.json as the contract has it, with `scores` and `reason` besides."""
    counters = ledger.counters()
    rows = {
        "in": counters.rows,
        "kept": tally.kept if tally is not None else 0,
        "dropped": tally.dropped if tally is not None else 0,
        "failed": tally.failed if tally is not None else counters.quarantined_rows + counters.bad_rows,
    }
    accounted = tally is not None and tally.accounted and tally.rows_in == counters.rows
    state = "complete" if accounted else "failed" if outcome.complete else "incomplete"
    wall_seconds = history.seconds
    committed = counters.committed_rows
    return {
        "state": state,
        "reason": outcome.reason if state != "complete" else "",
        "rows": rows,
        "scored_rows": committed,
        "dropped_by_reason": dict(tally.dropped_by_reason) if tally is not None else {},
        "failed_by_code": dict(tally.failed_by_code) if tally is not None else {},
        "nodes": {
            str(node.node): {
                "rows": node.rows,
                "share": node.share,
                "rows_per_second": node.rows / node.busy_seconds if node.busy_seconds > 0 else None,
                "busy_seconds": node.busy_seconds,
            }
            for node in ledger.nodes_summary()
        },
        "wall_seconds": wall_seconds,
        "rows_per_second": committed / wall_seconds if wall_seconds > 0 else None,
        "efficiency": {"warm": history.efficiency.warm, "cold": history.efficiency.cold},
        "losses": dict(history.efficiency.losses),
        "duplicate_fraction": history.duplicate_fraction,
        "duplicate_rows": counters.duplicates,
        "resumed": max(0, len(ledger.epochs()) - 1),
        "versions": _versions(node_versions),
        "plan": dict(plan),
        "scores": tally.score_summary() if tally is not None else {},
    }


def _versions(node_versions: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    ours = local_versions()
    return {
        "project": ours.project,
        "protocol": ours.protocol,
        "mlx": ours.mlx,
        "mlx_lm": ours.mlx_lm,
        "python": ours.python,
        "platform": ours.platform,
        "nodes": {name: dict(versions) for name, versions in node_versions.items()},
    }


def _notes(run: Run, body: Mapping[str, Any]) -> Iterator[tuple[str, Level]]:
    rows = body["rows"]
    if body["state"] == "incomplete":
        scored, total = body["scored_rows"], rows["in"]
        why = f"not complete ({body['reason']})"
        yield f"{why}: {scored:,} of {total:,} rows are scored and kept in the ledger", "warning"
        return
    yield (
        f"{rows['in']:,} rows in = {rows['kept']:,} kept + {rows['dropped']:,} dropped + {rows['failed']:,} failed"
        f" in {body['wall_seconds']:.1f} s ({body['rows_per_second'] or 0:,.1f} rows/s)",
        "info",
    )
    if body["duplicate_rows"]:
        yield f"{body['duplicate_rows']:,} rows are equal to an earlier one; they are kept", "info"
    if body["state"] == "failed":
        yield "the rows do not add up: this run cannot be trusted, start it again in a new folder", "error"
    if rows["failed"]:
        codes = ", ".join(f"{count} {code}" for code, count in body["failed_by_code"].items())
        yield f"{rows['failed']:,} rows could not be scored ({codes}): see {run.folder.failed}", "warning"
    if undefined := body["dropped_by_reason"].get(UNDEFINED):
        yield (
            f"{undefined:,} rows were dropped because they lack a value that --keep-if names, or it is null",
            "warning",
        )
    yield f"report: {run.folder.report}", "info"
