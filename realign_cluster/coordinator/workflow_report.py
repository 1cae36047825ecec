"""`report.html` of a workflow: one page that somebody can sign, made at any time from the run's folder; beside it the
same as `report.json`, and the model card.

Puts the parts together; each of them is in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Final

from realign_cluster.coordinator.dashboard import duration_text
from realign_cluster.coordinator.markup import note, section, settings, table, wall_clock
from realign_cluster.coordinator.model_card import card_html, card_markdown
from realign_cluster.coordinator.workflow_history import WorkflowHistory, read_workflow_history
from realign_cluster.coordinator.workflow_report_answers import answer_block, question_of
from realign_cluster.coordinator.workflow_report_curves import losses_body, measures_body, risk_body, rounds_body
from realign_cluster.coordinator.workflow_report_data import inputs_table, provenance_body, training_data_body
from realign_cluster.coordinator.workflow_report_examples import before_and_after, examples_body, final_model
from realign_cluster.coordinator.workflow_report_items import Behind, items_section
from realign_cluster.coordinator.workflow_report_json import checklist_of, report_json
from realign_cluster.coordinator.workflow_report_quality import quality_body
from realign_cluster.coordinator.workflow_report_stages import file_link, stages_body
from realign_cluster.store.durable import write_durably
from realign_cluster.store.run_folder import RunFolder
from realign_cluster.workflows.checklists import CHECKLISTS

DECISIONS: Final = ("override", "withdrawal", "rollback")
PHASES: Final = {"before": "Before training", "during": "During training", "after": "After training"}


def write_workflow_report(run: Path) -> Path:
    """Writes report.html, report.json and model-card.md into the run's folder; returns the path of the page. Raises
    UsageError when it is not the folder of a workflow.
    """
    history = read_workflow_history(run)
    folder = RunFolder.read(run)
    behind = Behind(history)
    page = render_workflow_report(history, behind)
    write_durably(folder.report, page.encode())
    folder.write_json(folder.report.with_suffix(".json"), report_json(history, behind))
    write_durably(folder.path / "model-card.md", card_markdown(history).encode())
    return folder.report


def render_workflow_report(history: WorkflowHistory, behind: Behind) -> str:
    """The whole page. What was linked to is put on it after everything that links."""
    compared = before_and_after(history)
    answers = [("stage 1", compared.before), ("after", compared.after)] if compared else []
    model = final_model(history)
    parts = [
        ("Stages and gates", "stages", stages_body(history, behind)),
        ("Measures over the stages", "measures", measures_body(history, behind)),
        ("Iteration", "iteration", rounds_body(history)),
        ("Risk against coverage", "risk", risk_body(history, answers)),
        ("Before and after", "examples", examples_body(history, behind)),
        ("Training", "losses", losses_body(history)),
        ("Data and verifier", "quality", quality_body(history, behind)),
        ("What was trained on", "data", training_data_body(history)),
        ("Checklists", "checklists", _checklists(history)),
        ("Model card", "card", card_html(history)),
        ("Provenance of the model", "provenance", provenance_body(history, model) if model else ""),
        ("What people decided", "decisions", _decisions(history)),
        ("Items behind the numbers", "items", items_section(behind)),
        ("Answers", "answers", _answers(history, behind)),
        ("How it was run", "how", _how(history)),
    ]
    shown = [(title, anchor, body) for title, anchor, body in parts if body]
    banner = _banner(history)
    contents = " ".join(f'<a href="#{anchor}">{escape(title)}</a>' for title, anchor, _ in shown)
    sections = "".join(section(title, banner + body, anchor) for title, anchor, body in shown)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    name = history.folder.name
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} ({escape(history.state)})</title><style>{style}</style></head>\n"
        f'<body><main>{_head(history)}{_figures(history)}{banner}<nav class="contents">{contents}</nav>'
        f"{sections}</main></body></html>\n"
    )


# --- the parts that are of the whole run -----------------------------------------------------------------------------


def _head(history: WorkflowHistory) -> str:
    begun = history.jobs[0].begun if history.jobs else None
    when = f'<span class="dim">{wall_clock(begun)}</span>' if begun else ""
    model = final_model(history)
    out = ""
    if history.end:
        stage = history.end["model"]["from_stage"]
        whose = f"the one of stage {escape(stage)}" if stage else "the one that it began with"
        out = f" The model that came out is {whose}, {file_link(history, model)}."
    undone = _not_acted_on(history)
    later = f' <b class="warn">{escape(undone)}</b>' if undone else ""
    return (
        f'<div class="head"><h1>{escape(history.workflow.title)}: {escape(history.folder.name)}</h1>'
        f'<span class="badge {escape(history.state)}">{escape(history.state)}</span>'
        f'<span class="badge mode">{escape(history.config.mode)}</span>{when}</div>'
        f'<p class="lead">{escape(_verdict(history))}{out}{later}</p>'
    )


def _verdict(history: WorkflowHistory) -> str:
    match history.state:
        case "complete":
            return f"Complete: {history.reason}."
        case "failed":
            return f"Failed: {history.reason}."
        case "incomplete":
            return f"Incomplete: {history.reason}."
        case state:
            return f"{state.capitalize()}: {history.reason}."


def _not_acted_on(history: WorkflowHistory) -> str:
    """What people decided after the last sitting began: the next run acts on it."""
    sittings = history.notes_of("sitting")
    last = sittings[-1].seq if sittings else 0
    kinds = [note.kind for note in history.notes if note.seq > last and note.kind in DECISIONS]
    said = ", ".join(dict.fromkeys(kinds))
    return f"Since then a person decided ({said}): the next run acts on it." if said else ""


def _figures(history: WorkflowHistory) -> str:
    passed = {attempt.stage for attempt in history.attempts if attempt.turn in ("pass", "go on")}
    judged = [verdict for attempt in history.attempts for verdict in attempt.verdicts]
    seconds = sum(job.ended - job.begun for job in history.jobs if job.ended is not None)
    nodes = {node for job in history.jobs for node in (job.result or {}).get("nodes") or {}}
    counts = {name: sum(each.body["outcome"] == name for each in judged) for name in ("PASS", "FAIL", "INSUFFICIENT")}
    cards = [
        (f"{len(passed)} of {len(history.workflow.stages)}", "stages gone through"),
        (f"{len(history.attempts)}", "attempts"),
        (f"{counts['PASS']}", "verdicts PASS"),
        (f"{counts['FAIL']}", "verdicts FAIL"),
        (f"{counts['INSUFFICIENT']}", "verdicts INSUFFICIENT"),
        (f"{len(history.overridden)}", "gates overridden"),
        (duration_text(seconds), f"of jobs; {_counted(len(history.notes_of('sitting')), 'sitting')}"),
        (f"{len(nodes)}", f"nodes: {', '.join(sorted(nodes))}" if nodes else "nodes"),
    ]
    return (
        '<div class="figures">'
        + "".join(f'<div class="figure"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in cards)
        + "</div>"
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _banner(history: WorkflowHistory) -> str:
    """On every section of a permissive run."""
    if history.config.mode != "permissive" and not history.went_on:
        return ""
    names = [f"{attempt.label}, {verdict.body['title']}" for attempt, verdict in history.went_on]
    said = f"gone on from gates that could not decide: {'; '.join(names)}" if names else "no gate was gone on from"
    return f'<p class="banner">Mode {escape(history.config.mode)}: {escape(said)}.</p>'


def _checklists(history: WorkflowHistory) -> str:
    ticked = list(zip(checklist_of(history), CHECKLISTS[history.workflow.name], strict=True))
    parts = []
    for phase, title in PHASES.items():
        rows = [
            [
                '<b class="good">✓</b>' if each.done else '<b class="bad">✗</b>',
                escape(each.text),
                escape(each.by) or ("not signed" if item.signed else "facts"),
            ]
            for each, item in ticked
            if each.phase == phase
        ]
        parts.append(f"<div><h3>{title}</h3>{table(['', 'item', 'by'], rows)}</div>")
    return f'<div class="checklists">{"".join(parts)}</div>'


def _decisions(history: WorkflowHistory) -> str:
    rows = []
    for each in history.notes:
        body, when = each.body, wall_clock(each.wall)
        match each.kind:
            case "override":
                what = f"{body['stage']}.{body['gate']}, which was {body['verdict']}, counts as passed"
                rows.append([when, "override", escape(what), escape(body["by"]), escape(body["reason"])])
            case "withdrawal":
                what = f"{body['stage']}.{body['gate']} is overridden no longer: its verdict counts"
                rows.append([when, "withdrawal", escape(what), escape(body["by"]), escape(body["reason"])])
            case "rollback":
                what = f"back to stage {body['to']}: what came after it is done anew"
                rows.append([when, "rollback", escape(what), escape(body["by"]) or "-", escape(body["reason"]) or "-"])
            case "signature":
                rows.append([when, "signature", escape(body["item"]), escape(body["by"]), "-"])
            case "rerun":
                what = f"stage {body['stage']}, attempt {body['attempt'] + 1}, was looked at again"
                rows.append([when, "changed input", escape(what), "-", escape(f"{', '.join(body['changed'])} changed")])
            case _:
                pass
    if not rows:
        return note("Nothing was overridden, taken back or signed, and no input changed.")
    return table(["time", "kind", "what", "by", "why"], rows)


def _answers(history: WorkflowHistory, behind: Behind) -> str:
    """Those that something on the page links to, by the artifact that has all of them."""
    parts = []
    for artifact, items in behind.answers.items():
        rows, verdicts = behind.answer_rows(artifact), behind.verdicts(artifact)
        whose = dict.fromkeys(attempt.label for attempt in history.attempts if attempt.answers == artifact)
        models = "; ".join(_whose(history, model) for model in history.answered_by(artifact))
        blocks = "".join(
            f"<details><summary>{escape(item)}: {escape(question_of(rows[item], 110))}</summary>"
            f'<div class="example" id="{behind.answer(artifact, item)}"><p class="question">'
            f"{escape(question_of(rows[item], 900))}</p>{answer_block(rows[item], verdicts)}</div></details>"
            for item in list(items)
            if item in rows
        )
        title = f"Stage {', '.join(whose)}" if whose else "Within a stage"
        parts.append(
            f"<details><summary>{escape(title)}: {len(items):,} of {len(rows):,} answers</summary>"
            f'<p class="note">By {models}. All of them: '
            f"{file_link(history, artifact)}.</p>{blocks}</details>"
        )
    return "".join(parts)


def _whose(history: WorkflowHistory, model: str) -> str:
    """A model with the trainings that lead to the rows that it was trained on."""
    trained = ", ".join(
        f'<a href="#t-{job.key[:12]}">{escape(job.request["title"])}</a>' for job in history.training_of(model)
    )
    of = f"trained by {trained}" if trained else "as it was given"
    return f"the model {file_link(history, model)}, {of}"


def _how(history: WorkflowHistory) -> str:
    command = f"<pre>{escape(history.command)}</pre>" if history.command else ""
    config: Mapping[str, object] = history.config.model_dump(mode="json")
    return (
        f"{command}{inputs_table(history)}<details><summary>every setting</summary>{settings(config)}</details>"
        f"<footer>{_counted(len(history.jobs), 'job')} in ledger.sqlite; made again by: "
        f"realign workflow report {escape(history.folder.name)}</footer>"
    )
