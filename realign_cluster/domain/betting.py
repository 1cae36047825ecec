"""Bounds on a mean of bounded scores, whatever their distribution: the betting bound.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024): a gambler starts with
1 and bets on each score in turn that the mean is above m. Where the mean is m or less his capital

    K_t(m) = product over i <= t of (1 + stake_i (x_i - m)),     0 <= stake_i < 1 / m,

is a nonnegative supermartingale, so it reaches 1 / alpha with probability at most alpha (Ville). The lower bound is
the largest m at which it did. Stakes are their predictable plug-in,

    stake_t = sqrt(2 log(1 / alpha) / (variance_{t-1} n)),     for looks at any time t log(1 + t) in place of n,

truncated at `LARGEST_STAKE` / m. With that truncation K_t falls in m, so the bound is found by halving.

A lucky streak that was lost again counts in that maximum. Looks at any time keep it: what was shown stays shown. For
one look the lower bound is moreover never above the mean of all scores, so that no gate passes against its own
estimate.

The same bound serves a pooled ratio sum(s) / sum(n): the ratio is above t exactly where the mean of s - t n is above 0,
and s - t n takes the place of x - m. A plain mean is the ratio with every n = 1.

The order of the scores matters (not to validity, but to the figure), and must not depend on their values: callers put
them in an order made of the items' names (`gates`) or, for looks at any time, in that of arrival. Means over several
orders would not depend on one, and lose too much: `benchmarks/gate_errors.py --parts orders`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
Looks = Literal["once", "any time"]
"""`once`: how many scores there are was fixed beforehand. `any time`: a confidence sequence, good at every number."""

LARGEST_STAKE: Final = 0.9  # of what would lose everything: the paper has 1/2 or 3/4; scores of 0 are rare here
_HALVINGS: Final = 45


def lower_bound(
    scores: npt.ArrayLike, sizes: npt.ArrayLike | None = None, *, alpha: float, looks: Looks = "once"
) -> Any:
    """One-sided lower 1 - alpha bound on the mean of `scores` (..., n) in [0, 1], or on the ratio of their sum to that
    of `sizes`, with 0 <= score <= size <= 1. A float for one row of scores, else an array (...). 0 without scores.
    Raises ValueError for scores or sizes outside their range.
    """
    amounts, units = _checked(scores, sizes)
    stakes = _stakes(amounts, units, alpha, looks)
    low = np.zeros(amounts.shape[:-1])
    high = np.ones(amounts.shape[:-1])
    if amounts.shape[-1]:
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            beaten = _log_capital(amounts, units, stakes, middle) >= -np.log(alpha)
            low, high = np.where(beaten, middle, low), np.where(beaten, high, middle)
    if looks == "once":
        low = np.minimum(low, _ratio(amounts, units))
    return low if low.ndim else low.item()


def upper_bound(
    scores: npt.ArrayLike, sizes: npt.ArrayLike | None = None, *, alpha: float, looks: Looks = "once"
) -> Any:
    """The same for an upper bound: the lower bound of what is missing to 1 (of each size)."""
    amounts, units = _checked(scores, sizes)
    return 1.0 - lower_bound(units - amounts, units, alpha=alpha, looks=looks)


def exceeds(
    scores: npt.ArrayLike, mean: float, sizes: npt.ArrayLike | None = None, *, alpha: float, looks: Looks = "once"
) -> npt.NDArray[np.bool_]:
    """Whether the lower bound of each row (..., n) is `mean` or more, without the search for the bound."""
    amounts, units = _checked(scores, sizes)
    if not amounts.shape[-1]:
        return np.zeros(amounts.shape[:-1], dtype=np.bool_)
    stakes = _stakes(amounts, units, alpha, looks)
    shown = _log_capital(amounts, units, stakes, np.full(amounts.shape[:-1], mean)) >= -np.log(alpha)
    return np.asarray(shown & (_ratio(amounts, units) >= mean) if looks == "once" else shown)


def p_value(scores: npt.ArrayLike, mean: float, sizes: npt.ArrayLike | None = None, *, alpha: float = 0.05) -> float:
    """Of "the mean is `mean` or less" for one row: 1 / the largest capital (Ville). Valid whatever `alpha` is, which
    only says for which level the stakes are made. 1 without scores.
    """
    amounts, units = _checked(scores, sizes)
    if not amounts.shape[-1] or _ratio(amounts, units) < mean:
        return 1.0
    stakes = _stakes(amounts, units, alpha, "once")
    return float(np.exp(-np.maximum(_log_capital(amounts, units, stakes, np.array(mean)), 0.0)))


def _stakes(amounts: Scores, units: Scores, alpha: float, looks: Looks) -> Scores:
    """Before truncation, (..., n): stake t from the scores before t only. The variance is that around the running
    ratio, both begun by one imagined item at 1/2; for ratios that item is as large as those seen (root mean square).
    """
    count = np.arange(1, amounts.shape[-1] + 1)
    ratio = (0.5 + np.cumsum(amounts, axis=-1)) / (1.0 + np.cumsum(units, axis=-1))
    begun = np.cumsum(units**2, axis=-1) / count / 4
    variance = (begun + np.cumsum((amounts - ratio * units) ** 2, axis=-1)) / (count + 1)
    before = np.concatenate([np.full((*amounts.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)
    scale = count[-1:] if looks == "once" else count * np.log1p(count)
    tiny = np.finfo(np.float64).tiny  # items of no size have no variance, and what is staked on them does not matter
    return np.asarray(np.sqrt(-2.0 * np.log(alpha) / (np.maximum(before, tiny) * scale)))


def _ratio(amounts: Scores, units: Scores) -> Scores:
    """Of the sums, (...); 0 without units."""
    totals = units.sum(axis=-1)
    return np.asarray(np.divide(amounts.sum(axis=-1), totals, out=np.zeros_like(totals), where=totals > 0))


def _log_capital(amounts: Scores, units: Scores, stakes: Scores, mean: Scores) -> Scores:
    """The largest log K_t over t, (...), for one mean of each row (...)."""
    at = mean[..., None]
    with np.errstate(divide="ignore"):
        kept = np.minimum(stakes, LARGEST_STAKE / at)
    return np.asarray(np.cumsum(np.log1p(kept * (amounts - at * units)), axis=-1).max(axis=-1))


def _checked(scores: npt.ArrayLike, sizes: npt.ArrayLike | None) -> tuple[Scores, Scores]:
    amounts = np.asarray(scores, dtype=np.float64)
    units = np.ones_like(amounts) if sizes is None else np.broadcast_to(np.asarray(sizes, np.float64), amounts.shape)
    fine = (amounts >= 0.0) & (amounts <= units) & (units <= 1.0)  # False for NaN
    if not fine.all():
        raise ValueError("scores must be in [0, 1], with sizes 0 <= score <= size <= 1")
    return amounts, units
