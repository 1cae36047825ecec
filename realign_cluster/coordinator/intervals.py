"""Estimates with their bounds at named places, one after the other, as inline SVG: what a gate saw, and its threshold.

Knows numbers, labels and classes; nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from realign_cluster.coordinator.charts import BOTTOM, number, scale, svg
from realign_cluster.coordinator.curves import value_range, value_ticks

WIDTH, LEFT, RIGHT, TOP, HEIGHT = 470.0, 50.0, 8.0, 12.0, 168.0
FAR = 8.0  # a threshold further away than this many times the spread of the values is said, not drawn
MOST_SLOT = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """At the place `slot`, from 0. `low` and `high` are one-sided bounds; without them it was not judged, and the dot
    is hollow. `href` is where a click on it leads within the page.
    """

    slot: int
    value: float
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    style: str = "n0"
    title: str = ""
    href: str = ""


def intervals(slots: Sequence[str], estimates: Sequence[Estimate], *, label: str) -> str:
    """Nothing without a finite value."""
    shown = [each for each in estimates if math.isfinite(each.value)]
    if not shown:
        return ""
    seen = [value for each in shown for value in (each.value, each.low, each.high) if value is not None]
    room = FAR * ((max(seen) - min(seen)) or abs(seen[0]) or 1.0)
    near = {each.threshold for each in shown if each.threshold is not None}
    far = {value for value in near if not min(seen) - room <= value <= max(seen) + room}
    low, high = value_range([*seen, *(near - far)])
    low = max(low, 0.0) if min(seen) >= 0 else low
    slot = min(MOST_SLOT, (WIDTH - LEFT - RIGHT) / max(1, len(slots)))
    floor = HEIGHT - BOTTOM
    y = scale(low, high, floor, TOP)
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        for tick in value_ticks(low, high)
    ]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts += [
        f'<text class="tick" x="{LEFT + slot * (at + 0.5):.1f}" y="{floor + 16}" text-anchor="middle">'
        f"{escape(name)}</text>"
        for at, name in enumerate(slots)
    ]
    if far:
        said = ", ".join(number(value) for value in sorted(far))
        parts.append(f'<text class="tick" x="{LEFT + 4}" y="{TOP}">threshold {said}: off the scale</text>')
    for each in shown:
        parts += _estimate(each, slot, y, drawn_threshold=each.threshold not in far)
    return svg(HEIGHT, parts, label, width=WIDTH)


def _estimate(each: Estimate, slot: float, y: Callable[[float], float], *, drawn_threshold: bool) -> list[str]:
    x = LEFT + slot * (each.slot + 0.5)
    parts = []
    if each.threshold is not None and drawn_threshold:
        at = y(each.threshold)
        parts.append(
            f'<line class="mean" x1="{x - slot * 0.5:.1f}" x2="{x + slot * 0.5:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
    judged = each.low is not None and each.high is not None
    if each.low is not None and each.high is not None:
        top, foot = y(each.high), y(each.low)
        parts.append(
            f'<g class="whisker {each.style}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{foot:.1f}"/>'
            f'<line x1="{x - 5:.1f}" x2="{x + 5:.1f}" y1="{top:.1f}" y2="{top:.1f}"/>'
            f'<line x1="{x - 5:.1f}" x2="{x + 5:.1f}" y1="{foot:.1f}" y2="{foot:.1f}"/></g>'
        )
    dot = (
        f'<circle class="{each.style}{"" if judged else " open"}" cx="{x:.1f}" cy="{y(each.value):.1f}" r="4.5">'
        f"<title>{escape(each.title)}</title></circle>"
    )
    parts.append(f'<a href="{escape(each.href)}">{dot}</a>' if each.href else dot)
    return parts
