"""Bounds on the rate behind independent yes/no items: exact (Clopper-Pearson) to gate on, Wilson to show.

Arrays of counts are taken as well as single ones. Must not be used for items that cluster (claims of one answer):
there `betting` holds and these do not.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincinv, ndtri

Counts = npt.NDArray[np.int64]
MOST_ITEMS: Final = 100_000  # how far `items_for_power` looks
_EVERY_SIZE_UP_TO: Final = 1_000
_STEP: Final = 1.01  # between the sizes tried beyond


def clopper_pearson_lower(successes: npt.ArrayLike, items: npt.ArrayLike, alpha: float) -> Any:
    """One-sided lower 1 - alpha bound: the rate at which so many successes or more have probability alpha
    (Clopper and Pearson 1934: the alpha quantile of Beta(k, n - k + 1)). 0 without a success, or without items.
    A float for two integers, else an array of their broadcast shape. Raises ValueError for more successes than items.
    """
    found, tried = _counts(successes, items)
    if np.any(found > tried):
        raise ValueError("more successes than items")
    some = found > 0
    bound = betaincinv(np.where(some, found, 1), np.where(some, tried - found + 1, 1), alpha)
    return _plain(np.where(some, bound, 0.0))


def clopper_pearson_upper(successes: npt.ArrayLike, items: npt.ArrayLike, alpha: float) -> Any:
    """One-sided upper 1 - alpha bound; 1 without a failure, or without items."""
    found, tried = _counts(successes, items)
    return _plain(1.0 - np.asarray(clopper_pearson_lower(tried - found, tried, alpha)))


def clopper_pearson(successes: int, items: int, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided interval: each side at half of 1 - confidence."""
    alpha = (1.0 - confidence) / 2
    return clopper_pearson_lower(successes, items, alpha), clopper_pearson_upper(successes, items, alpha)


def wilson(successes: npt.ArrayLike, items: npt.ArrayLike, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson's two-sided score interval (1927), for display only: as a gate it passes what it should not more often
    than it says. Raises ValueError without items.
    """
    found, tried = _counts(successes, items)
    if np.any(tried == 0):
        raise ValueError("Wilson's interval needs at least one item")
    z = float(ndtri((1.0 + confidence) / 2))
    rate = found / tried
    middle = (rate + z * z / (2.0 * tried)) / (1.0 + z * z / tried)
    half = z / (1.0 + z * z / tried) * np.sqrt(rate * (1.0 - rate) / tried + z * z / (4.0 * tried * tried))
    return _plain(np.clip(middle - half, 0.0, 1.0)), _plain(np.clip(middle + half, 0.0, 1.0))


def at_least(successes: npt.ArrayLike, items: npt.ArrayLike, rate: float) -> Any:
    """Probability of so many successes or more."""
    found, tried = _counts(successes, items)
    some = found > 0
    inside = some & (found <= tried)
    tail = betainc(np.where(inside, found, 1), np.where(inside, tried - found + 1, 1), rate)
    return _plain(np.where(inside, tail, np.where(some, 0.0, 1.0)))


def passing_successes(items: npt.ArrayLike, threshold: float, alpha: float) -> Any:
    """The fewest successes whose lower bound reaches `threshold`; items + 1 where not even all of them do."""
    (tried,) = _counts(items)
    low, high = np.full(tried.shape, -1), tried + 1  # low does not pass, high does, or is one too many
    while np.any(high - low > 1):
        middle = (low + high) // 2
        passes = np.asarray(at_least(middle, tried, threshold)) <= alpha
        low, high = np.where(passes, low, middle), np.where(passes, middle, high)
    return _plain(high)


def items_without_error(threshold: float, alpha: float) -> int:
    """The smallest number of items that can show "at least `threshold`", all of them right: threshold^n <= alpha.
    "At most t" is "at least 1 - t" of the rest.
    """
    if threshold <= 0.0:
        return 1
    items = max(1, int(np.ceil(np.log(alpha) / np.log(threshold))))
    while threshold**items > alpha:
        items += 1
    while items > 1 and threshold ** (items - 1) <= alpha:
        items -= 1
    return items


def passing_power(items: npt.ArrayLike, rate: float, threshold: float, alpha: float) -> Any:
    """Probability that so many items at a true `rate` show "at least `threshold`"."""
    return at_least(passing_successes(items, threshold, alpha), items, rate)


def items_for_power(rate: float, threshold: float, alpha: float, power: float = 0.8) -> int | None:
    """The smallest number of items that shows "at least `threshold`" with this power at a true `rate`: exact to a
    thousand, then to one per cent. None if 100,000 do not.
    """
    if rate <= threshold:
        return None
    beyond = int(np.log(MOST_ITEMS / _EVERY_SIZE_UP_TO) / np.log(_STEP)) + 1
    coarse = np.unique(np.round(_EVERY_SIZE_UP_TO * _STEP ** np.arange(1, beyond + 1)).astype(np.int64))
    for sizes in (np.arange(1, _EVERY_SIZE_UP_TO + 1), np.minimum(coarse, MOST_ITEMS)):
        enough = np.flatnonzero(passing_power(sizes, rate, threshold, alpha) >= power)
        if enough.size:
            return int(sizes[enough[0]])
    return None


def rate_for_power(items: int, threshold: float, alpha: float, power: float = 0.8) -> float | None:
    """The true rate at which so many items show "at least `threshold`" with this power. None if no rate does."""
    needed = passing_successes(items, threshold, alpha)
    if needed > items:
        return None
    return float(betaincinv(needed, items - needed + 1, power)) if needed else 0.0


def _counts(*given: npt.ArrayLike) -> tuple[Counts, ...]:
    counts = tuple(np.asarray(value, dtype=np.int64) for value in given)
    if any(np.any(count < 0) for count in counts):
        raise ValueError("counts below zero")
    return tuple(np.broadcast_arrays(*counts))


def _plain(values: npt.NDArray[Any]) -> Any:
    return values if values.ndim else values.item()
