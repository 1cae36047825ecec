"""Whether probabilities mean what they say: expected calibration error and Brier score against yes/no outcomes.

The calibration error depends on its bins, so they are named: 15 of equal mass, items of equal probability kept
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from realign_cluster.metrics.measured import ItemId, MeanOverItems, mean_over_items

BINS: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Items of similar probability: how many, their mean probability, and the fraction that came true."""

    items: int
    probability: float
    frequency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`error` is None without items. `bins` in ascending probability, at most as many as asked for, none empty."""

    error: float | None
    bins: tuple[Bin, ...]


def calibration_error(probabilities: Sequence[float], came_true: Sequence[bool], bins: int = BINS) -> Calibration:
    """Sum over bins of items / n x |mean probability - frequency|.

    An item goes to the bin of its mid-rank, so equal probabilities share a bin and the order of items means nothing.
    """
    values, outcomes = _checked(probabilities, came_true)
    if not len(values):
        return Calibration(error=None, bins=())
    order = np.argsort(values, kind="stable")
    values, outcomes = values[order], outcomes[order]
    first = np.searchsorted(values, values, side="left")
    last = np.searchsorted(values, values, side="right")
    places = (first + last) * bins // (2 * len(values))  # mid-rank, from 0 to n, as a bin
    found = tuple(
        Bin(
            items=int((places == place).sum()),
            probability=float(values[places == place].mean()),
            frequency=float(outcomes[places == place].mean()),
        )
        for place in np.unique(places)
    )
    error = sum(one.items * abs(one.probability - one.frequency) for one in found) / len(values)
    return Calibration(error=error, bins=found)


def brier_score(items: Sequence[tuple[ItemId, float, bool]]) -> MeanOverItems:
    """Mean of (probability - outcome) squared, from 0 to 1: the lower the better. 0.25 for whoever always says 0.5."""
    values, outcomes = _checked([value for _, value, _ in items], [outcome for _, _, outcome in items])
    squares = (values - outcomes) ** 2
    return mean_over_items(
        "Brier score", "squared difference, mean over items",
        ((item, float(square)) for (item, _, _), square in zip(items, squares, strict=True)),
    )  # fmt: skip


def _checked(
    probabilities: Sequence[float], came_true: Sequence[bool]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    values, outcomes = np.asarray(probabilities, dtype=np.float64), np.asarray(came_true, dtype=np.float64)
    if len(values) != len(outcomes):
        raise ValueError(f"{len(values)} probabilities for {len(outcomes)} outcomes")
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("a probability is not between 0 and 1")
    return values, outcomes
