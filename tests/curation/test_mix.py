"""Mixes by ratio: exact counts, interleaved, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.curation.mix import Mix, Source, exact_counts, mix
from realign_cluster.domain.errors import UsageError

KINDS = (
    Source(kind="task", rows=500, weight=6),
    Source(kind="general", rows=900, weight=3),
    Source(kind="creative", rows=40, weight=1),
)


def counts(made: Mix) -> dict[str, int]:
    return {each.kind: each.taken for each in made.kinds}


def test_counts_are_exact_and_reported() -> None:
    made = mix(KINDS, total=333, seed=2)
    assert counts(made) == {"task": 200, "general": 100, "creative": 33}
    assert Counter(taken.kind for taken in made.rows) == counts(made)
    assert len({(taken.kind, taken.row) for taken in made.rows}) == 333
    assert [each.asked_fraction for each in made.kinds] == [0.6, 0.3, 0.1]
    assert [(each.distinct, each.most_often, each.available) for each in made.kinds][2] == (33, 1, 40)
    assert made.text().startswith("333 rows: task 200 of 500 (60.1%), general 100 of 900 (30.0%)")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 500))
def test_counts_add_up_and_miss_the_ratio_by_less_than_one(weights: list[int], total: int) -> None:
    found = exact_counts(weights, total)
    assert sum(found) == total
    assert all(abs(count - total * w / sum(weights)) < 1 for count, w in zip(found, weights, strict=True))


def test_every_stretch_holds_the_mix() -> None:
    made = mix(KINDS, total=400)
    for at in range(0, 400, 50):
        stretch = Counter(taken.kind for taken in made.rows[at : at + 50])
        for kind, expected in (("task", 30), ("general", 15), ("creative", 5)):
            assert abs(stretch[kind] - expected) <= 1


def test_the_seed_decides_which_rows_and_in_which_order() -> None:
    assert mix(KINDS, total=100, seed=1) == mix(KINDS, total=100, seed=1)
    one, two = (mix(KINDS, total=100, seed=seed) for seed in (1, 2))
    assert [taken.kind for taken in one.rows] == [taken.kind for taken in two.rows]
    assert {taken.row for taken in one.rows} != {taken.row for taken in two.rows}
    rows = [taken.row for taken in one.rows if taken.kind == "general"]
    assert rows != sorted(rows)
    assert max(rows) > 600  # drawn from all of them


def test_without_repetition_the_scarcest_kind_decides() -> None:
    made = mix(KINDS)
    assert len(made.rows) == 406  # of 407 the remainders would give creative a 41st
    assert counts(made) == {"task": 244, "general": 122, "creative": 40}
    with pytest.raises(UsageError, match="creative has 40 rows, 41 are wanted"):
        mix(KINDS, total=407)
    with pytest.raises(UsageError, match="creative has 40 rows, 100 are wanted") as refused:
        mix(KINDS, total=1000)
    assert refused.value.fix.startswith("ask for at most 406 rows")


def test_with_repetition_each_pass_is_whole() -> None:
    made = mix(KINDS, total=1000, repeat=True)
    creative = [taken for taken in made.rows if taken.kind == "creative"]
    assert Counter(taken.repeat for taken in creative) == {0: 40, 1: 40, 2: 20}
    assert {taken.row for taken in creative if taken.repeat == 1} == set(range(40))
    assert [t.row for t in creative if t.repeat == 0] != [t.row for t in creative if t.repeat == 1]
    assert [each.most_often for each in made.kinds] == [2, 1, 3]


@pytest.mark.parametrize(
    ("sources", "why"),
    [
        ((), "a mix of nothing"),
        ((KINDS[0], KINDS[0]), "named twice"),
        ((Source(kind="task", rows=3, weight=0),), "the weight 0"),
        ((Source(kind="task", rows=3, weight=float("nan")),), "the weight nan"),
        ((Source(kind="task", rows=0, weight=1),), "task has no rows"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sources: tuple[Source, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        mix(sources)
    with pytest.raises(UsageError, match="no rows"):
        mix(KINDS, total=0)
