"""`report.html` of a training run: curves, who did how much, what failed and what that cost, and how it was made.

One self-contained file, made at any time from the run folder and its history. Gathers nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.coordinator import charts
from realign_cluster.coordinator.charts import Marker, Span, number
from realign_cluster.coordinator.curves import Curve, curves, smoothed
from realign_cluster.coordinator.dashboard import duration_text, memory_text, rate_text
from realign_cluster.coordinator.markup import legend, section, settings, share_cell, table, wall_clock
from realign_cluster.coordinator.train_history import GenerationRecord, TrainHistory
from realign_cluster.store.durable import write_durably
from realign_cluster.store.run_folder import RunFolder

MARGIN_METRICS = ("accuracy", "margin")


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
        _loss(history),
        _preference(history),
        _divergence(history, request),
        _rates(history),
        _nodes(history, summary, colours),
        _generations(history, colours),
        _incidents(history),
        _plan(plan),
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
    sentence += f" of <b>{escape(str(request.get('model', '')))}</b>"
    if summary.get("reason"):
        sentence += f": {escape(str(summary['reason']))}"
    when = f'<span class="dim">{wall_clock(history.begun)}</span>' if history.begun else ""
    return (
        f'<div class="head"><h1>{escape(name)}</h1>'
        f'<span class="badge {escape(state)}">{escape(state)}</span>{when}</div><p class="lead">{sentence}.</p>'
    )


def _figures(history: TrainHistory, summary: Mapping[str, Any]) -> str:
    loss, validation = summary.get("loss") or {}, summary.get("validation") or {}
    cards = [
        (f"{(summary.get('steps') or {}).get('done', 0):,}", "steps done"),
        (_value(loss.get("last")), f"training loss (first {_value(loss.get('first'))})"),
        (_value(validation.get("best")), f"best validation loss (step {validation.get('best_step', '-')})"),
        (rate_text(history.tokens_per_second), "tokens/s within the steps"),
        (f"{summary.get('tokens', 0):,}", "tokens trained on"),
        (duration_text(history.seconds), f"in {history.sittings} sittings" if history.sittings > 1 else "all in all"),
        (f"{len(history.generations)}", "generations of ranks"),
        (f"{history.steps_lost}", "steps done again after a failure"),
    ]
    return (
        '<div class="figures">'
        + "".join(f'<div class="figure"><b>{value}</b><span>{escape(label)}</span></div>' for value, label in cards)
        + "</div>"
    )


def _loss(history: TrainHistory) -> str:
    points = [(float(step.step), step.loss) for step in history.steps]
    validation = [(float(each.step), each.metrics["loss"]) for each in history.evaluations if "loss" in each.metrics]
    drawn = curves(
        [
            Curve(label="each step", points=points, style="faint"),
            Curve(label="smoothed", points=smoothed(points), style="n0"),
            Curve(label="validation", points=validation, style="n1", dots=True),
        ],
        unit="loss",
        marks=_restarts(history),
    )
    entries = [("faint", "each step"), ("n0", "smoothed"), *([("n1", "validation")] if validation else [])]
    words = ""
    if len(history.generations) > 1:
        words = "<p class=dim>A mark is where a new generation of ranks took over: hold the pointer on it.</p>"
    return section("Loss", legend(entries) + drawn + words) if drawn else ""


def _preference(history: TrainHistory) -> str:
    body = ""
    for metric, style in zip(MARGIN_METRICS, ("n2", "n3"), strict=True):
        points = [(float(step.step), step.metrics[metric]) for step in history.steps if metric in step.metrics]
        if points:
            drawn = [
                Curve(label=metric, points=points, style="faint"),
                Curve(label=metric, points=smoothed(points), style=style),
            ]
            body += curves(drawn, unit=metric, height=160.0)
    return section("Chosen against rejected", body) if body else ""


def _divergence(history: TrainHistory, request: Mapping[str, Any]) -> str:
    points = [(float(each.step), each.kl) for each in history.divergences]
    if not points:
        return ""
    kl = (request.get("settings") or {}).get("kl") or {}
    budget = (float(kl["budget"]), f"budget {kl['budget']:g}") if "budget" in kl else None
    drawn = curves(
        [Curve(label="KL", points=points, style="n3", dots=True)], unit="nats per token", bound=budget, height=170.0
    )
    return section("Divergence from the base model", drawn)


def _rates(history: TrainHistory) -> str:
    norms = [(float(step.step), step.gradient_norm) for step in history.steps]
    rates = [(float(step.step), step.learning_rate) for step in history.steps]
    body = curves([Curve(label="gradient norm", points=norms, style="n4")], unit="gradient norm", height=150.0)
    body += curves([Curve(label="learning rate", points=rates, style="n5")], unit="learning rate", height=130.0)
    return section("Gradient norm and learning rate", body) if body else ""


def _nodes(history: TrainHistory, summary: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    found: Mapping[str, Mapping[str, Any]] = summary.get("nodes") or {}
    if not found:
        return ""
    last = history.generations[-1] if history.generations else None
    planned = dict(zip(last.nodes, last.shares, strict=True)) if last is not None else {}
    versions = (summary.get("versions") or {}).get("nodes") or {}
    rows = []
    for node, values in found.items():
        end = history.ends.get(node)
        rows.append(
            [
                f'<i class="{colours.get(node, "n0")}"></i> {escape(node)}',
                escape(str(versions.get(node, {}).get("chip", ""))),
                share_cell(planned.get(node)),
                share_cell(values.get("share")),
                f"{values.get('tokens', 0):,}",
                rate_text(values.get("tokens_per_second")),
                duration_text(float(values.get("busy_seconds") or 0.0)),
                memory_text(end.peak_bytes if end is not None else None, None),
            ]
        )
    headings = ["node", "chip", ">share planned", ">share done", ">tokens", ">tokens/s", ">computing", ">peak of MLX"]
    return section("Nodes", table(headings, rows))


def _generations(history: TrainHistory, colours: Mapping[str, str]) -> str:
    if not history.generations or history.begun is None:
        return ""
    begun = history.begun
    spans: dict[str, list[Span]] = {node: [] for node in colours}
    for record in history.generations:
        end = _end_of(record, history)
        ready = record.joined or end
        for node in record.nodes:
            title = f"generation {record.number}, from step {record.start_step}"
            spans[node].append(
                Span(begin=record.started - begun, end=ready - begun, style="load", title=f"{title}: loading")
            )
            if record.joined is not None:
                spans[node].append(
                    Span(begin=ready - begun, end=end - begun, style=colours[node], title=f"{title}: {record.why}")
                )
    total = max((span.end for lane in spans.values() for span in lane), default=0.0)
    drawn = charts.lanes([(node, spans[node]) for node in colours], total)
    rows = [
        [
            str(record.number),
            escape(record.parallel),
            escape(", ".join(record.nodes)),
            escape(" : ".join(f"{share:.1%}" for share in record.shares)),
            str(record.start_step),
            str(record.last_step or "-"),
            _seconds(record.started, record.joined),
            _seconds(record.joined, record.first_step),
            escape(record.why or "went through"),
        ]
        for record in history.generations
    ]
    headings = [">#", "how", "nodes", "shares", ">from step", ">to step", ">load and join", ">first step", "ended by"]
    words = "<p class=dim>Grey: starting, loading, joining. Coloured: training.</p>"
    return section("Generations of ranks", drawn + words + table(headings, rows))


def _incidents(history: TrainHistory) -> str:
    if not history.incidents or history.begun is None:
        return ""
    rows = [[f"{charts.clock(incident.wall - history.begun)}", escape(incident.text)] for incident in history.incidents]
    return section("What happened", table([">after", "what"], rows))


def _plan(plan: Mapping[str, Any]) -> str:
    why = [f"<li>{escape(str(line))}</li>" for line in plan.get("why") or ()]
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


def _restarts(history: TrainHistory) -> list[Marker]:
    found = []
    for before, after in zip(history.generations, history.generations[1:], strict=False):
        label = f"generation {after.number} from step {after.start_step}: {before.why or 'planned'}"
        found.append(Marker(at=float(after.start_step), label=label, trouble=bool(before.why)))
    return found


def _end_of(record: GenerationRecord, history: TrainHistory) -> float:
    last = max((step.wall for step in history.steps if step.generation == record.number), default=record.started)
    return max(record.ended or last, record.joined or record.started)


def _seconds(begin: float | None, end: float | None) -> str:
    return f"{end - begin:.1f} s" if begin is not None and end is not None and end >= begin else "-"


def _value(value: Any) -> str:
    return "-" if value is None else number(float(value))


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found
