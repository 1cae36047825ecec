"""`report.html` of a training run: curves, who did how much, what failed and what that cost, and how it was made.

One self-contained file, made at any time from the run folder and its history. Gathers nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from realign_cluster.coordinator import charts
from realign_cluster.coordinator.charts import number
from realign_cluster.coordinator.dashboard import duration_text, rate_text
from realign_cluster.coordinator.markup import chip, section, settings, share_cell, table, wall_clock
from realign_cluster.coordinator.train_history import TrainHistory
from realign_cluster.coordinator.train_report_curves import learning_sections, rate_sections, smoothed_loss
from realign_cluster.coordinator.train_report_time import generation_sections, record_sections, size_text
from realign_cluster.store.durable import write_durably
from realign_cluster.store.run_folder import RunFolder


def write_train_report(run_folder: Path, history: TrainHistory) -> Path:
    """Writes `report.html` into the run folder and returns its path."""
    folder = RunFolder.read(run_folder)
    page = render_train_report(
        run_folder.name,
        history,
        summary=_json(folder.summary),
        plan=_json(folder.plan),
        record=folder.read_run_toml() if folder.run_toml.exists() else {},
    )
    write_durably(folder.report, page.encode())
    return folder.report


def render_train_report(
    name: str, history: TrainHistory, *, summary: Mapping[str, Any], plan: Mapping[str, Any], record: Mapping[str, Any]
) -> str:
    """The whole page."""
    state = str(summary.get("state", "incomplete"))
    request = record.get("request") or {}
    nodes = sorted({node for generation in history.generations for node in generation.nodes})
    colours = {node: charts.node_style(index) for index, node in enumerate(nodes)}
    sections = [
        _head(name, state, history, summary, request),
        _figures(history, summary),
        learning_sections(history, request),
        generation_sections(history, colours),
        _nodes(history, summary, colours),
        rate_sections(history),
        record_sections(history),
        _plan(plan, history),
        _how(record, request, summary),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} ({escape(state)})</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


# --- the parts -------------------------------------------------------------------------------------------------------


def _head(name: str, state: str, history: TrainHistory, summary: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    chosen = request.get("settings") or {}
    steps = summary.get("steps") or {}
    what = f"<b>{escape(str(chosen.get('method', 'sft')))}</b>, {escape(str(chosen.get('fine_tune', 'lora')))}"
    sentence = f"{steps.get('done', 0):,} of {steps.get('asked', 0):,} steps of {what}"
    sentence += f" of <b>{escape(_called(str(request.get('model', ''))))}</b>"
    if summary.get("reason"):
        sentence += f": {escape(str(summary['reason']))}"
    when = f'<span class="dim">{wall_clock(history.begun)}</span>' if history.begun else ""
    return (
        f'<div class="head"><h1>{escape(name)}</h1>'
        f'<span class="badge {escape(state)}">{escape(state)}</span>{when}</div><p class="lead">{sentence}.</p>'
    )


def _figures(history: TrainHistory, summary: Mapping[str, Any]) -> str:
    loss, validation = smoothed_loss(history), summary.get("validation") or {}
    cards = [(f"{(summary.get('steps') or {}).get('done', 0):,}", "steps done")]
    if loss:
        cards.append((number(loss[-1][1]), f"training loss ({number(history.steps[0].loss)} at first)"))
    if validation:
        cards.append((number(validation["best"]), f"best validation loss, after step {validation['best_step']:,}"))
    cards += [
        (rate_text(history.tokens_per_second), "tokens/s within the steps"),
        (f"{summary.get('tokens', 0):,}", "tokens trained on"),
        (duration_text(history.seconds), f"in {history.sittings} sittings" if history.sittings > 1 else "all in all"),
        (
            f"{len(history.generations)}",
            "generation of ranks" if len(history.generations) == 1 else "generations of ranks",
        ),
        (f"{history.steps_lost}", "steps lost, and done again"),
    ]
    return (
        '<div class="figures">'
        + "".join(f'<div class="figure"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in cards)
        + "</div>"
    )


def _nodes(history: TrainHistory, summary: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    found: Mapping[str, Mapping[str, Any]] = summary.get("nodes") or {}
    if not found:
        return ""
    last = history.generations[-1] if history.generations else None
    planned = dict(zip(last.nodes, last.shares, strict=True)) if last is not None else {}
    versions = (summary.get("versions") or {}).get("nodes") or {}
    rows = []
    for node, values in found.items():
        rows.append(
            [
                chip(colours.get(node, "n0"), node),
                escape(str(versions.get(node, {}).get("chip", ""))),
                share_cell(planned.get(node)),
                share_cell(values.get("share")),
                f"{values.get('tokens', 0):,}",
                rate_text(values.get("tokens_per_second")),
                duration_text(float(values.get("busy_seconds") or 0.0)),
                size_text(history.peaks[node]) if node in history.peaks else "-",
            ]
        )
    headings = ["node", "chip", ">share planned", ">share done", ">tokens", ">tokens/s", ">computing", ">peak of MLX"]
    return section("Nodes", table(headings, rows))


def _plan(plan: Mapping[str, Any], history: TrainHistory) -> str:
    why = [f"<li>{escape(str(line))}</li>" for line in plan.get("why") or ()]
    planned, measured = plan.get("step_seconds"), [step.seconds for step in history.steps]
    if planned and measured:
        took = f"planned {_step_text(float(planned))} a step, measured {_step_text(median(measured))} (the median)"
        why.append(f"<li><b>{took}</b></li>")
    return section("The plan, and why", f'<ul class="why">{"".join(why)}</ul>') if why else ""


def _how(record: Mapping[str, Any], request: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    command = f"<pre>{escape(str(record['command']))}</pre>" if record.get("command") else ""
    chosen = {
        **{key: value for key, value in request.items() if key != "settings"},
        **(request.get("settings") or {}),
    }
    versions = summary.get("versions") or {}
    return section(
        "How it was made",
        f"{command}<details><summary>every setting</summary>{settings(chosen)}</details>"
        f"<details><summary>versions</summary>{settings(versions)}</details>",
    )


# --- small things ----------------------------------------------------------------------------------------------------


def _called(model: str) -> str:
    """A hub id as it is; of a folder its name: "every setting" has the path."""
    return Path(model).name if model.startswith("/") else model


def _step_text(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found
