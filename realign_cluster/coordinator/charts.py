"""The report's drawings as inline SVG: no scripts, no fonts, no other files. Colours are classes of the style sheet.

Knows numbers, labels and classes; nothing of runs and nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 960.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 12.0, 14.0, 30.0
NODE_COLOURS = 8
MARKERS_SHOWN = 40
LABEL_LETTERS = 33  # of a node's name beside its bar
LETTER_WIDTH = 7.5  # of the bold 13 px that names are set in


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    label: str
    values: Sequence[float]
    style: str  # class of the fill


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """A moment on the time axis."""

    at: float
    label: str
    trouble: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time in a lane."""

    begin: float
    end: float
    style: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a bar, as a fraction of 1."""

    fraction: float
    style: str
    title: str
    label: str = ""


def node_style(index: int) -> str:
    return f"n{index % NODE_COLOURS}"


def stacked_over_time(
    series: Sequence[Series], seconds: float, *, unit: str, markers: Sequence[Marker] = (), height: float = 260.0
) -> str:
    """Areas on top of one another; every series has one value per equal interval of [0, seconds]."""
    bins = max((len(one.values) for one in series), default=0)
    if not bins or seconds <= 0:
        return ""
    totals = [sum(one.values[at] for one in series) for at in range(bins)]
    top = max(totals, default=0.0) or 1.0
    ticks = nice_ticks(top, 4)
    top = max(top, ticks[-1])
    x, y = scale(0, seconds, LEFT, WIDTH - RIGHT), scale(0, top, height - BOTTOM, TOP)
    parts = [_y_grid(ticks, y, unit), _x_axis(seconds, x, height)]
    floor = [0.0] * bins
    for one in series:
        ceiling = [below + value for below, value in zip(floor, one.values, strict=True)]
        parts.append(_area(floor, ceiling, seconds / bins, x, y, one))
        floor = ceiling
    parts += [_marker(marker, x, height) for marker in markers[:MARKERS_SHOWN]]
    return svg(height, parts, f"{unit} over time")


def lanes(rows: Sequence[tuple[str, Sequence[Span]]], seconds: float, *, markers: Sequence[Marker] = ()) -> str:
    """One lane per row label, spans in it where they took place."""
    if not rows or seconds <= 0:
        return ""
    gutter, lane = _gutter([label for label, _ in rows]), 26.0
    height = TOP + lane * len(rows) + BOTTOM
    x = scale(0, seconds, gutter, WIDTH - RIGHT)
    parts = [_x_axis(seconds, x, height, gutter)]
    for index, (label, spans) in enumerate(rows):
        y = TOP + lane * index
        parts.append(_name(label, gutter - 8, y + 16))
        parts.append(
            f'<rect class="lane" x="{gutter}" y="{y + 3:.1f}" width="{WIDTH - RIGHT - gutter:.1f}" height="18"/>'
        )
        for span in spans:
            left = x(span.begin)
            width = max(x(span.end) - left, 0.4)
            parts.append(
                f'<rect class="{span.style}" x="{left:.1f}" y="{y + 3:.1f}" width="{width:.1f}" height="18">'
                f"<title>{escape(span.title)}</title></rect>"
            )
    parts += [_marker(marker, x, height) for marker in markers[:MARKERS_SHOWN]]
    return svg(height, parts, "what each node did")


def bar(parts: Sequence[Part], *, height: float = 34.0) -> str:
    """One bar of width 1 cut into parts."""
    drawn, left = [], 0.0
    for part in parts:
        width = part.fraction * WIDTH
        if width <= 0:
            continue
        drawn.append(
            f'<rect class="{part.style}" x="{left:.1f}" y="0" width="{max(width, 1):.1f}" height="{height}">'
            f"<title>{escape(part.title)}</title></rect>"
        )
        if part.label and width > 9 * len(part.label):
            x, y = left + width / 2, height / 2 + 5
            drawn.append(f'<text class="on" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(part.label)}</text>')
        left += width
    return svg(height, drawn, "parts of a whole")


def paired_bars(rows: Sequence[tuple[str, float | None, float, str]]) -> str:
    """For each (label, expected, actual, style) two thin bars on one scale from 0: expected is hollow."""
    if not rows:
        return ""
    gutter, lane = _gutter([label for label, *_ in rows]), 38.0
    top = max(max(expected or 0.0, actual) for _, expected, actual, _ in rows) or 1.0
    x = scale(0, top * 1.12, gutter, WIDTH - RIGHT)
    parts = []
    for index, (label, expected, actual, style) in enumerate(rows):
        y = lane * index + 4
        parts.append(_name(label, gutter - 8, y + 18))
        parts.append(f'<rect class="{style}" x="{gutter}" y="{y}" width="{x(actual) - gutter:.1f}" height="14"/>')
        parts.append(f'<text class="value" x="{x(actual) + 6:.1f}" y="{y + 11:.1f}">{actual:.1%}</text>')
        if expected is not None:
            width = x(expected) - gutter
            parts.append(f'<rect class="hollow {style}" x="{gutter}" y="{y + 16}" width="{width:.1f}" height="10"/>')
            parts.append(
                f'<text class="value dim" x="{x(expected) + 6:.1f}" y="{y + 25:.1f}">{expected:.1%} expected</text>'
            )
    return svg(lane * len(rows) + 4, parts, "share against calibration")


def histogram(edges: Sequence[float], counts: Sequence[int], *, mean: float | None, median: float | None) -> str:
    """Counts between edges, with the median and the mean marked."""
    if not counts or not any(counts):
        return ""
    width, height, bottom = 300.0, 120.0, 20.0
    x = scale(edges[0], edges[-1], 4, width - 4)
    y = scale(0, max(counts), height - bottom, 6)
    parts = []
    for index, count in enumerate(counts):
        left, right = x(edges[index]), x(edges[index + 1])
        title = f"{number(edges[index])} to {number(edges[index + 1])}: {count:,} rows"
        parts.append(
            f'<rect class="bars" x="{left:.1f}" y="{y(count):.1f}" width="{max(right - left - 0.6, 0.6):.1f}"'
            f' height="{height - bottom - y(count):.1f}"><title>{escape(title)}</title></rect>'
        )
    for value, style, name in ((median, "median", "median"), (mean, "mean", "mean")):
        if value is not None and edges[0] <= value <= edges[-1]:
            parts.append(
                f'<line class="{style}" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="2" y2="{height - bottom}">'
                f"<title>{name} {number(value)}</title></line>"
            )
    parts.append(f'<line class="axis" x1="4" x2="{width - 4}" y1="{height - bottom}" y2="{height - bottom}"/>')
    parts.append(f'<text class="tick" x="4" y="{height - 5}">{escape(number(edges[0]))}</text>')
    parts.append(
        f'<text class="tick" x="{width - 4}" y="{height - 5}" text-anchor="end">{escape(number(edges[-1]))}</text>'
    )
    return svg(height, parts, "distribution", width=width)


def number(value: float) -> str:
    """Four significant digits, thousands separated."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def clock(seconds: float) -> str:
    """`45 s`, `2:05`, `1:02:05`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s" if seconds < 10 and seconds != whole else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def nice_ticks(top: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to at least `top`."""
    raw = top / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    return [step * index for index in range(math.ceil(top / step - 1e-9) + 1)]


def time_ticks(seconds: float) -> list[float]:
    """About eight round times from 0 to `seconds`."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
    step = next((step for step in steps if seconds / step <= 9), seconds / 8)
    return [step * index for index in range(int(seconds / step + 1e-9) + 1)]


def scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    factor = (stop - start) / ((high - low) or 1.0)
    return lambda value: start + (value - low) * factor


def _area(
    floor: Sequence[float],
    ceiling: Sequence[float],
    step: float,
    x: Callable[[float], float],
    y: Callable[[float], float],
    series: Series,
) -> str:
    """Through the middle of each interval, flat at both ends."""
    at = [0.0, *((index + 0.5) * step for index in range(len(floor))), len(floor) * step]
    above = [ceiling[0], *ceiling, ceiling[-1]]
    below = [floor[0], *floor, floor[-1]]
    points = [f"{x(t):.1f},{y(v):.1f}" for t, v in zip(at, above, strict=True)]
    points += [f"{x(t):.1f},{y(v):.1f}" for t, v in zip(reversed(at), reversed(below), strict=True)]
    return (
        f'<polygon class="{series.style}" points="{" ".join(points)}"><title>{escape(series.label)}</title></polygon>'
    )


def _gutter(labels: Sequence[str]) -> float:
    """Room at the left for the longest of these labels, within reason."""
    longest = max(map(len, labels), default=0)
    return max(110.0, min(longest, LABEL_LETTERS) * LETTER_WIDTH + 16)


def _name(label: str, right: float, y: float) -> str:
    """A label that ends at `right`. A long one loses its middle: names of one site differ at the end."""
    half = (LABEL_LETTERS - 1) // 2
    shown = label if len(label) <= LABEL_LETTERS else f"{label[:half]}…{label[-half:]}"
    return (
        f'<text class="name" x="{right:.0f}" y="{y:.1f}" text-anchor="end">'
        f"<title>{escape(label)}</title>{escape(shown)}</text>"
    )


def _y_grid(ticks: Sequence[float], y: Callable[[float], float], unit: str) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks
    )
    return lines + f'<text class="tick" x="{LEFT + 4}" y="{y(ticks[-1]) + 12:.1f}">{escape(unit)}</text>'


def _x_axis(seconds: float, x: Callable[[float], float], height: float, left: float = LEFT) -> str:
    y = height - BOTTOM
    return f'<line class="axis" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>' + "".join(
        f'<text class="tick" x="{x(tick):.1f}" y="{y + 16:.1f}" text-anchor="middle">{clock(tick)}</text>'
        for tick in time_ticks(seconds)
        if x(tick) < WIDTH - RIGHT - 8
    )


def _marker(marker: Marker, x: Callable[[float], float], height: float) -> str:
    at = x(marker.at)
    style = "trouble" if marker.trouble else "notice"
    return (
        f'<g class="marker {style}"><title>{escape(marker.label)}</title>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 6}" y2="{height - BOTTOM}"/>'
        f'<circle cx="{at:.1f}" cy="{TOP - 6}" r="4"/></g>'
    )


def svg(height: float, parts: Sequence[str], label: str, *, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}"'
        f' preserveAspectRatio="xMinYMin meet">{"".join(parts)}</svg>'
    )
