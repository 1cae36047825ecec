"""`report.json`: what the page of a workflow says, for programs. And the checklists, which both of them have."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from realign_cluster.coordinator.markup import wall_clock
from realign_cluster.coordinator.model_card import card_markdown
from realign_cluster.coordinator.workflow_history import Attempt, WorkflowHistory
from realign_cluster.coordinator.workflow_report_data import provenance_rows
from realign_cluster.coordinator.workflow_report_examples import before_and_after, final_model
from realign_cluster.coordinator.workflow_report_items import Behind
from realign_cluster.workflows.checklists import Facts, Ticked, tick


def checklist_of(history: WorkflowHistory) -> list[Ticked]:
    """By the last attempt of each stage that has ended."""
    last = {stage.name: found for stage in history.workflow.stages if (found := history.last(stage.name)) is not None}
    return tick(
        history.workflow.name,
        Facts(
            stages={name: attempt.record.body for name, attempt in last.items()},
            verdicts={
                name: {verdict.gate: verdict.body["outcome"] for verdict in attempt.verdicts}
                for name, attempt in last.items()
            },
            signatures={
                note.body["item"]: f"{note.body['by']}, {wall_clock(note.wall)}"
                for note in history.notes_of("signature")
            },
            state=history.state,
        ),
    )


def report_json(history: WorkflowHistory, behind: Behind) -> dict[str, Any]:
    model = final_model(history)
    compared = before_and_after(history)
    return {
        "workflow": history.workflow.name,
        "state": history.state,
        "reason": history.reason,
        "mode": history.config.mode,
        "model": dict(history.end.get("model") or {"identity": model}),
        "went_on": [f"{attempt.label}, {verdict.body['title']}" for attempt, verdict in history.went_on],
        **{
            f"{kind}s": [{**note.body, "time": wall_clock(note.wall)} for note in history.notes_of(kind)]
            for kind in ("override", "withdrawal", "rollback", "rerun", "signature")
        },
        "stages": [
            {
                "stage": stage.number,
                "name": stage.name,
                "title": stage.title,
                "reached": bool(history.attempts_of(stage)),
                "attempts": [_attempt(attempt, history, behind) for attempt in history.attempts_of(stage)],
            }
            for stage in history.workflow.stages
        ],
        "before_after": None
        if compared is None
        else {
            "before": history.path_of(compared.before),
            "after": history.path_of(compared.after),
            "final": compared.final,
            "items": {change: list(items) for change, items in compared.items.items()},
        },
        "checklists": [
            {"phase": each.phase, "item": each.text, "done": each.done, "by": each.by} for each in checklist_of(history)
        ],
        "provenance": provenance_rows(history, model) if model else [],
        "model_card": card_markdown(history),
    }


def _attempt(attempt: Attempt, history: WorkflowHistory, behind: Behind) -> dict[str, Any]:
    body = attempt.record.body
    return {
        "attempt": attempt.number,
        "begun": wall_clock(attempt.record.begun),
        "ended": wall_clock(attempt.record.ended) if attempt.record.ended is not None else None,
        "turn": attempt.turn or None,
        "reason": body.get("reason", ""),
        "failed": body.get("failed", ""),
        "model": body.get("model"),
        "gates": [
            {
                "gate": verdict.gate,
                **verdict.body,
                "own_threshold": history.own_threshold(attempt.stage, verdict.gate),
                "items_file": _file(behind, behind.link(attempt, verdict.body["metric"])),
            }
            for verdict in attempt.verdicts
        ],
        "retention": asdict(attempt.retention) if attempt.retention else None,
        "measurements": {
            name: {**each, "items_file": _file(behind, behind.link(attempt, name))}
            for name, each in attempt.measurements.items()
        },
        "facts": dict(attempt.facts),
        "artifacts": {name: history.path_of(each) for name, each in attempt.artifacts.items()},
        "jobs": [
            {
                "key": job.key,
                "title": job.request["title"],
                "what": job.request["what"],
                "seconds": None if job.ended is None else job.ended - job.begun,
                "nodes": list((job.result or {}).get("nodes") or {}),
                "outputs": {
                    name: history.path_of(str(each)) for name, each in ((job.result or {}).get("outputs") or {}).items()
                },
                "done": job.result is not None,
            }
            for job in attempt.jobs
        ],
    }


def _file(behind: Behind, anchor: str) -> str:
    """Of the artifact that has every item of a measurement."""
    items = behind.items.get(anchor)
    return next(iter(items.files.values()), "") if items is not None else ""
