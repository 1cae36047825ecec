"""The rows of a step: all of them once an epoch, in an order that nothing but seed, epoch and their number decides."""

from __future__ import annotations

import time
from itertools import chain, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_cluster.domain.batch_order import permuted, rows_of_step
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.integer_hash import hash_integers, hash_words

SEEDS = st.integers(-(2**70), 2**70)


@settings(deadline=None)
@given(seed=SEEDS, rows=st.integers(1, 120), epochs=st.integers(1, 3), data=st.data())
def test_each_row_once_an_epoch_and_batches_run_across_its_end(seed, rows, epochs, data):
    batch = data.draw(st.integers(1, rows))
    steps = -(-epochs * rows // batch)
    order = list(chain.from_iterable(rows_of_step(seed, step, rows, batch) for step in range(steps)))
    assert len(order) == steps * batch
    for epoch in range(epochs):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@settings(deadline=None)
@given(seed=SEEDS, rows=st.integers(1, 200), batch=st.integers(1, 200), step=st.integers(0, 50))
def test_the_order_of_rows_does_not_depend_on_the_batch(seed, rows, batch, step):
    batch = min(batch, rows)
    one_by_one = [rows_of_step(seed, at, rows, 1)[0] for at in range(step * batch, (step + 1) * batch)]
    assert list(rows_of_step(seed, step, rows, batch)) == one_by_one


def test_epochs_and_seeds_differ():
    orders = {rows_of_step(seed, epoch, 1000, 1000) for seed in (0, 1, 2) for epoch in range(4)}
    assert len(orders) == 12
    assert all(sum(row == at for at, row in enumerate(order)) < 10 for order in orders)


def test_every_order_of_a_few_rows_is_as_likely():
    """Chi-squared over all permutations of four rows: 23 degrees of freedom, 0.001 at 49.7."""
    seen = dict.fromkeys(permutations(range(4)), 0)
    for epoch in range(4800):
        seen[rows_of_step(9, epoch, 4, 4)] += 1
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 49.7


def test_places_of_many_rows_are_uniform_and_neighbours_unrelated():
    order = np.array(rows_of_step(3, 0, 100_000, 100_000), dtype=np.float64)
    blocks = [np.histogram(order[at : at + 10_000], bins=10, range=(0, 100_000))[0] for at in range(0, 100_000, 10_000)]
    assert np.sum((np.array(blocks) - 1000.0) ** 2 / 1000) < 150  # about 81 degrees of freedom
    for apart in (1, 2, 3, 256, 512):
        assert abs(np.corrcoef(order[:-apart], order[apart:])[0, 1]) < 0.015


def test_the_order_is_the_same_everywhere_and_for_ever():
    """A run that is continued with another order would train on some rows twice and never on others."""
    assert rows_of_step(0, 0, 10, 10) == (5, 1, 7, 4, 9, 0, 2, 6, 8, 3)
    assert rows_of_step(0, 1, 10, 7) == (6, 8, 3, 0, 6, 3, 2)  # the last four are of the next epoch
    assert rows_of_step(-5, 3, 7, 3) == (5, 4, 2)
    assert rows_of_step(42, 123_456, 10_000_019, 4) == (5_905_375, 21_908, 1_849_639, 1_138_007)
    assert hash_words(np.array([0], dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF]  # splitmix64's first output
    assert hash_integers(1, 2) != hash_integers(2, 1)


def test_ten_million_rows_cost_a_step_what_its_own_rows_cost():
    started = time.perf_counter()
    found = [rows_of_step(1, step, 10_000_000, 256) for step in range(50)]
    assert time.perf_counter() - started < 2.5
    assert len(set(chain.from_iterable(found))) == 50 * 256
    assert permuted(np.array([9_999_999], dtype=np.uint64), 10_000_000, 5)[0] < 10_000_000


@pytest.mark.parametrize(
    ("rows", "batch", "message"),
    [
        (
            40,
            64,
            "a global batch of 64 rows cannot be drawn from 40 rows of data\n  fix: --global-batch between 1 and 40",
        ),
        (40, 0, "a global batch of 0 rows"),
        (0, 1, "from 0 rows of data\n  fix: give data with rows in it"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused(rows, batch, message):
    with pytest.raises(UsageError, match=message):
        rows_of_step(0, 0, rows, batch)
