"""Coverage, consistency and the diversity of sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.consistency import attribution_consistency
from realign_cluster.metrics.coverage import attribution_coverage
from realign_cluster.metrics.measured import ItemId, SourceId, mean_over_items, pooled_ratio
from realign_cluster.metrics.reading import read_answer
from realign_cluster.metrics.source_diversity import source_diversity

KNOWN = {"1": SourceId("a"), "2": SourceId("b")}


def test_coverage_by_hand():
    answers = [
        read_answer(ItemId("x"), "The tower is old [1]. It was built in 1990. It fell in 1999 [7][2].", KNOWN),
        read_answer(ItemId("y"), "The bridge is long [9].", KNOWN),
        read_answer(ItemId("z"), "I don't know.", KNOWN),
    ]
    found = attribution_coverage(answers)
    assert found.value == 2 / 4
    assert found.defined == (("x", 2, 3), ("y", 0, 1))
    assert found.undefined == ("z",)


def test_coverage_of_nothing_is_undefined():
    assert attribution_coverage([]).value is None
    assert attribution_coverage([read_answer(ItemId("x"), "", KNOWN)]).value is None


def test_two_formats_of_one_answer_agree():
    bracket = read_answer(ItemId("x"), "The tower is old [1]. It fell in 1999 [2].", KNOWN)
    footnote = read_answer(ItemId("x"), "The tower is old.[^2] It fell in 1999.[^1]\n\n[^1]: b.org\n[^2]: a.org",
                           {"https://a.org": SourceId("a"), "https://b.org/": SourceId("b")})  # fmt: skip
    assert attribution_consistency([(ItemId("x"), bracket.cited, footnote.cited)]).value == 1


def test_consistency_by_hand():
    a, b, c = map(SourceId, "abc")
    found = attribution_consistency(
        [(ItemId("1"), {a, b}, {b, c}), (ItemId("2"), {a}, {a}), (ItemId("3"), set(), {a}), (ItemId("4"), set(), set())]
    )
    assert found.value == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert found.undefined == ("4",)


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
def test_consistency_is_symmetric_and_from_0_to_1(first: set[str], second: set[str]):
    one, other = (attribution_consistency([(ItemId("x"), *pair)]).value for pair in ((first, second), (second, first)))
    assert one == other
    assert one is None or 0 <= one <= 1
    assert (one == 1) == (first == second and bool(first))


class TestDiversity:
    TYPES = frozenset({"book", "web", "paper", "law"})

    def test_diverse(self):
        found = source_diversity(["book"] * 6 + ["web"] * 3 + ["law"], self.TYPES)
        assert found.faults() == ()
        assert (found.largest_type, found.largest_share) == ("book", 0.6)

    def test_one_type_too_large(self):
        (fault,) = source_diversity(["book"] * 7 + ["web"] * 2 + ["law"], self.TYPES).faults()
        assert fault == "70.0% of the pairs are book, above 60%"

    def test_too_few_types(self):
        (fault,) = source_diversity(["book", "web"], self.TYPES).faults()
        assert fault == "2 types of source instead of 3; not used: law, paper"

    def test_a_corpus_of_fewer_types_asks_for_no_more(self):
        assert source_diversity(["book", "web"], {"book", "web"}).faults() == ()

    def test_no_pairs(self):
        found = source_diversity([], self.TYPES)
        assert (found.largest_share, found.largest_type) == (None, None)
        assert found.faults() == ("there are no pairs",)

    def test_a_type_that_the_corpus_does_not_have(self):
        with pytest.raises(ValueError, match="blog"):
            source_diversity(["blog"], self.TYPES)


def test_items_counted_twice_or_below_nothing_are_refused():
    with pytest.raises(ValueError, match="comes twice"):
        mean_over_items("m", "u", [(ItemId("a"), 1.0), (ItemId("a"), None)])
    with pytest.raises(ValueError, match="comes twice"):
        pooled_ratio("m", "u", [(ItemId("a"), 1, 1), (ItemId("a"), 1, 1)])
    with pytest.raises(ValueError, match="negative count"):
        pooled_ratio("m", "u", [(ItemId("a"), 1, -1)])
