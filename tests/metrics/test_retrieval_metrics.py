"""Rankings whose values are worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.measured import ItemId, SourceId
from realign_cluster.metrics.retrieval_metrics import (
    Ranking,
    mean_reciprocal_rank,
    ndcg_at,
    precision_at,
    r_precision,
    ranking,
    recall_at,
)


def ranked(order: str, relevant: str, item: str = "q") -> Ranking:
    return ranking(ItemId(item), [SourceId(letter) for letter in order], [SourceId(letter) for letter in relevant])


def test_one_ranking_by_hand():
    """Relevant at ranks 2 and 4, a third never found."""
    one = [ranked("xaybz", "abc")]
    assert precision_at(5, one).value == 2 / 5
    assert precision_at(10, one).value == 2 / 10  # fewer were retrieved: k all the same
    assert recall_at(2, one).value == 1 / 3
    assert recall_at(5, one).value == 2 / 3
    assert r_precision(one).value == 1 / 3  # in the top 3
    assert mean_reciprocal_rank(one).value == 1 / 2
    gain = 1 / math.log2(3) + 1 / math.log2(5)
    best = 1 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at(5, one).value == pytest.approx(gain / best)
    assert gain / best == pytest.approx(0.498189, abs=1e-6)


def test_graded_gains():
    """3, 2, 3, 0, 1, 2 is the textbook example: DCG 6.861, ideal 7.141 (of the six ranked)."""
    gains = dict(zip(map(SourceId, "abcdef"), (3.0, 2.0, 3.0, 0.0, 1.0, 2.0), strict=True))
    one = Ranking(
        item=ItemId("q"),
        ranked=tuple(map(SourceId, "abcdef")),
        gains={name: gain for name, gain in gains.items() if gain},
    )
    assert ndcg_at(6, [one]).value == pytest.approx(0.961, abs=5e-4)


def test_nothing_relevant_is_undefined_and_nothing_found_is_zero():
    rankings = [ranked("ab", "", "1"), ranked("ab", "c", "2"), ranked("", "c", "3"), ranked("c", "c", "4")]
    for metric in (precision_at(1, rankings), recall_at(1, rankings), r_precision(rankings),
                   mean_reciprocal_rank(rankings), ndcg_at(1, rankings)):  # fmt: skip
        assert metric.undefined == ("1",)
        assert metric.defined == (("2", 0), ("3", 0), ("4", 1))
        assert metric.value == 1 / 3
    assert r_precision([ranked("ab", "")]).value is None


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="ranked twice"):
        ranked("aa", "a")
    with pytest.raises(ValueError, match="gain above 0"):
        Ranking(item=ItemId("q"), ranked=(), gains={SourceId("a"): 0.0})
    with pytest.raises(ValueError, match="1 or more"):
        precision_at(0, [ranked("a", "a")])


ORDERS = st.permutations("abcdefgh").map("".join)


@given(ORDERS, st.sets(st.sampled_from("abcdefgh"), min_size=1), st.integers(1, 10))
def test_properties(order: str, relevant: set[str], k: int):
    one = [ranked(order, "".join(relevant))]
    first = [ranked("".join(sorted(order, key=lambda letter: letter not in relevant)), "".join(relevant))]
    for metric in (lambda r: precision_at(k, r), lambda r: recall_at(k, r), r_precision, mean_reciprocal_rank,
                   lambda r: ndcg_at(k, r)):  # fmt: skip
        assert 0 <= metric(one).value <= metric(first).value <= 1 + 1e-12
    assert ndcg_at(k, first).value == pytest.approx(1)
    assert r_precision(first).value == 1
    assert precision_at(len(relevant), one).value == recall_at(len(relevant), one).value == r_precision(one).value
