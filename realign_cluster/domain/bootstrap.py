"""The bootstrap over answers: for display beside a gate's bound, never to gate on (without an error it says [1, 1])."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_AT_ONCE: Final = 1_000_000  # indices drawn together: 8 MB


def bootstrap_interval(
    values: npt.ArrayLike,
    units: npt.ArrayLike | None = None,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2_000,
) -> tuple[float, float] | None:
    """Two-sided percentile interval (Efron 1979) of the mean of `values` (n,), or of their sum over that of `units`,
    with whole answers drawn again. None without units. Resamples without a unit are left out.
    """
    totals = np.asarray(values, dtype=np.float64)
    sizes = np.ones_like(totals) if units is None else np.asarray(units, dtype=np.float64)
    if not sizes.sum():
        return None
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, max(1, _AT_ONCE // totals.size)):
        rounds = min(resamples - start, max(1, _AT_ONCE // totals.size))
        drawn = generator.integers(0, totals.size, (rounds, totals.size))
        below = sizes[drawn].sum(axis=1)
        found.append(totals[drawn].sum(axis=1)[below > 0] / below[below > 0])
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), (tail, 1.0 - tail))
    return float(low), float(high)
