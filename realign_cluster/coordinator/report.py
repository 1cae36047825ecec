"""`report.html`: one file that explains a run to somebody who was not there, made at any time from the run folder.

Puts ReportData into words, tables and charts; gathers nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from realign_cluster.coordinator import charts
from realign_cluster.coordinator.charts import Part
from realign_cluster.coordinator.dashboard import duration_text, rate_text
from realign_cluster.coordinator.history import History
from realign_cluster.coordinator.markup import section, settings, share_cell, table, wall_clock
from realign_cluster.coordinator.report_data import NodeReport, ReportData, report_data
from realign_cluster.coordinator.report_time import efficiency_section, incidents_section, throughput_section
from realign_cluster.store.durable import write_durably


def write_report(run_folder: Path, history: History | None = None) -> Path:
    """Writes `report.html` into the run folder and returns its path. Raises UsageError when it is no run folder.

    `history` is this run's, where the caller has read it.
    """
    path = run_folder / "report.html"
    write_durably(path, render_report(report_data(run_folder, history)).encode("utf-8"))
    return path


def render_report(data: ReportData) -> str:
    """The whole page, self-contained."""
    colours = {node.name: charts.node_style(index) for index, node in enumerate(data.nodes)}
    sections = [
        _head(data),
        _figures(data),
        throughput_section(data, colours),
        _nodes(data, colours),
        efficiency_section(data),
        _rows(data),
        _scores(data),
        incidents_section(data),
        _plan(data),
        _how(data),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.name)} ({escape(data.state)})</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


NODE_COLUMNS = (
    "node",
    "chip",
    ">share",
    ">expected",
    ">calibrated",
    ">planned",
    ">rows",
    ">rows/s",
    ">computing",
    ">units",
    ">given out again",
    ">worker restarts",
    ">times lost",
)


# --- the parts -------------------------------------------------------------------------------------------------------


def _head(data: ReportData) -> str:
    rows = data.rows
    total = rows.get("in", 0)
    if "kept" in rows:
        counts = ", ".join(f"{rows.get(name, 0):,} {name}" for name in ("kept", "dropped", "failed"))
        outcome = f"{total:,} rows in: {counts}"
    else:
        outcome = f"{rows.get('scored', 0):,} of {total:,} rows scored so far, {rows.get('failed', 0):,} failed"
        outcome += f" ({escape(str(data.summary['reason']))})" if data.summary.get("reason") else ""
    worked = [node for node in data.nodes if node.summary is not None]
    kinds = ", ".join(data.request.get("kinds") or ())
    model = str(data.plan.get("model") or data.request.get("model") or "")
    sentence = (
        "Scored" + (f" <b>{escape(kinds)}</b>" if kinds else "") + (f" with <b>{escape(model)}</b>" if model else "")
    )
    if worked:
        names = escape(", ".join(node.name for node in worked))
        sentence += f" on {len(worked)} {'node' if len(worked) == 1 else 'nodes'} ({names})"
    begun = data.history.sittings[0].wall if data.history.sittings else None
    when = f'<span class="dim">{wall_clock(begun)}</span>' if begun else ""
    return (
        f'<div class="head"><h1>{escape(data.name)}</h1>'
        f'<span class="badge {escape(data.state)}">{escape(data.state)}</span>{when}</div>'
        f'<p class="lead">{outcome}. {sentence}.</p>'
    )


def _figures(data: ReportData) -> str:
    rows, summary = data.rows, data.summary
    efficiency = data.history.efficiency
    seconds = float(summary.get("wall_seconds") or data.history.seconds)
    committed = data.counters.committed_rows
    rate = float(summary.get("rows_per_second") or (committed / seconds if seconds else 0.0))
    warm, cold = efficiency.warm, efficiency.cold
    restarts = int(summary.get("resumed") or max(0, len(data.history.sittings) - 1))
    cards = [
        (f"{rows.get('in', 0):,}", "rows in"),
        (f"{rows['kept']:,}", "kept") if "kept" in rows else (f"{rows.get('scored', 0):,}", "scored"),
        (f"{rows['dropped']:,}", "dropped") if "dropped" in rows else (f"{data.counters.pending_rows:,}", "to do"),
        (f"{rows.get('failed', 0):,}", "failed"),
        (rate_text(rate), "rows/s, all in all"),
        (duration_text(seconds), f"in {restarts + 1} sittings" if restarts else "from start to end"),
        ("not measured", escape(efficiency.why_not))
        if warm is None
        else (f"{warm:.1%}", f"efficiency ({cold:.1%} with model load)"),
        (f"{data.history.duplicate_fraction:.2%}", "of the work computed twice"),
    ]
    return (
        '<div class="figures">'
        + "".join(f'<div class="figure"><b>{value}</b><span>{label}</span></div>' for value, label in cards)
        + "</div>"
    )


def _nodes(data: ReportData, colours: Mapping[str, str]) -> str:
    if not data.nodes:
        return ""
    rates = data.summary.get("nodes") or {}
    figures = table(
        NODE_COLUMNS,
        [_node_cells(node, rates.get(node.name, {})) for node in data.nodes],
    )  # fmt: skip
    bars = charts.paired_bars(
        [
            (node.name, node.expected_share, node.summary.share if node.summary else 0.0, colours[node.name])
            for node in data.nodes
        ]
    )
    text = (
        '<p class="dim">Share is the fraction of the committed work (cost). The hollow bar is what was to be expected: '
        "the speed calibrated at join, for as long as the node was there. Calibrated and planned shares take all nodes "
        "as there from beginning to end; the plan may rest on a prior.</p>"
    )
    return section("Nodes: share against calibration", f"{bars}{text}{figures}")


def _node_cells(node: NodeReport, rates: Mapping[str, Any]) -> list[str]:
    summary, counts = node.summary, node.counts
    busy = summary.busy_seconds if summary else 0.0
    rate = rates.get("rows_per_second") or (summary.rows / busy if summary and busy else None)
    return [
        f"<b>{escape(node.name)}</b>",
        escape(node.chip) or "-",
        f"{summary.share:.1%}" if summary else "-",
        share_cell(node.expected_share),
        share_cell(node.calibrated_share),
        share_cell(node.planned_share),
        f"{summary.rows:,}" if summary else "0",
        rate_text(rate),
        duration_text(busy),
        f"{summary.units:,}" if summary else "0",
        f"{counts.revoked + counts.discarded:,}",
        f"{counts.worker_exits:,}",
        f"{counts.losses:,}",
    ]


def _rows(data: ReportData) -> str:
    rows, total = data.rows, data.rows.get("in", 0)
    if not total:
        return section("Rows", "<p>There were no rows.</p>")
    names = ("kept", "dropped", "failed") if "kept" in rows else ("scored", "failed")
    counts = {name: rows.get(name, 0) for name in names}
    if (pending := total - sum(counts.values())) > 0:
        counts["pending"] = pending
    styles = {"scored": "kept"}
    parts = [
        Part(fraction=count / total, style=styles.get(name, name), title=f"{count:,} {name}", label=f"{count:,} {name}")
        for name, count in counts.items()
    ]
    body = charts.bar(parts)
    if data.dropped_by_reason:
        meaning = {
            "keep_if": f"did not pass {data.request.get('keep_if', '--keep-if')}",
            "undefined": "a value it needs is missing or null",
        }
        body += "<h3>Dropped, by reason</h3>" + table(
            ["reason", "meaning", ">rows", ">of all"],
            [
                [
                    escape(reason),
                    f"<code>{escape(meaning.get(reason, ''))}</code>",
                    f"{count:,}",
                    f"{count / total:.1%}",
                ]
                for reason, count in sorted(data.dropped_by_reason.items(), key=lambda item: -item[1])
            ],
        )
    if data.failed_by_code:
        shown = f", the first {len(data.failed_rows)} of {sum(data.failed_by_code.values()):,}"
        body += "<h3>Failed, by error</h3>" + table(
            ["error", ">rows"],
            [[f"<code>{escape(code)}</code>", f"{count:,}"] for code, count in data.failed_by_code.items()],
        )
        body += f"<details open><summary>Failed rows{shown}</summary>" + table(
            ["row_id", "error", "message"],
            [
                [f"<code>{escape(row.row_id)}</code>", f"<code>{escape(row.code)}</code>", escape(row.message)]
                for row in data.failed_rows
            ],
        ) + "</details>"  # fmt: skip
    elif not data.dropped_by_reason:
        body += '<p class="dim">Nothing was dropped and nothing failed.</p>'
    return section("Rows: kept, dropped, failed", body)


def _scores(data: ReportData) -> str:
    cards = []
    for path, found in data.scores.items():
        shape = found.get("histogram")
        if not shape:
            continue
        quantiles = found.get("quantiles") or {}
        median = quantiles.get("0.5")
        figures = [f"mean {charts.number(found['mean'])}"]
        if median is not None:
            figures.append(f"median {charts.number(median)}")
        if "0.05" in quantiles:
            figures.append(f"5 to 95 %: {charts.number(quantiles['0.05'])} to {charts.number(quantiles['0.95'])}")
        if found.get("undefined"):
            figures.append(f"{found['undefined']:,} undefined")
        plot = charts.histogram(shape["edges"], shape["counts"], mean=found["mean"], median=median)
        cards.append(f'<div><h3>{escape(path)}</h3><p class="dim">{"; ".join(figures)}</p>{plot}</div>')
    if not cards:
        return ""
    note = (
        '<p class="dim">All scored rows, before --keep-if. The solid line is the median, the dashed one the mean; the '
        "outermost bars hold what lies beyond the middle 98 %. Nats, natural logarithm.</p>"
    )
    return section("Score distributions", f'{note}<div class="scores">{"".join(cards)}</div>')


def _plan(data: ReportData) -> str:
    plan = data.plan
    if not plan:
        return ""
    body = ""
    if plan.get("expected_seconds") is not None:
        body += (
            f"<p>Expected: {duration_text(plan['expected_seconds'])} at {rate_text(plan.get('rows_per_second'))} rows/s"
            f"{_alternatives(plan)}.</p>"
        )
    if plan.get("why"):
        body += '<ul class="why">' + "".join(f"<li>{escape(str(line))}</li>" for line in plan["why"]) + "</ul>"
    if plan.get("nodes"):
        body += table(
            ["node", ">share", ">rows/s", "speed from", ">batch tokens", "memory"],
            [
                [
                    f"<b>{escape(node['name'])}</b>",
                    share_cell(node.get("share")),
                    rate_text(node.get("rows_per_second")),
                    escape(str(node.get("source_text") or node.get("source", ""))),
                    f"{node.get('batch_tokens') or 0:,}",
                    escape(str(node.get("memory", ""))),
                ]
                for node in plan["nodes"]
            ],
        )
    if plan.get("left_out"):
        body += "<h3>Left out</h3>" + table(
            ["node", "why"], [[escape(node["name"]), escape(node["reason"])] for node in plan["left_out"]]
        )
    return section("Plan", body) if body else ""


def _alternatives(plan: Mapping[str, Any]) -> str:
    others = []
    if plan.get("fastest_alone_seconds") is not None and plan.get("fastest_alone"):
        others.append(f"{escape(str(plan['fastest_alone']))} alone {duration_text(plan['fastest_alone_seconds'])}")
    if plan.get("equal_split_seconds") is not None:
        others.append(f"an equal split {duration_text(plan['equal_split_seconds'])}")
    return f" ({'; '.join(others)})" if others else ""


def _how(data: ReportData) -> str:
    body = f"<h3>Command</h3><pre>{escape(data.command)}</pre>" if data.command else ""
    if data.versions:
        body += "<h3>Versions</h3>" + settings(data.versions)
    if data.request:
        body += f"<details><summary>Every option, defaults filled in</summary>{settings(data.request)}</details>"
    if data.environment:
        title = f"Environment on {escape(data.host)} when this page was written"
        body += f"<details><summary>{title}</summary>{settings(data.environment)}</details>"
    made = f"{escape(str(data.folder))}. Page made {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC on {escape(data.host)}"
    body += f"<footer>{made}; made again by: realign runs report {escape(data.name)}</footer>"
    return section("How it was run", body)
