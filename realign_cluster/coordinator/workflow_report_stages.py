"""The stages of a workflow's report: attempts with their gates, what followed, jobs, and what else was found."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.dashboard import duration_text
from realign_cluster.coordinator.markup import note, settings, table, unbroken, wall_clock
from realign_cluster.coordinator.workflow_history import Attempt, WorkflowHistory
from realign_cluster.coordinator.workflow_report_items import Behind
from realign_cluster.coordinator.workflow_status import TURNS
from realign_cluster.store.workflow_ledger import JobRecord, VerdictRecord
from realign_cluster.workflows.stage import Retained, Rule, Stage

OUTCOME_STYLES = {"PASS": "good", "FAIL": "bad", "INSUFFICIENT": "warn"}


def stages_body(history: WorkflowHistory, behind: Behind) -> str:
    return "".join(_stage(stage, history, behind) for stage in history.workflow.stages)


def figure(value: float | None) -> str:
    return "-" if value is None else number(value)


def short(identity: str) -> str:
    return f'<code title="{escape(identity)}">{escape(identity[:10])}</code>'


def file_link(history: WorkflowHistory, artifact: str) -> str:
    """To the artifact's file, by its path within the run's folder."""
    path = history.path_of(artifact)
    return f'<a href="{escape(path)}">{short(artifact)}</a>' if path else short(artifact)


def rule_text(rule: Rule) -> str:
    direction = "at least" if isinstance(rule, Retained) else rule.direction
    return f"{direction} {rule.threshold:g}"


def _stage(stage: Stage, history: WorkflowHistory, behind: Behind) -> str:
    head = f'<h3 class="stage" id="stage-{stage.number}">{stage.number}. {escape(stage.title)}</h3>'
    attempts = history.attempts_of(stage)
    if not attempts:
        gates = ", ".join(escape(f"{gate.title} {rule_text(gate.rule)}") for gate in stage.gates)
        return f'{head}<p class="dim">Not reached. Its gates: {gates}.</p>'
    return head + "".join(_attempt(attempt, history, behind, several=len(attempts) > 1) for attempt in attempts)


def _attempt(attempt: Attempt, history: WorkflowHistory, behind: Behind, *, several: bool) -> str:
    title = f"<h4>Attempt {attempt.number}</h4>" if several or attempt.number > 1 else ""
    return (
        f'<div class="attempt">{title}{_followed(attempt, history)}{_reruns(attempt, history)}'
        f"{_gates(attempt, history, behind)}{_model(attempt, history)}{_measurements(attempt, behind)}"
        f"{_jobs(attempt, history)}{_facts(attempt)}{_artifacts(attempt, history)}</div>"
    )


def _followed(attempt: Attempt, history: WorkflowHistory) -> str:
    record = attempt.record
    begun = f"begun {wall_clock(record.begun)}"
    if record.ended is None:
        said = "going on" if history.state == "running" else "not ended"
        return f'<p><b class="warn">{said}</b> <span class="dim">{begun}</span></p>'
    style = {"pass": "good", "go on": "warn", "remedy": "warn"}.get(attempt.turn, "bad")
    worked = sum(job.ended - job.begun for job in attempt.jobs if job.ended is not None)
    when = f"{begun}, ended {wall_clock(record.ended)}, {duration_text(worked)} of jobs"
    return (
        f'<p><b class="{style}">{escape(TURNS.get(attempt.turn, attempt.turn))}</b>: '
        f'{escape(str(record.body.get("reason", "")))} <span class="dim">({when})</span></p>'
    )


def _reruns(attempt: Attempt, history: WorkflowHistory) -> str:
    found = [
        escape(f"Looked at again at {wall_clock(each.wall)} because {', '.join(each.body['changed'])} changed.")
        for each in history.notes_of("rerun")
        if (each.body["stage"], each.body["attempt"]) == (attempt.stage, attempt.record.attempt)
    ]
    return f'<p class="warn">{"<br>".join(found)}</p>' if found else ""


def _gates(attempt: Attempt, history: WorkflowHistory, behind: Behind) -> str:
    if not attempt.verdicts:
        return note(f"No gate was judged: {attempt.record.body['failed']}") if attempt.record.body.get("failed") else ""
    rows = [_gate(attempt, verdict, history, behind) for verdict in attempt.verdicts]
    headings = [
        *("gate", "verdict", ">value", ">bound", ">other bound", "threshold", ">n", ">undefined", ">alpha"),
        "verifier, dataset",
    ]
    together = attempt.retention
    said = "" if together is None else note(f"Retention {together.text()}. Each benchmark is gated, so the minimum is.")
    return table(headings, rows) + said


def _gate(attempt: Attempt, verdict: VerdictRecord, history: WorkflowHistory, behind: Behind) -> list[str]:
    body = verdict.body
    own = history.own_threshold(attempt.stage, verdict.gate)
    changed = (
        "" if own is None or own == body["threshold"] else f'<br><span class="dim nowrap">by default {own:g}</span>'
    )
    guard = ' <span class="tag">guard</span>' if body["guard"] else ""
    overridden = ' <span class="tag">overridden</span>' if body["overridden"] else ""
    return [
        f'<div class="gate">{escape(body["title"])}{guard}<br><span class="dim">{escape(body["reason"])}</span></div>',
        f'<b class="{OUTCOME_STYLES[body["outcome"]]}">{body["outcome"]}</b>{overridden}',
        linked(figure(body["value"]), behind.link(attempt, body["metric"])),
        figure(body["bound"]),
        figure(body["opposite_bound"]),
        unbroken(f"{body['direction']} {body['threshold']:g}") + changed,
        f"{body['items']:,}" if body["items"] else "counted",
        f"{body['undefined']:,}",
        _alpha(body),
        ", ".join([*([short(body["verifier"])] if body["verifier"] else []), escape(body["dataset"])]) or "-",
    ]


def _alpha(body: Mapping[str, Any]) -> str:
    """What this look may err by; nothing where there is nothing to infer."""
    if not body["alpha_each"]:
        return "-"
    look = f'<br><span class="dim nowrap">look {body["look"]} of {body["looks"]}</span>' if body["look"] else ""
    return f"{body['alpha_each']:.3g}{look}"


def linked(text: str, anchor: str) -> str:
    return f'<a href="#{anchor}">{text}</a>' if anchor else text


def _model(attempt: Attempt, history: WorkflowHistory) -> str:
    model = attempt.record.body.get("model")
    if not model:
        return ""
    identity = model.get("artifact") or model.get("hash")
    trainings = history.training_of(identity)
    if not trainings:
        return f'<p class="dim note">Its model: the one that the workflow began with, {short(identity)}.</p>'
    last = trainings[-1]
    data = str(last.request["inputs_by_role"]["data"])
    return (
        f'<p class="note">Its model: {file_link(history, identity)}, of '
        f'<a href="#t-{last.key[:12]}">{escape(last.request["title"])}</a> on '
        f'<a href="#d-{data[:12]}">these rows</a>.</p>'
    )


def _measurements(attempt: Attempt, behind: Behind) -> str:
    """Everything that was measured, also what no gate of this stage asks for."""
    if not attempt.measurements:
        return ""
    rows = [
        [
            escape(name),
            linked(figure(each["value"]), behind.link(attempt, name)),
            f"{each['items']:,}",
            f"{each['undefined']:,}",
            escape(each["dataset"]),
        ]
        for name, each in attempt.measurements.items()
    ]
    body = table(["measure", ">value", ">n", ">undefined", "dataset"], rows)
    return f"<details><summary>{len(rows)} measures</summary>{body}</details>"


def _jobs(attempt: Attempt, history: WorkflowHistory) -> str:
    if not attempt.jobs:
        return note("No job of its own: what it asked for had been done before.") if attempt.ended else ""
    rows = [_job(job, history) for job in attempt.jobs]
    return (
        f"<details><summary>{len(rows)} jobs</summary>"
        f"{table(['job', 'what', 'nodes', '>time', 'made', 'key'], rows)}</details>"
    )


def _job(job: JobRecord, history: WorkflowHistory) -> list[str]:
    request, result = job.request, job.result or {}
    what = str(request["what"])
    if what == "derive":
        what = f"{request['function']}, version {request['version']}"
    elif what == "consult":
        what = f"fact service, version {request['service']['version']}"
    elif what == "score":
        what = f"score {', '.join(request['kinds'])}"
    made = ", ".join(
        f"{escape(name)} {file_link(history, str(each))}" for name, each in (result.get("outputs") or {}).items()
    )
    if job.result is None:
        made = f'<span class="warn">{"going on" if history.state == "running" else "not done"}</span>'
    elif result.get("failed"):
        made = f'<span class="bad">{escape(str(result["failed"]))}</span>'
    nodes = ", ".join(result.get("nodes") or {}) or ("coordinator" if job.result is not None else "")
    took = duration_text(job.ended - job.begun) if job.ended is not None else "-"
    return [escape(request["title"]), escape(what), escape(nodes), took, made, short(job.key)]


def _facts(attempt: Attempt) -> str:
    if not attempt.facts:
        return ""
    return (
        f"<details><summary>what else it found</summary>"
        f'<div id="facts-{attempt.stage}-{attempt.number}">{settings(_flat(attempt.facts))}</div></details>'
    )


def _artifacts(attempt: Attempt, history: WorkflowHistory) -> str:
    links = ", ".join(f"{escape(name)} {file_link(history, each)}" for name, each in attempt.artifacts.items())
    return f'<p class="dim note">It left: {links}.</p>' if links else ""


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has a section of its own."""
    return {name: value for name, value in facts.items() if name not in ("rounds", "verifier", "pairs")}
