"""Cuts a window of rows into compute units, from the input alone: the same rows give the same units on any cluster.

Knows lengths and costs. Must not know files, nodes or speeds: how many units a lease carries is the scheduler's
business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

WINDOW_ROWS = 4096  # rows that are sorted by length together; also what the coordinator holds in memory at a time
UNIT_COST = 2048.0  # token equivalents (row_cost) a unit aims at
UNIT_ROWS = 256
UNIT_BYTES = 4 * 1024 * 1024  # raw row bytes; a unit travels in one message
NOOP_TOKENS_PER_BYTE = 1 / 32  # what a score without a model does to a byte, in a model's tokens: it parses it
# What a drawn token costs in tokens that are read. benchmarks/generate_speed.py prints it (7 to 9 there);
# all that depends on it is how long prompts weigh against long answers.
DRAWN_TOKEN = 8.0
UNIT_SEQUENCES = 32  # answers that a unit aims at, so that a worker draws for many at once
ATTENTION_TOKENS = 16384.0  # length at which attention costs as much as the rest of a forward pass

Positions = npt.NDArray[np.int64]


def row_cost(text_bytes: int, tokens_per_byte: float) -> float:
    """Estimated work of one row, in token equivalents.

    A row of n tokens costs n for what is linear in its length (projections, feed-forward) and n * n /
    ATTENTION_TOKENS for attention, whose share of a forward pass grows with length. Never below 1, so that no row is
    free. Only ratios matter: a node's speed is measured in the same unit.
    """
    tokens = max(1.0, text_bytes * tokens_per_byte)
    return tokens + tokens * tokens / ATTENTION_TOKENS


def row_costs(text_bytes: npt.ArrayLike, tokens_per_byte: float) -> npt.NDArray[np.float64]:
    """`row_cost` of each of `text_bytes`, shape (rows,), float64."""
    tokens = np.maximum(1.0, np.asarray(text_bytes, dtype=np.float64) * tokens_per_byte)
    result: npt.NDArray[np.float64] = tokens + tokens * tokens / ATTENTION_TOKENS
    return result


def drawn_cost(new_tokens: int) -> float:
    """What answering adds to a row's cost, in token equivalents; `new_tokens` at most, over all its samples."""
    return DRAWN_TOKEN * new_tokens


def unit_cost_of(max_new_tokens: int) -> float:
    """What a unit aims at where answers of up to so many tokens are drawn; 0: nothing is drawn."""
    return UNIT_COST + UNIT_SEQUENCES * drawn_cost(max_new_tokens)


def costs_in_order(
    lengths: npt.ArrayLike,
    tokens_per_byte: float,
    groups: npt.ArrayLike | None = None,
    prefixes: npt.ArrayLike | None = None,
    added: float = 0.0,
) -> npt.NDArray[np.float64]:
    """What each row adds when rows are computed in this order, shape (rows,), float64; `added` is on top for each.

    A row of the same group as the one before it needs no prefill of the `prefixes` text bytes that they share.
    """
    costs = row_costs(lengths, tokens_per_byte) + added
    if groups is None or prefixes is None or len(costs) < 2:
        return costs
    group = np.asarray(groups)
    shared = np.minimum(np.asarray(prefixes, dtype=np.int64), np.asarray(lengths, dtype=np.int64) - 1)
    again = np.flatnonzero((group[1:] == group[:-1]) & (shared[1:] > 0)) + 1
    costs[again] -= row_costs(shared[again], tokens_per_byte)
    return costs


def cut_window(
    lengths: Sequence[int] | npt.NDArray[Any],
    tokens_per_byte: float,
    unit_cost: float = UNIT_COST,
    max_rows: int = UNIT_ROWS,
    max_bytes: int = UNIT_BYTES,
    *,
    sizes: Sequence[int] | npt.NDArray[Any] | None = None,
    groups: Sequence[int] | npt.NDArray[Any] | None = None,
    prefixes: Sequence[int] | npt.NDArray[Any] | None = None,
    added: float = 0.0,
) -> list[Positions]:
    """Units of one window, each an int64 array of positions in the window, longest rows first.

    `lengths` are the text bytes of each row, `sizes` its raw bytes (default: `lengths`). `groups` is a number shared by
    rows that begin with the same text, `prefixes` the bytes of that text (default: none is shared), `added` what
    every row costs besides (`drawn_cost`). Rows of a group stay next to each other, in the place of the group's longest
    row, and only the first of them in a unit pays for the prefix. Sorting is stable, so equal inputs give equal units.
    Every row is in exactly one unit. A unit ends before `unit_cost`, `max_rows` or `max_bytes` would be passed; a
    single row that passes one alone is a unit of its own.
    """
    length = np.asarray(lengths, dtype=np.int64)
    if not len(length):
        return []
    size = length if sizes is None else np.asarray(sizes, dtype=np.int64)
    group = None if groups is None else np.asarray(groups, dtype=np.int64)
    order = _order(length, group)
    ordered = length[order]
    in_company = costs_in_order(
        ordered,
        tokens_per_byte,
        None if group is None else group[order],
        None if prefixes is None else np.asarray(prefixes, dtype=np.int64)[order],
        added,
    )
    alone = row_costs(ordered, tokens_per_byte) + added
    cost_until = np.cumsum(in_company)
    bytes_until = np.cumsum(size[order])
    units: list[Positions] = []
    start, cost_before, bytes_before = 0, 0.0, 0
    while start < len(order):
        budget = unit_cost - float(alone[start] - in_company[start])  # the first row of a unit has nobody before it
        by_cost = int(np.searchsorted(cost_until, cost_before + budget, side="right"))
        by_bytes = int(np.searchsorted(bytes_until, bytes_before + max_bytes, side="right"))
        end = max(start + 1, min(by_cost, by_bytes, start + max_rows, len(order)))
        units.append(order[start:end])
        start, cost_before, bytes_before = end, float(cost_until[end - 1]), int(bytes_until[end - 1])
    return units


def _order(length: Positions, groups: Positions | None) -> Positions:
    if groups is None:
        return np.argsort(-length, kind="stable").astype(np.int64)
    _, member = np.unique(groups, return_inverse=True)
    longest = np.zeros(int(member.max()) + 1, dtype=np.int64)
    np.maximum.at(longest, member, length)
    first = np.full(len(longest), len(length), dtype=np.int64)
    np.minimum.at(first, member, np.arange(len(length)))
    # lexsort: the last key is the first criterion; ties end in input order
    return np.lexsort((-length, first[member], -longest[member])).astype(np.int64)
