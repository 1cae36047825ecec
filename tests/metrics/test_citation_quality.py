"""ALCE's recall and precision: by hand, against the definition written out again, and how the variants differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.citation_quality import (
    CitedAnswer,
    CitedSentence,
    Query,
    Variant,
    accuracy_of_pairs,
    alce_sentence,
    measure,
    queries_of,
)
from realign_cluster.metrics.measured import ItemId

# Each passage is a set of letters, and entails a claim when it has all the letters of the claim.


def by_letters(query: Query) -> bool:
    return set(query.claim) <= set("".join(query.evidence))


def answer(*sentences: tuple[str, list[str | None]], item: str = "x") -> CitedAnswer:
    return CitedAnswer(
        item=ItemId(item),
        sentences=tuple(CitedSentence(claim=claim, passages=tuple(passages)) for claim, passages in sentences),
    )


@pytest.mark.parametrize(
    ("sentences", "recall", "alce", "strict"),
    [
        pytest.param([("a", ["ab"])], 1, 1, 1, id="right"),
        pytest.param([("a", ["b"])], 0, 0, 0, id="wrong"),
        pytest.param([("a", [])], 0, 0, None, id="none"),
        pytest.param([("ab", ["a", "b"])], 1, 1, 1, id="both needed"),
        pytest.param([("a", ["a", "b"])], 1, 1 / 2, 1 / 2, id="one too many"),
        pytest.param([("a", ["a", "ab"])], 1, 1, 1, id="each alone is enough"),
        pytest.param([("ab", ["a", "b", "c"])], 1, 2 / 3, 2 / 3, id="two needed, one too many"),
        pytest.param([("ab", ["a", "ac", "b"])], 1, 1 / 3, 1 / 3, id="two that replace each other are not necessary"),
        pytest.param([("a", ["a", None])], 0, 0, 0, id="an unknown id spoils the sentence"),
        pytest.param([("a", ["a"]), ("b", [None])], 1 / 2, 1, 1 / 2, id="unknown leaves alce's denominator"),
        pytest.param([("a", ["a"]), ("b", ["a", None, None])], 1 / 2, 1, 1 / 4, id="all three of it count in strict"),
        pytest.param([("b", [None])], 0, 0, 0, id="only unknown"),
        pytest.param([("a", ["a", "a"])], 1, 1, 1, id="twice the same, enough alone"),
        pytest.param([("ab", ["a", "a", "b"])], 1, 1 / 3, 1, id="twice the same: alce finds neither necessary"),
        pytest.param([("a", ["a"]), ("b", [])], 1 / 2, 1, 1, id="an uncited sentence costs recall only"),
        pytest.param([], None, None, None, id="no sentences"),
    ],
)  # fmt: skip
def test_by_hand(sentences: list[tuple[str, list[str | None]]], recall: float, alce: float, strict: float | None):
    one = answer(*sentences)
    for variant, precision in ((Variant.ALCE, alce), (Variant.STRICT, strict)):
        found = measure([one], by_letters, variant)
        assert found.recall.value == recall
        assert found.precision.value == (None if precision is None else pytest.approx(precision))


def test_means_are_over_answers_and_undefined_ones_are_counted():
    answers = [
        answer(("a", ["a"]), ("b", ["a", "c"]), item="1"),  # recall 1/2, precision 1/3
        answer(("a", ["a"]), item="2"),  # 1, 1
        answer(("a", []), item="3"),  # 0, undefined
        answer(item="4"),  # undefined both
    ]
    found = measure(answers, by_letters)
    assert found.recall.value == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.recall.undefined == ("4",)
    assert found.precision.value == pytest.approx((1 / 3 + 1) / 2)
    assert found.precision.undefined == ("3", "4")
    assert found.precision.defined == (("1", pytest.approx(1 / 3)), ("2", 1))
    assert found.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert found.accuracy == pytest.approx(1 / 2)


def test_collected_pairs_are_yes_or_no_items():
    found = accuracy_of_pairs([(ItemId("a"), True), (ItemId("b"), False)])
    assert (found.value, found.defined) == (0.5, (("a", 1), ("b", 0)))
    assert accuracy_of_pairs([]).value is None


def test_nothing_measured_is_undefined():
    found = measure([], by_letters)
    assert (found.recall.value, found.precision.value, found.f1, found.accuracy) == (None, None, None, None)


def test_an_answer_counted_twice_is_refused():
    with pytest.raises(ValueError, match="comes twice"):
        measure([answer(("a", ["a"])), answer(("b", ["b"]))], by_letters)


def test_the_queries_are_asked_once_each():
    one = answer(("ab", ["a", "b"]), ("ab", ["a", "b"]), ("c", [None]), ("d", []), ("e", ["e"]))
    assert queries_of([one]) == (
        Query(evidence=("a", "b"), claim="ab"),
        Query(evidence=("a",), claim="ab"),
        Query(evidence=("b",), claim="ab"),
        Query(evidence=("e",), claim="e"),
    )


def test_a_table_that_lacks_a_query_is_refused():
    with pytest.raises(KeyError):
        measure([answer(("a", ["a"]))], {})


@pytest.mark.parametrize(
    ("sentence", "claim", "passages"),
    [
        ("It is so [1][2].", "It is so.", ("A", "B")),
        ("It is so [1, 2].", "It is so, 2.", ("A",)),  # eval.py sees only what stands behind a bracket
        ("It is so[4].", "It is so.", (None,)),
        ("It is [0] so.", "It is so.", ("C",)),  # Python's index -1
        ("It is so [2] |.", "It is so.", ("B",)),
    ],
)
def test_a_sentence_as_alce_reads_it(sentence: str, claim: str, passages: tuple[str | None, ...]):
    assert alce_sentence(sentence, ["A", "B", "C"]) == CitedSentence(claim=claim, passages=passages)


PASSAGES = st.sampled_from(["", "a", "b", "ab", "bc", "abc", None])
SENTENCES = st.tuples(st.sampled_from(["a", "ab", "abc", "c"]), st.lists(PASSAGES, max_size=4))
ANSWERS = st.lists(st.lists(SENTENCES, max_size=4), max_size=4).map(
    lambda all_: [answer(*sentences, item=str(number)) for number, sentences in enumerate(all_)]
)


def written_out_again(one: CitedAnswer, cut: int | None) -> tuple[float, float]:
    """The paper's definition with sets of positions, and eval.py's conventions for what is missing."""
    recalled = good = total = 0
    for sentence in one.sentences:
        if not sentence.passages or None in sentence.passages:
            continue
        cited = [set(passage or "") for passage in sentence.passages][:cut]
        need = set(sentence.claim)
        total += len(cited)
        if not need <= set().union(*cited):
            continue
        recalled += 1
        for letters in cited:
            others = list(cited)
            others.remove(letters)
            irrelevant = not need <= letters and need <= set().union(*others)
            good += len(cited) == 1 or not irrelevant
    return recalled / len(one.sentences), good / total if total else 0.0


@given(ANSWERS, st.sampled_from([None, 3]))
def test_alce_against_the_definition_written_out_again(answers: list[CitedAnswer], cut: int | None):
    found = measure(answers, by_letters, Variant.ALCE, cut)
    expected = [(one.item, *written_out_again(one, cut)) for one in answers if one.sentences]
    assert found.recall.defined == tuple((item, pytest.approx(recall)) for item, recall, _ in expected)
    assert found.precision.defined == tuple((item, pytest.approx(precision)) for item, _, precision in expected)


@given(ANSWERS, st.sampled_from(list(Variant)), st.sampled_from([None, 1, 3]), st.randoms(use_true_random=False))
def test_properties(answers: list[CitedAnswer], variant: Variant, cut: int | None, random):
    table = {query: by_letters(query) for query in queries_of(answers, cut)}
    found = measure(answers, table, variant, cut)
    for mean in (found.recall, found.precision):
        assert all(0 <= value <= 1 for _, value in mean.defined)
        assert len(mean.defined) + len(mean.undefined) == len(answers)
    shuffled = list(answers)
    random.shuffle(shuffled)
    again = measure(shuffled, table, variant, cut)
    assert again.recall.value == found.recall.value
    assert again.precision.value == found.precision.value


@given(ANSWERS)
def test_where_nothing_is_unknown_doubled_or_missing_the_variants_agree(answers: list[CitedAnswer]):
    plain = [
        one for one in answers
        if all(None not in s.passages and len(set(s.passages)) == len(s.passages) for s in one.sentences)
        and any(s.passages for s in one.sentences)
    ]  # fmt: skip
    assert measure(plain, by_letters, Variant.ALCE).precision.value == measure(plain, by_letters).precision.value
