"""FActScore and F1@K by hand, and FActScore's own figures from its human labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.factuality import Fact, JudgedFacts, f1_at, factscore, supported_or_silent
from realign_cluster.metrics.hallucination import ClaimVerdict, JudgedClaims, hallucination
from realign_cluster.metrics.hedging import ABSTAINS, stance
from realign_cluster.metrics.measured import ItemId

from .real_data import rows_of

S, N, X = Fact.SUPPORTED, Fact.NOT_SUPPORTED, Fact.IRRELEVANT


def judged(*answers: Sequence[Fact] | None) -> list[JudgedFacts]:
    return [
        JudgedFacts(item=ItemId(str(number)), facts=None if facts is None else tuple(facts))
        for number, facts in enumerate(answers)
    ]


def test_factscore_by_hand():
    found = factscore(judged([S, S, N], [S, X], None, []))
    assert found.score.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.score.undefined == ("3",)
    assert found.abstained == ("2",)
    assert found.respond_ratio == 3 / 4


def test_an_abstention_says_nothing_unsupported():
    """Refusing where things were made up is better, the other way round worse; FActScore sees neither."""
    found = supported_or_silent(judged([S, S, N], [N, X], None, []))
    assert found.defined == (("0", pytest.approx(2 / 3)), ("1", 0.0), ("2", 1.0))
    assert found.undefined == ("3",)
    refusing, inventing = supported_or_silent(judged([S], None)), supported_or_silent(judged([S], [N]))
    assert (refusing.value, inventing.value) == (1.0, 0.5)
    assert factscore(judged([S], None)).score.defined == (("0", 1.0),)


def test_irrelevant_facts_left_out_is_another_metric_with_another_name():
    answers = judged([S, X], [X, X])
    found = factscore(answers, irrelevant="left_out")
    assert found.score.defined == (("0", 1.0),)
    assert found.score.undefined == ("1",)
    assert found.score.metric != factscore(answers).score.metric


def test_length_penalty():
    """exp(1 - 10 / n) up to 10 facts, where it is 1."""
    found = factscore(judged([S] * 5, [S] * 10, [S] * 11), gamma=10)
    assert [value for _, value in found.score.defined] == pytest.approx([math.exp(-1), 1, 1])
    assert "gamma 10" in found.score.metric


def test_nothing_to_measure_is_undefined():
    found = factscore([])
    assert found.score.value is None
    assert found.respond_ratio is None
    only_refusals = factscore(judged(None, None))
    assert only_refusals.score.value is None
    assert only_refusals.respond_ratio == 0


@pytest.mark.parametrize(
    ("k", "facts", "value"),
    [
        (4, [S, S, N, N], 1 / 2),  # P 1/2, R 1/2
        (2, [S, S, S, N], 2 * (3 / 4) / (3 / 4 + 1)),  # R is capped at 1
        (4, [S, X, X], 2 * (1 / 4) / (1 + 1 / 4)),  # irrelevant facts do not count
        (4, [N], 0), (4, [], 0), (4, None, 0),
    ],
)  # fmt: skip
def test_f1_at_k(k: int, facts: Sequence[Fact] | None, value: float):
    assert f1_at(k, judged(facts)).value == pytest.approx(value)
    assert f1_at(k, judged(facts)).metric == f"F1@{k}"


def test_f1_at_k_without_answers_and_without_k():
    assert f1_at(3, []).value is None
    with pytest.raises(ValueError, match="at least 1"):
        f1_at(0, [])


@given(st.lists(st.none() | st.lists(st.sampled_from(list(Fact)), max_size=12), max_size=8), st.permutations(range(8)))
def test_properties(answers: list[list[Fact] | None], order: list[int]):
    all_ = judged(*answers)
    shuffled = [all_[place] for place in order if place < len(all_)]
    for measure in (factscore, lambda some: factscore(some, "left_out"), lambda some: factscore(some, gamma=10)):
        score = measure(all_).score
        assert all(0 <= value <= 1 for _, value in score.defined)
        assert measure(shuffled).score.value == score.value
    f1 = f1_at(5, all_)
    assert all(0 <= value <= 1 for _, value in f1.defined)
    assert f1_at(5, shuffled).value == f1.value


class TestHallucination:
    def judged(self, *answers: str) -> list[JudgedClaims]:
        """s, c, u for supported, contradicted, unverifiable."""
        verdicts = {verdict.value[0]: verdict for verdict in ClaimVerdict}
        return [
            JudgedClaims(item=ItemId(str(number)), verdicts=tuple(verdicts[letter] for letter in answer))
            for number, answer in enumerate(answers)
        ]

    def test_by_hand(self):
        found = hallucination(self.judged("sscu", "s", "", "u"))
        assert found.rate.value == 3 / 6  # pooled; the mean over answers would be 1/2, 0, 1
        assert found.contradicted.value == 1 / 6
        assert found.unverifiable.value == 2 / 6
        assert found.answers_with_any.value == pytest.approx(2 / 3)
        assert found.rate.defined == (("0", 2, 4), ("1", 0, 1), ("3", 1, 1))
        assert found.rate.undefined == found.answers_with_any.undefined == ("2",)

    def test_whoever_refuses_everything_has_no_rate(self):
        found = hallucination(self.judged("", ""))
        assert found.rate.value is None
        assert found.answers_with_any.value is None
        assert len(found.rate.undefined) == 2

    @given(st.lists(st.text(alphabet="scu", max_size=6), max_size=8))
    def test_the_two_kinds_add_up(self, answers: list[str]):
        found = hallucination(self.judged(*answers))
        if found.rate.value is not None:
            assert found.rate.value == pytest.approx(found.contradicted.value + found.unverifiable.value)
            assert 0 <= found.rate.value <= 1
            assert found.rate.denominator == sum(map(len, answers))


@pytest.mark.data
def test_the_figures_of_factscore():
    """0.5830 over 157 of 183 answers comes out with irrelevant facts counted as not supported, and only so."""
    answers = []
    for number, row in enumerate(rows_of("factscore_chatgpt.jsonl")):
        facts = None
        if row["annotations"] is not None:
            facts = tuple(Fact(f["label"]) for s in row["annotations"] for f in s.get("human-atomic-facts") or ())
        answers.append(JudgedFacts(item=ItemId(str(number)), facts=facts))
    found = factscore(answers)
    assert len(found.score.defined) == 157
    assert len(answers) == 183
    assert found.score.value == pytest.approx(0.5830, abs=5e-5)
    assert found.respond_ratio == pytest.approx(0.858, abs=5e-4)
    assert factscore(answers, irrelevant="left_out").score.value == pytest.approx(0.6233, abs=5e-5)


@pytest.mark.data
def test_the_abstentions_of_factscore_are_read_from_the_text():
    """Its annotators marked 26 of 183 answers as not answering."""
    for row in rows_of("factscore_chatgpt.jsonl"):
        assert (stance(row["output"]) in ABSTAINS) == (row["annotations"] is None), row["output"]
