"""Curves over steps as inline SVG: lines and dots, marks where something happened, ticks where something was kept.

Knows numbers, labels and classes; nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from realign_cluster.coordinator.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH, nice_ticks, number, scale, svg

MOST_POINTS = 1200  # of a line: more than a screen has pixels
MARKS_SHOWN = 60
MANY_TIMES = 5.0
LETTER = 6.2  # of a mark's name, in its 11 px type
HEAD = 20.0  # above the curves, for the names of marks

Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """`points` are (step, value), ascending. `dots` draws each of them, otherwise they are joined; `hollow` dots are
    empty.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str
    dots: bool = False
    hollow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A step at which something happened. Of `names`, longest first, the first one stands there that there is room for;
    `label` is the whole story.
    """

    at: float
    names: tuple[str, ...]
    label: str
    trouble: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A tick at the foot: a state of this step; `large` for one that lasts."""

    at: float
    label: str
    large: bool = False


def curves(
    series: Sequence[Curve],
    *,
    unit: str,
    marks: Sequence[Mark] = (),
    kept: Sequence[Kept] = (),
    bound: tuple[float, str] | None = None,
    height: float = 240.0,
    logarithmic: bool = False,
    until: float = 0.0,
) -> str:
    """`bound` is a value that a dashed line is drawn at, with its name. `logarithmic` holds where all values are above
    0 and the largest is many times the least. With `until` the steps go from 0 to at least that one, so that several
    drawings have one axis. Nothing for series without a finite point.
    """
    finite = [(step, value) for curve in series for step, value in curve.points if math.isfinite(value)]
    if not finite:
        return ""
    first, last = min(step for step, _ in finite), max(step for step, _ in finite)
    first, last = (0.0, max(last, until)) if until or first <= 1 < last else (first, last)
    values = [value for _, value in finite] + ([bound[0]] if bound is not None else [])
    logarithmic = logarithmic and min(values) > 0 and max(values) > MANY_TIMES * min(values)
    low, high = _log_range(values) if logarithmic else value_range(values)
    top = TOP + (HEAD if marks else 0.0)
    x = scale(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT)
    y = _log_scale(low, high, height - BOTTOM, top) if logarithmic else scale(low, high, height - BOTTOM, top)
    ticks = _log_ticks(low, high) if logarithmic else value_ticks(low, high)
    parts = [*_grid(ticks, y, f"{unit}, logarithmic" if logarithmic else unit, top), *_axis(first, last, x, height)]
    if bound is not None:
        at = y(bound[0])
        parts.append(
            f'<line class="mean" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{LEFT + 4}" y="{at - 5:.1f}">{escape(bound[1])}</text>'
        )
    parts += _kept([each for each in kept if first <= each.at <= last], x, height)
    parts += _marks([mark for mark in marks[:MARKS_SHOWN] if first <= mark.at <= last], x, top, height)
    for curve in series:
        parts += _curve(curve, x, y)
    return svg(height, parts, f"{unit} over steps")


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over a twentieth of the points around each, 3 to 21 of them: at the beginning over fewer, as many on both
    sides, at the end over those that are there.
    """
    reach = min(max(1, len(points) // 40), 10)
    sums = [0.0, *accumulate(value for _, value in points)]
    found = []
    for at, (step, _) in enumerate(points):
        around = min(reach, at)
        first, last = at - around, min(len(points), at + around + 1)
        found.append((step, (sums[last] - sums[first]) / (last - first)))
    return found


def _grid(ticks: Sequence[float], y: Scale, unit: str, top: float) -> list[str]:
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in ticks
    ]
    return [*lines, f'<text class="tick" x="{LEFT + 4}" y="{top - 2}">{escape(unit)}</text>']


def _axis(first: float, last: float, x: Scale, height: float) -> list[str]:
    """Whole steps at round numbers."""
    floor = height - BOTTOM
    step = max(1.0, nice_ticks(max(last - first, 1.0), 8)[1])
    ticks = [step * at for at in range(math.ceil(first / step), math.floor(last / step) + 1)]
    return [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>',
        *(
            f'<text class="tick" x="{x(tick):.1f}" y="{floor + 18}" text-anchor="middle">{tick:,.0f}</text>'
            for tick in ticks
        ),
    ]


def _kept(kept: Sequence[Kept], x: Scale, height: float) -> list[str]:
    floor = height - BOTTOM
    shown = kept[:: max(1, len(kept) // MOST_POINTS)]
    return [
        f'<line class="{"checkpoint" if each.large else "snapshot"}" x1="{x(each.at):.1f}" x2="{x(each.at):.1f}"'
        f' y1="{floor}" y2="{floor + (7 if each.large else 4)}"><title>{escape(each.label)}</title></line>'
        for each in shown
    ]


def _marks(marks: Sequence[Mark], x: Scale, top: float, height: float) -> list[str]:
    parts = []
    ordered = sorted(marks, key=lambda mark: mark.at)
    ends = [*(x(mark.at) for mark in ordered[1:]), WIDTH]  # of the room for each name
    for mark, end in zip(ordered, ends, strict=False):
        at = x(mark.at)
        named = next((name for name in mark.names if at + 8 + LETTER * len(name) < end - LETTER), "")
        name = f'<text x="{at + 8:.1f}" y="{top - 17}">{escape(named)}</text>' if named else ""
        parts.append(
            f'<g class="marker {"trouble" if mark.trouble else "notice"}"><title>{escape(mark.label)}</title>'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top - 20}" y2="{height - BOTTOM}"/>'
            f'<circle cx="{at:.1f}" cy="{top - 20}" r="4"/>{name}</g>'
        )
    return parts


def _curve(curve: Curve, x: Scale, y: Scale) -> list[str]:
    shown = [(step, value) for step, value in curve.points if math.isfinite(value)]
    if curve.dots:
        style = f"{curve.style} ring" if curve.hollow else curve.style
        return [
            f'<circle class="{style}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="4">'
            f"<title>{escape(curve.label)} at step {step:,.0f}: {number(value)}</title></circle>"
            for step, value in shown
        ]
    if not shown:
        return []
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _thinned(shown))
    return [f'<polyline class="line {curve.style}" points="{path}"><title>{escape(curve.label)}</title></polyline>']


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    stride = max(1, len(points) // MOST_POINTS)
    return [*points[::stride], points[-1]] if stride > 1 else points


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """From 0 where the values come near it, else with a little room below."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.35 * high else low - room), high + room


def value_ticks(low: float, high: float) -> list[float]:
    """About four round values between."""
    step = nice_ticks(high - low, 4)[1]
    begin = math.ceil(low / step)
    return [step * at for at in range(begin, math.floor(high / step) + 1)]


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    """What is less than a thousandth of the largest lies at the foot."""
    return max(min(values), max(values) / 1e3) / 1.1, max(values) * 1.1


def _log_scale(low: float, high: float, start: float, stop: float) -> Scale:
    linear = scale(math.log(low), math.log(high), start, stop)
    return lambda value: linear(math.log(max(value, low)))


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; over more than two of them the powers only."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high < 100 * low else (1,)
    return [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]
