"""Curves over steps as inline SVG: a line or points per series, and marks at steps where something happened.

Knows numbers, labels and classes; nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from realign_cluster.coordinator.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Marker, nice_ticks, number, scale, svg

MOST_POINTS = 1200  # of a line: more than a screen has pixels
MARKS_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """`points` are (step, value), ascending; `dots` draws each of them, otherwise they are joined."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str
    dots: bool = False


def curves(
    series: Sequence[Curve],
    *,
    unit: str,
    marks: Sequence[Marker] = (),
    bound: tuple[float, str] | None = None,
    height: float = 240.0,
) -> str:
    """`bound` is a value that a dashed line is drawn at, with its name. Nothing for series without a finite point."""
    finite = [(step, value) for curve in series for step, value in curve.points if math.isfinite(value)]
    if not finite:
        return ""
    first, last = min(step for step, _ in finite), max(step for step, _ in finite)
    values = [value for _, value in finite] + ([bound[0]] if bound is not None else [])
    low, high = _range(values)
    x = scale(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT)
    y = scale(low, high, height - BOTTOM, TOP)
    parts = []
    for tick in _ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    parts.append(f'<text class="tick" x="{LEFT + 4}" y="{TOP - 2}">{escape(unit)}</text>')
    floor = height - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    for tick in (tick + first for tick in nice_ticks(max(last - first, 1.0), 8)):
        if tick <= last:
            parts.append(
                f'<text class="tick" x="{x(tick):.1f}" y="{floor + 16}" text-anchor="middle">{tick:,.0f}</text>'
            )
    if bound is not None:
        at, right = y(bound[0]), WIDTH - RIGHT
        parts.append(
            f'<line class="mean" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{right}" y="{at - 5:.1f}" text-anchor="end">{escape(bound[1])}</text>'
        )
    for mark in marks[:MARKS_SHOWN]:
        at = x(min(max(mark.at, first), last))
        parts.append(
            f'<g class="marker {"trouble" if mark.trouble else "notice"}"><title>{escape(mark.label)}</title>'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{floor}"/><circle cx="{at:.1f}" cy="{TOP}" r="4"/></g>'
        )
    for curve in series:
        shown = [(step, value) for step, value in curve.points if math.isfinite(value)]
        if curve.dots:
            parts += [
                f'<circle class="{curve.style}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="4">'
                f"<title>{escape(curve.label)} at step {step:,.0f}: {number(value)}</title></circle>"
                for step, value in shown
            ]
        elif shown:
            path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _thinned(shown))
            parts.append(
                f'<polyline class="line {curve.style}" points="{path}"><title>{escape(curve.label)}</title></polyline>'
            )
    return svg(height, parts, f"{unit} over steps")


def smoothed(points: Sequence[tuple[float, float]], weight: float = 0.9) -> list[tuple[float, float]]:
    """Exponentially weighted mean, without the bias of its beginning."""
    found, sum_, count = [], 0.0, 0.0
    for step, value in points:
        sum_, count = weight * sum_ + value, weight * count + 1
        found.append((step, sum_ / count))
    return found


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    stride = max(1, len(points) // MOST_POINTS)
    return [*points[::stride], points[-1]] if stride > 1 else points


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From 0 where the values come near it, else with a little room below."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.35 * high else low - room), high + room


def _ticks(low: float, high: float) -> list[float]:
    step = nice_ticks(high - low, 4)[1]
    begin = math.ceil(low / step)
    return [step * at for at in range(begin, math.floor(high / step) + 1)]
