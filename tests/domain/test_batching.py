"""Cutting windows into units: nothing lost, nothing twice, nothing over the bounds, and always the same cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.batching import (
    UNIT_SEQUENCES,
    costs_in_order,
    cut_window,
    drawn_cost,
    row_cost,
    row_costs,
    unit_cost_of,
)

LENGTHS = st.lists(st.integers(0, 20_000), max_size=300)


@given(
    lengths=LENGTHS,
    tokens_per_byte=st.floats(0.05, 1.5),
    unit_cost=st.floats(1, 50_000),
    max_rows=st.integers(1, 64),
    max_bytes=st.integers(1, 100_000),
    data=st.data(),
)
def test_units_partition_the_window_within_bounds(lengths, tokens_per_byte, unit_cost, max_rows, max_bytes, data):
    sizes = [length + data.draw(st.integers(2, 500)) for length in lengths]
    groups = data.draw(st.none() | st.just([at // 3 for at in range(len(lengths))]))
    units = cut_window(lengths, tokens_per_byte, unit_cost, max_rows, max_bytes, sizes=sizes, groups=groups)

    assert sorted(int(at) for unit in units for at in unit) == list(range(len(lengths)))
    for unit in units:
        assert 1 <= len(unit) <= max_rows
        if len(unit) > 1:
            assert sum(sizes[at] for at in unit) <= max_bytes
            assert sum(row_cost(lengths[at], tokens_per_byte) for at in unit) <= unit_cost * (1 + 1e-9)


@given(lengths=LENGTHS)
def test_without_groups_rows_go_longest_first_and_ties_in_input_order(lengths):
    order = [int(at) for unit in cut_window(lengths, 0.3) for at in unit]
    assert order == sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))


def test_equal_input_gives_equal_units():
    lengths = np.random.default_rng(7).integers(0, 5000, 4096)
    first, second = (cut_window(lengths, 0.27, groups=lengths % 900) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_rows_of_a_group_stay_together_at_the_place_of_the_longest():
    #          0    1    2    3    4
    lengths = [50, 900, 400, 800, 700]
    groups = [0, 1, 2, 3, 1]
    order = [int(at) for unit in cut_window(lengths, 1.0, unit_cost=1e9, groups=groups) for at in unit]
    assert order == [1, 4, 3, 2, 0]


def test_only_the_first_row_of_a_group_pays_for_the_shared_prefix():
    # four claims of 40 bytes on each of 30 evidences of 1,960 bytes
    groups = [at // 4 for at in range(120)]
    lengths, prefixes = [2000] * 120, [1960] * 120
    whole, claim = row_cost(2000, 1.0), row_cost(2000, 1.0) - row_cost(1960, 1.0)
    units = cut_window(lengths, 1.0, unit_cost=whole + 3 * claim, groups=groups, prefixes=prefixes)
    assert [sorted(unit.tolist()) for unit in units] == [list(range(at, at + 4)) for at in range(0, 120, 4)]
    assert costs_in_order([2000] * 4, 1.0, [7] * 4, [1960] * 4).sum() < 1.3 * whole
    assert costs_in_order([2000] * 4, 1.0, [1, 2, 3, 4], [1960] * 4).sum() == 4 * whole


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000), st.integers(0, 3000)), max_size=120),
    unit_cost=st.floats(1, 20_000),
)
def test_units_with_shared_prefixes_keep_their_bound(rows, unit_cost):
    groups, prefixes = [group for group, *_ in rows], [prefix for _, prefix, _ in rows]
    lengths = [prefix + rest for _, prefix, rest in rows]
    units = cut_window(lengths, 0.5, unit_cost, groups=groups, prefixes=prefixes)
    assert sorted(int(at) for unit in units for at in unit) == list(range(len(rows)))
    for unit in units:
        chosen = [[column[at] for at in unit] for column in (lengths, groups, prefixes)]
        costs = costs_in_order(chosen[0], 0.5, chosen[1], chosen[2])
        assert (costs >= 0).all()
        assert len(unit) == 1 or costs.sum() <= unit_cost * (1 + 1e-9)


def test_a_row_beyond_every_bound_is_a_unit_of_its_own():
    units = cut_window([10, 1_000_000, 10], 1.0, unit_cost=100, max_bytes=500)
    assert [unit.tolist() for unit in units] == [[1], [0, 2]]


def test_an_empty_window_has_no_units():
    assert cut_window([], 0.3) == []


@given(st.integers(0, 10**7), st.floats(0.01, 2))
def test_cost_grows_with_length_and_is_never_nothing(text_bytes, tokens_per_byte):
    cost = row_cost(text_bytes, tokens_per_byte)
    assert cost >= 1
    assert row_cost(text_bytes + 1000, tokens_per_byte) > cost
    assert row_costs([text_bytes], tokens_per_byte)[0] == cost


def test_attention_makes_one_long_row_dearer_than_two_halves():
    assert row_cost(32_000, 0.5) > 2 * row_cost(16_000, 0.5)
    assert row_cost(400, 0.5) < 2.02 * row_cost(200, 0.5)


def test_units_of_answers_hold_as_many_as_are_drawn_at_once():
    """Whatever the answers' length: about UNIT_SEQUENCES of them, less where prompts are long."""
    for new_tokens in (16, 256, 2000):
        lengths = [120] * 400
        added = drawn_cost(new_tokens)
        units = cut_window(lengths, 0.25, unit_cost_of(new_tokens), added=added)
        assert sorted(int(at) for unit in units for at in unit) == list(range(400))
        assert UNIT_SEQUENCES * 0.9 <= len(units[0]) <= UNIT_SEQUENCES * 1.1 + row_cost(120, 0.25)
        total = sum(float(costs_in_order([120] * len(unit), 0.25, added=added).sum()) for unit in units)
        assert abs(total - 400 * (row_cost(120, 0.25) + added)) < 1e-6 * total
    assert cut_window([400] * 40, 0.25)[0].tolist() == cut_window([400] * 40, 0.25, unit_cost_of(0))[0].tolist()
