"""Whether another round of stage 6 pays: the flatness rule.

A round's change is a paired difference to the round before (`gate.paired_with`), turned so that more is better. Flat is
shown, not assumed: both bounds must lie within the margin, three rounds in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from realign_cluster.domain import betting
from realign_cluster.domain.gate import Direction, Measurement
from realign_cluster.domain.gates import order_of

FLAT_WITHIN: Final = 0.02
FLAT_ROUNDS: Final = 3
Trend = Literal["better", "flat", "worse", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Of one round, more is better. Bounds are one-sided; None without items."""

    value: float | None
    lower: float | None
    upper: float | None
    items: int

    def is_within(self, margin: float = FLAT_WITHIN) -> bool:
        return self.lower is not None and self.upper is not None and -margin <= self.lower and self.upper <= margin


def change_of(differences: Measurement, *, better: Direction = "at least", alpha: float = 0.05) -> Change:
    """Bounds on the mean of paired differences in [-1, 1], each at alpha. `better` "at most": less is better (a
    hallucination rate), so the sign is turned. Where rounds share their items, alpha is what `split_alpha` leaves
    each.
    """
    values = np.asarray(differences.values, dtype=np.float64)[order_of(differences.items)]
    if not values.size:
        return Change(value=None, lower=None, upper=None, items=0)
    turned = values if better == "at least" else -values
    scores = (turned + 1.0) / 2
    return Change(
        value=float(turned.mean()),
        lower=2.0 * betting.lower_bound(scores, alpha=alpha) - 1.0,
        upper=2.0 * betting.upper_bound(scores, alpha=alpha) - 1.0,
        items=values.size,
    )


def judge_trend(
    changes: Sequence[Change], *, margin: float = FLAT_WITHIN, rounds: int = FLAT_ROUNDS
) -> tuple[Trend, str]:
    """What the rounds so far, oldest first, say, and why. `flat`: the last `rounds` changes all lie within the margin.
    Else the last one decides: `better` or `worse` where its bound is beyond 0, else `undecided`. Three rounds that
    must all be within the margin need no correction for being three.
    """
    if not changes:
        return "undecided", "no round yet"
    recent = changes[-rounds:]
    if len(recent) == rounds and all(change.is_within(margin) for change in recent):
        return "flat", f"the last {rounds} changes are shown to be within {margin:g}"
    last = changes[-1]
    if last.value is None or last.lower is None or last.upper is None:
        return "undecided", "nothing was measured in the last round"
    shown = f"{last.value:+.4f}, bounds {last.lower:+.4f} and {last.upper:+.4f} on {last.items:,} items"
    if last.lower > 0:
        return "better", f"the last change is shown to be an improvement: {shown}"
    if last.upper < 0:
        return "worse", f"the last change is shown to be a loss: {shown}"
    if last.is_within(margin):
        within = next(
            (back for back, change in enumerate(reversed(changes)) if not change.is_within(margin)), len(changes)
        )
        return "undecided", f"{within} of {rounds} changes in a row within {margin:g}: {shown}"
    return "undecided", f"the last change is neither shown to be one nor to be within {margin:g}: {shown}"
