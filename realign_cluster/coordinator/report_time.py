"""The parts of the report that lie on the time axis: throughput, what each node did when, efficiency, what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from itertools import groupby

from realign_cluster.coordinator import charts
from realign_cluster.coordinator.charts import Marker, Part, Series, Span
from realign_cluster.coordinator.history import CommitPoint
from realign_cluster.coordinator.markup import legend, section, table, wall_clock
from realign_cluster.coordinator.report_data import ReportData
from realign_cluster.domain.efficiency import BUSY, LOAD, LOSSES, timeline

BINS = 120
INCIDENTS_SHOWN = 200
USE_TEXT = {
    BUSY: "computing what was committed",
    "tail": "tail: nothing left to hand out",
    "dispatch": "dispatch: waiting for the next unit",
    "duplicates": "duplicates: computed twice at the end",
    "recovery": "recovery: lost with a worker or node",
    "drift": "drift: waiting for a unit that took longer than its node's pace",
    LOAD: "loading the model and measuring",
}


def throughput_section(data: ReportData, colours: Mapping[str, str]) -> str:
    seconds = data.history.seconds
    if not data.history.commits or seconds <= 0:
        return ""
    bins = min(BINS, max(12, int(seconds * 4)))
    rows = _over_time(data, bins, lambda commit: commit.rows)
    work = _over_time(data, bins, lambda commit: commit.cost)
    named = [name for name in colours if name in rows]
    key = legend((colours[name], name) for name in named)
    markers = _markers(data)
    drawn = [
        charts.stacked_over_time(
            [Series(label=name, values=values[name], style=colours[name]) for name in named],
            seconds,
            unit=unit,
            markers=markers,
            height=height,
        )
        for values, unit, height in ((rows, "rows/s", 230.0), (work, "work/s", 170.0))
    ]
    dots = " Dots: see What happened, below." if markers else ""
    note = (
        '<p class="dim">Work is estimated tokens (attention included). Long rows go first, so rows/s rises towards the '
        f"end while work/s stays level.{dots}</p>"
    )
    return section("Throughput over time", f"{key}{''.join(drawn)}{note}")


def _over_time(data: ReportData, bins: int, amount: Callable[[CommitPoint], float]) -> dict[str, list[float]]:
    """Per node and equal interval, `amount` per second: spread over the time in which each unit was computed."""
    width = data.history.seconds / bins
    rates: dict[str, list[float]] = {}
    for commit in data.history.commits:
        rate = rates.setdefault(commit.node, [0.0] * bins)
        taken = max(commit.compute_seconds, 1e-6)
        begin = max(0.0, commit.at - taken)
        first, last = min(int(begin / width), bins - 1), min(int(commit.at / width), bins - 1)
        for at in range(first, last + 1):
            part = min(commit.at, (at + 1) * width) - max(begin, at * width)
            share = part / taken if last > first else 1.0
            rate[at] += amount(commit) * share / width
    return rates


def efficiency_section(data: ReportData) -> str:
    found = data.history.efficiency
    lanes = _lanes(data)
    if found.warm is None and not lanes:
        return ""
    if found.warm is None:
        text = f'<p class="dim">Efficiency was not measured: {escape(found.why_not)}.</p>'
    else:
        whole = [
            Part(fraction=found.warm, style=BUSY, title=f"useful {found.warm:.1%}", label=f"useful {found.warm:.1%}")
        ]
        for loss in LOSSES:
            share = found.losses[loss]
            whole.append(Part(fraction=share, style=loss, title=f"{loss} {share:.2%}", label=f"{loss} {share:.1%}"))
        lost = ", ".join(f"{loss} {found.losses[loss]:.2%}" for loss in LOSSES if found.losses[loss] >= 0.00005)
        text = (
            f"{charts.bar(whole)}<p>The nodes, each at the speed it showed, could have done this work in "
            f"{found.ideal_seconds:,.1f} s; scoring took {found.warm_seconds:,.1f} s: efficiency "
            f"<b>{found.warm:.2%}</b>. The rest: {lost or 'nothing that could be measured'}. "
            f"With the loading of the model {found.cold:.2%}.</p>"
        )
    used = [use for use in USE_TEXT if any(use in uses for uses in found.seconds_by_node.values())]
    key = legend((use, USE_TEXT[use]) for use in used)
    seconds = table(
        ["node", *(f">{use}" for use in used)],
        [
            [f"<b>{escape(name)}</b>", *(f"{uses.get(use, 0.0):,.1f} s" for use in used)]
            for name, uses in ((node.name, found.seconds_by_node.get(node.name, {})) for node in data.nodes)
        ],
    )
    return section(
        "Efficiency, and where the rest went", f"{text}<h3>What each node did, and when</h3>{lanes}{key}{seconds}"
    )


def _lanes(data: ReportData) -> str:
    spans: dict[str, list[Span]] = {node.name: [] for node in data.nodes}
    least = data.history.seconds / 1500  # closer than this and alike: one rectangle
    for sitting in data.history.sittings:
        shift = sitting.begin - sitting.monotonic
        for stretch in timeline(sitting.measured):
            begin, end = stretch.begin + shift, stretch.end + shift
            lane = spans.setdefault(stretch.node, [])
            if lane and lane[-1].style == stretch.use and begin - lane[-1].end < least:
                begin = lane.pop().begin
            elif end - begin < least and stretch.use != BUSY:
                continue
            title = f"{USE_TEXT[stretch.use]}, {charts.clock(begin)} to {charts.clock(end)}"
            lane.append(Span(begin=begin, end=end, style=stretch.use, title=title))
    return charts.lanes(
        [(name, lane) for name, lane in spans.items() if lane], data.history.seconds, markers=_markers(data)
    )


def incidents_section(data: ReportData) -> str:
    incidents = data.history.incidents
    if not incidents:
        return ""
    rows = []
    for incident in incidents[:INCIDENTS_SHOWN]:
        cells = [
            f'<td class="r nowrap">{charts.clock(incident.at)}</td>',
            f'<td class="nowrap">{wall_clock(incident.wall)}</td>',
        ]
        cells += [
            f"<td>{escape(incident.node)}</td>",
            f"<td>{escape(incident.kind)}</td>",
            f"<td>{escape(incident.text)}</td>",
        ]
        rows.append(f"<tr{' class=trouble-row' if incident.trouble else ''}>{''.join(cells)}</tr>")
    counted = [
        (kind, sum(1 for _ in group)) for kind, group in groupby(sorted(incident.kind for incident in incidents))
    ]
    said = ", ".join(f"{count:,} {kind}" for kind, count in counted)
    hidden = len(incidents) - len(rows)
    more = f'<p class="dim">{hidden:,} more are in events.jsonl.</p>' if hidden > 0 else ""
    head = '<tr><th class="r">after</th><th>at</th><th>node</th><th>kind</th><th>what happened</th></tr>'
    return section(
        "What happened",
        f'<p class="dim">{escape(said)}.</p><div class="scroll"><table>{head}{"".join(rows)}</table></div>{more}',
    )


def _markers(data: ReportData) -> list[Marker]:
    shown = [incident for incident in data.history.incidents if incident.trouble or incident.kind == "opened"]
    return [
        Marker(at=incident.at, label=" ".join([incident.node, incident.text]).strip(), trouble=incident.trouble)
        for incident in shown
    ]
