"""The model card: what came out of a workflow, from what, with which figures and limits. For people, as Markdown and as
a part of the report; what it is to be used for is left to the person who signs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.markup import table, wall_clock
from realign_cluster.coordinator.workflow_history import Attempt, WorkflowHistory
from realign_cluster.coordinator.workflow_report_data import code_version
from realign_cluster.coordinator.workflow_report_examples import final_model
from realign_cluster.workflows.bodies import RECORDED
from realign_cluster.workflows.checklists import DOCUMENTATION_COMPLETE

UNSIGNED: Final = "(not signed)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPart:
    """Text throughout: `lines` are items of a list, `rows` of a table with `headings`."""

    title: str
    lines: Sequence[str] = ()
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=())


def model_card(history: WorkflowHistory) -> list[CardPart]:
    parts = [
        _model(history),
        _intended_use(history),
        _data(history),
        _trainings(history),
        _measures(history),
        _change(history),
        _limits(history),
        _verifier(history),
        _decided(history),
    ]
    return [part for part in parts if part.lines or part.rows]


def card_markdown(history: WorkflowHistory) -> str:
    parts = [f"# Model card: {history.folder.name}", ""]
    for part in model_card(history):
        parts += [f"## {part.title}", "", *(f"- {line}" for line in part.lines)]
        if part.rows:
            parts += [""] if part.lines else []
            parts += [_markdown_row(part.headings), _markdown_row(["---"] * len(part.headings))]
            parts += [_markdown_row(row) for row in part.rows]
        parts.append("")
    return "\n".join(parts)


def card_html(history: WorkflowHistory) -> str:
    parts = []
    for part in model_card(history):
        lines = "".join(f"<li>{escape(line)}</li>" for line in part.lines)
        rows = table(part.headings, [[escape(cell) for cell in row] for row in part.rows]) if part.rows else ""
        parts.append(f"<h3>{escape(part.title)}</h3>{f'<ul class=why>{lines}</ul>' if lines else ''}{rows}")
    return "".join(parts)


def _model(history: WorkflowHistory) -> CardPart:
    config, end = history.config, history.end
    identity = final_model(history)
    lines = [
        f"verdict of the run: {history.state}: {history.reason}",
        f"workflow: {history.workflow.title}, mode {config.mode}",
        f"base model: {config.model.path}",
        f"identity (hash of its files): {identity or 'none yet'}",
    ]
    if end:
        stage = end["model"]["from_stage"]
        lines.append(
            f"made by: {f'stage {stage}' if stage else 'nothing: it is the model that the workflow began with'}"
        )
        lines.append(f"files: {end['output'] or 'not handed over'}")
    else:
        lines.append("files: none; the run has not ended, and this card is of what there is so far")
    return CardPart(title="Model", lines=lines)


def _intended_use(history: WorkflowHistory) -> CardPart:
    signed = [note for note in history.notes_of("signature") if note.body["item"] == DOCUMENTATION_COMPLETE]
    by = f"{signed[-1].body['by']}, {wall_clock(signed[-1].wall)}" if signed else UNSIGNED
    return CardPart(
        title="Intended use",
        lines=[
            "to be written by the person who signs: no measurement says what a model should be used for",
            f"signed for by: {by}",
        ],
    )


def _data(history: WorkflowHistory) -> CardPart:
    rows = [
        [record.name, record.id, f"{record.bytes:,}"]
        for record in history.artifacts.values()
        if record.made_by.startswith("input: ")
    ]
    return CardPart(title="Data, by hash of the content", headings=["file", "hash", "bytes"], rows=sorted(rows))


def _trainings(history: WorkflowHistory) -> CardPart:
    rows = []
    for job in history.training_of(final_model(history)):
        settings, value = job.request["settings"], (job.result or {}).get("value") or {}
        rows.append(
            [
                str(job.request["title"]),
                f"{settings['method']}, {settings['fine_tune']}",
                str((value.get("steps") or {}).get("done", "")),
                f"{settings['optimizer']['learning_rate']:g}",
                f"{value['tokens']:,}" if value.get("tokens") else "",
                str(job.request["inputs_by_role"]["data"]),
                ", ".join((job.result or {}).get("nodes") or {}),
                code_version(job.result or {}),
            ]
        )
    headings = ["training", "method", "steps", "learning rate", "tokens", "data", "nodes", "code"]
    return CardPart(title="Trainings that made it, in order", headings=headings, rows=rows)


def _measures(history: WorkflowHistory) -> CardPart:
    """The gates of the last attempt of every stage that has ended."""
    rows = []
    for attempt in _last_attempts(history):
        for verdict in attempt.verdicts:
            body = verdict.body
            own = history.own_threshold(attempt.stage, verdict.gate)
            changed = "" if own in (None, body["threshold"]) else f" (by default {own:g})"
            rows.append(
                [
                    f"{attempt.stage} {body['title']}",
                    body["outcome"] + (" (overridden)" if body["overridden"] else ""),
                    _figure(body["value"]),
                    f"{_figure(body['bound'])} / {_figure(body['opposite_bound'])}",
                    f"{body['direction']} {body['threshold']:g}{changed}",
                    f"{body['items']:,}",
                    f"{body['undefined']:,}",
                    body["dataset"] or "-",
                ]
            )
    headings = ["stage and gate", "verdict", "value", "bound / other bound", "threshold", "n", "undefined", "dataset"]
    return CardPart(
        title="Gates",
        lines=["bounds are one-sided, each at the alpha that the report names"],
        headings=headings,
        rows=rows,
    )


def _change(history: WorkflowHistory) -> CardPart:
    """From the baseline to the evaluation, on different questions."""
    stages = history.workflow.stages
    first, last = history.last(stages[0].name), history.last(stages[-1].name)
    if first is None or last is None:
        return CardPart(title="From baseline to evaluation")
    rows = [
        [name, *(_figure(each.measurements.get(name, {}).get("value")) for each in (first, last))] for name in RECORDED
    ]
    return CardPart(
        title="From baseline to evaluation",
        lines=["the baseline is of the items, the evaluation of the sealed questions"],
        headings=["measure", "stage 1", f"stage {last.stage}"],
        rows=rows,
    )


def _limits(history: WorkflowHistory) -> CardPart:
    config = history.config
    lines = [
        f"measured on answers of at most {config.generation.max_new_tokens} tokens to the questions of the "
        "files above; nothing is known of others",
        "what supports a claim is what the verifier says, with the errors below",
    ]
    for attempt in _last_attempts(history):
        for verdict in attempt.verdicts:
            body = verdict.body
            if body["outcome"] != "PASS":
                watched = ", only watched" if body["guard"] else ""
                lines.append(f"{attempt.title}, {body['title']}: {body['outcome']}{watched}: {body['reason']}")
    reached = {attempt.stage for attempt in history.attempts if attempt.ended}
    missing = [f"{stage.number} {stage.title}" for stage in history.workflow.stages if stage.number not in reached]
    if missing:
        lines.append(f"stages without a verdict: {', '.join(missing)}")
    return CardPart(title="Limits", lines=lines)


def _verifier(history: WorkflowHistory) -> CardPart:
    config = history.config.verifier
    lines = [f"kind: {config.kind}" + (f", model {config.model}" if config.model else "")]
    if config.service is not None:
        lines.append(f"fact service: {config.service.url}, version {config.service.version}")
    lines.append(f"a claim counts as supported from probability {config.supported:g}")
    found = [attempt.facts["verifier"] for attempt in history.attempts if attempt.facts.get("verifier")]
    if not found:
        return CardPart(title="Verifier", lines=[*lines, "not yet held against labels"])
    quality: Mapping[str, Any] = found[-1]
    lines.append(f"fingerprint: {quality['verifier']}")
    for name in ("sensitivity", "specificity"):
        rate = quality[name]
        if rate["value"] is not None:
            lines.append(f"{name}: {rate['value']:.3f}, 95 % {rate['low']:.3f} to {rate['high']:.3f}, n {rate['n']}")
    return CardPart(title="Verifier", lines=lines)


def _decided(history: WorkflowHistory) -> CardPart:
    lines = [
        f"overridden: {note.body['stage']}.{note.body['gate']} ({note.body['verdict']}) by {note.body['by']}, "
        f"{wall_clock(note.wall)}: {note.body['reason']}"
        for note in history.notes_of("override")
    ]
    lines += [
        f"override taken back: {note.body['stage']}.{note.body['gate']} by {note.body['by']}, {wall_clock(note.wall)}: "
        f"{note.body['reason']}"
        for note in history.notes_of("withdrawal")
    ]
    lines += [
        f"taken back to stage {note.body['to']} by {note.body['by'] or 'somebody unnamed'}, {wall_clock(note.wall)}: "
        f"{note.body['reason'] or 'no reason given'}"
        for note in history.notes_of("rollback")
    ]
    lines += [f"gone on from without a decision: {attempt.title}, {verdict.body['title']}"
              for attempt, verdict in history.went_on]  # fmt: skip
    return CardPart(title="What people and the mode decided", lines=lines or ["nothing was overridden"])


def _last_attempts(history: WorkflowHistory) -> list[Attempt]:
    found = [history.last(stage.name) for stage in history.workflow.stages]
    return [attempt for attempt in found if attempt is not None]


def _figure(value: float | None) -> str:
    return "-" if value is None else number(value)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in cells)} |"
