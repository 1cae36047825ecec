"""Which rows a step trains on: a pure function of (seed, step, number of rows, global batch), without any state.

Every epoch is another permutation of all rows; batches run on across the end of an epoch. A row's place is computed,
not looked up: a Feistel network permutes a power of four that is just large enough, and a row number beyond the last
row is sent through it again until it is one (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite
domains"). So a step of a dataset of any size costs its own rows only. Must not know ranks, shares or tokens.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.integer_hash import Words, hash_integers, hash_words

ROUNDS: Final = 8  # four make a pseudorandom permutation of large halves; halves of a few bits need more


def rows_of_step(seed: int, step: int, rows: int, global_batch: int) -> tuple[int, ...]:
    """Row numbers (from 0) of optimizer step `step` (from 0), in order, `global_batch` of them.

    A batch that runs across the end of an epoch may hold a row of both. Raises UsageError if there are fewer rows than
    `global_batch`: a row would count several times in every step.
    """
    if not 0 < global_batch <= rows:
        raise UsageError(
            f"a global batch of {global_batch:,} rows cannot be drawn from {rows:,} rows of data",
            f"--global-batch between 1 and {rows:,}" if rows else "give data with rows in it",
        )
    first = step * global_batch
    places = np.arange(first, first + global_batch, dtype=np.uint64)
    found: list[int] = []
    for epoch in range(first // rows, (first + global_batch - 1) // rows + 1):
        here = places[(places >= epoch * rows) & (places < (epoch + 1) * rows)] - np.uint64(epoch * rows)
        found += permuted(here, rows, hash_integers(seed, epoch)).tolist()
    return tuple(found)


def permuted(places: Words, rows: int, key: int) -> Words:
    """Where a permutation of `rows` numbers, chosen by `key`, sends each of `places` (all below `rows`)."""
    half = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
    keys = [np.uint64(hash_integers(key, turn)) for turn in range(ROUNDS)]
    result = _feistel(places, half, keys)
    while len(outside := np.flatnonzero(result >= rows)):
        result[outside] = _feistel(result[outside], half, keys)
    return result


def _feistel(values: Words, half: np.uint64, keys: list[np.uint64]) -> Words:
    """A bijection on numbers of 2 * `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (hash_words(right ^ key) & mask)
    return (left << half) | right
