"""Counts of what became of the rows, and how each numeric score is distributed, in bounded memory.

Works on numbers it is given, window by window. Must not know where they come from or where they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

EXACT_VALUES: Final = (
    65536  # up to here quantiles are exact; beyond, equal-weight groups of sorted values stand for them
)
GROUPS: Final = 4096
HISTOGRAM_BINS: Final = 40

Values = npt.NDArray[np.float64]


class Distribution:
    """One score field over all rows: count, mean, extremes, and quantiles within 1 / GROUPS of rank beyond
    EXACT_VALUES.
    """

    __slots__ = ("_chunks", "_held", "_total", "_weights", "count", "maximum", "minimum", "undefined")

    def __init__(self) -> None:
        self.count = 0
        self.undefined = 0  # null: not in count
        self.minimum = float("inf")
        self.maximum = float("-inf")
        self._total = 0.0
        self._chunks: list[Values] = []
        self._weights: list[Values] = []
        self._held = 0

    def add(self, values: Values, undefined: int = 0) -> None:
        """Adds `values`, shape (n,), finite."""
        self.undefined += undefined
        if not len(values):
            return
        self.count += len(values)
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        self._total += float(values.sum())
        self._chunks.append(values)
        self._weights.append(np.ones(len(values)))
        self._held += len(values)
        if self._held > EXACT_VALUES:
            self._compress()

    def _merged(self) -> tuple[Values, Values]:
        if not self._chunks:
            return np.empty(0), np.empty(0)
        values, weights = np.concatenate(self._chunks), np.concatenate(self._weights)
        order = np.argsort(values, kind="stable")
        return values[order], weights[order]

    def _compress(self) -> None:
        values, weights = self._merged()
        until = np.cumsum(weights)
        group = np.minimum((until - weights / 2) * GROUPS / until[-1], GROUPS - 1).astype(np.int64)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        merged = np.add.reduceat(weights, starts)
        self._chunks = [np.add.reduceat(values * weights, starts) / merged]
        self._weights = [merged]
        self._held = len(merged)

    @property
    def mean(self) -> float | None:
        return self._total / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """The value below which a fraction `q` of the rows lies (nearest rank), or None without rows."""
        values, weights = self._merged()
        if not len(values):
            return None
        if q <= 0 or q >= 1:
            return self.minimum if q <= 0 else self.maximum
        until = np.cumsum(weights)
        at = int(np.searchsorted(until, q * until[-1], side="left"))
        return float(values[min(at, len(values) - 1)])

    def summary(self) -> dict[str, Any]:
        """JSON-ready: count, undefined, mean, min, max, quantiles {"0.05": ...} and a histogram {edges, counts}."""
        if not self.count:
            return {"count": 0, "undefined": self.undefined, "mean": None, "min": None, "max": None}
        values, weights = self._merged()
        # extremes can be far out: the histogram spans the middle 98 %, its outer bins take the rest
        low, high = self.quantile(0.01), self.quantile(0.99)
        assert low is not None
        assert high is not None
        if high <= low:
            low, high = self.minimum, self.maximum
        if high <= low:
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(
            np.clip(values, low, high), bins=HISTOGRAM_BINS, range=(low, high), weights=weights
        )
        return {
            "count": self.count,
            "undefined": self.undefined,
            "mean": self.mean,
            "min": self.minimum,
            "max": self.maximum,
            "quantiles": {str(q): self.quantile(q) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)},
            "histogram": {"edges": edges.tolist(), "counts": np.rint(counts).astype(int).tolist()},
        }


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of the rows of a run: `rows_in` = `kept` + `dropped` + `failed` once all of them are accounted
    for.
    """

    rows_in: int = 0
    kept: int = 0
    dropped: int = 0
    failed: int = 0
    duplicates: int = 0  # rows whose bytes equal an earlier row's; kept all the same
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    failed_by_code: dict[str, int] = field(default_factory=dict)
    distributions: dict[str, Distribution] = field(default_factory=dict)  # "ifd.value" -> its distribution

    @property
    def accounted(self) -> bool:
        return self.rows_in == self.kept + self.dropped + self.failed

    @property
    def duplicate_fraction(self) -> float:
        return self.duplicates / self.rows_in if self.rows_in else 0.0

    def drop(self, reason: str) -> None:
        self.dropped += 1
        self.dropped_by_reason[reason] = self.dropped_by_reason.get(reason, 0) + 1

    def fail(self, code: str) -> None:
        self.failed += 1
        self.failed_by_code[code] = self.failed_by_code.get(code, 0) + 1

    def add_scores(self, rows: list[dict[str, Any]]) -> None:
        """Adds the scores of many rows: {"loglik": {"sum": ...}, ...} each."""
        columns: dict[str, list[float | None]] = {}
        _collect(rows, "", columns)
        for path, found in columns.items():
            numbers = [value for value in found if value is not None] if None in found else found
            values = np.array(numbers, dtype=np.float64)
            self.distributions.setdefault(path, Distribution()).add(values, len(found) - len(numbers))

    def score_summary(self) -> dict[str, Any]:
        """JSON-ready summary of every numeric score field that any row had, by dotted path."""
        return {path: found.summary() for path, found in sorted(self.distributions.items()) if found.count}


def _collect(rows: Sequence[Mapping[str, Any]], prefix: str, columns: dict[str, list[float | None]]) -> None:
    """Numbers and nulls of `rows` by dotted path: column by column, as rows nearly always have the same keys."""
    if not rows:
        return
    keys = rows[0].keys()
    if len(set(map(tuple, rows))) > 1 and any(row.keys() != keys for row in rows):
        alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in rows:
            alike.setdefault(tuple(sorted(row)), []).append(row)
        for some in alike.values():
            _collect(some, prefix, columns)
        return
    for key in keys:
        values = [row[key] for row in rows]
        kinds = set(map(type, values))
        if dict in kinds:
            _collect([value for value in values if type(value) is dict], f"{prefix}{key}.", columns)
        if kinds & _NUMBERS:
            numbers = values if kinds <= _NUMBERS else [value for value in values if type(value) in _NUMBERS]
            columns.setdefault(prefix + key, []).extend(numbers)


_NUMBERS: Final = {int, float, type(None)}
