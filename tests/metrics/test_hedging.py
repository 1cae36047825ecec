"""Who abstains, on what, and the curve of risk against coverage."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.abstention_phrases import PHRASES, is_abstaining
from realign_cluster.metrics.hedging import Answered, Stance, hedging, risk_coverage, stance
from realign_cluster.metrics.measured import ItemId

EACH_PHRASE = [
    "We really can't tell you more about it.",
    "I do not have enough reliable information.",
    "I found no such idea.",
    "I'm not sure.",
    "Sorry, no.",
    "The passages do not clearly mention it.",
    "From the given context, there is no direct information on it.",
    "Not enough information is given.",
    "This cannot be determined from the sources.",
    "It is not stated in the passage.",
    "None of the sources says so.",
    "Unanswerable.",
    "The question is unanswerable as it stands.",
]


@pytest.mark.parametrize("sentence", EACH_PHRASE)
def test_phrases(sentence: str):
    assert is_abstaining(sentence)


def test_each_phrase_has_an_example():
    assert len(EACH_PHRASE) == len(PHRASES)


@pytest.mark.parametrize(
    "sentence",
    [
        "Its author is unknown.",
        "The court found no evidence of fraud.",
        "The law does not mention slavery.",
        "It could not be moved.",
        "He said he was sorry.",
        "There is no direct flight.",
        "The book contains no pictures.",
        "The mineral does not contain lead.",
        "Paris.",
    ],
)
def test_what_claims_something_of_the_world_does_not_abstain(sentence: str):
    assert not is_abstaining(sentence)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris.", Stance.ANSWER),
        ("It is Paris [1].", Stance.ANSWER),
        ("It may be Paris.", Stance.ANSWER),
        ("I don't know.", Stance.ABSTENTION),
        ("I could not find it [1][2].", Stance.ABSTENTION),
        ("I'm sorry, but I couldn't find her. There may be many of that name. Could you say more?",
         Stance.ABSTENTION),
        ("I'm not sure, but Paris is the capital of France.", Stance.PARTIAL),
        ("The passages do not mention her birth. She died in Rome [2].", Stance.PARTIAL),
        ("She died in Rome. She was a painter. The passages do not mention her birth.", Stance.PARTIAL),
        ("I cannot provide it. " + "She painted the town again. " * 3, Stance.PARTIAL),
        ("I cannot provide a chart.\n```\nprint(1)\n```", Stance.PARTIAL),
        ("", Stance.EMPTY),
        (" \n...", Stance.EMPTY),
    ],
)  # fmt: skip
def test_stances(text: str, expected: Stance):
    assert stance(text) is expected


@given(
    st.lists(st.sampled_from(["Paris is big", "[1]", ". ", "I don't know", "\n", "# x", "```", "?", "1. "])).map(
        "".join
    )
)
def test_every_text_has_a_stance(text: str):
    assert (stance(text) is Stance.EMPTY) == (not any(character.isalnum() for character in text))


def test_a_refuse_everything_model_is_caught():
    answers = [Answered(item=ItemId(str(n)), answerable=n < 6, stance=Stance.ABSTENTION) for n in range(10)]
    found = hedging(answers)
    assert found.over_abstention.value == 1
    assert len(found.over_abstention.defined) == 6
    assert found.answers_on_unanswerable.value == 0


def test_hedging_by_hand():
    stances = [Stance.ANSWER, Stance.PARTIAL, Stance.ABSTENTION, Stance.EMPTY]
    answers = [
        Answered(item=ItemId(f"{n}{a}"), answerable=a, stance=s) for a in (True, False) for n, s in enumerate(stances)
    ]
    found = hedging(answers)
    assert [value for _, value in found.over_abstention.defined] == [0, 0, 1, 1]
    assert [value for _, value in found.answers_on_unanswerable.defined] == [1, 1, 0, 0]
    assert hedging(answers[:4]).answers_on_unanswerable.value is None
    assert hedging([]).over_abstention.value is None


class TestRiskCoverage:
    def test_by_hand(self):
        found = risk_coverage([(0.9, True), (0.8, False), (0.7, True), (0.6, False)])
        assert found.points == ((1 / 4, 0), (2 / 4, 1 / 2), (3 / 4, 1 / 3), (1, 1 / 2))
        assert found.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)

    def test_ties_are_one_point_and_the_mean_of_their_orders(self):
        outcomes = [True, False, False]
        found = risk_coverage([(0.5, right) for right in outcomes])
        assert found.points == ((1, 2 / 3),)
        areas = []
        for order in permutations(outcomes):
            areas.append(sum(order[:n].count(False) / n for n in (1, 2, 3)) / 3)
        assert found.area == pytest.approx(sum(areas) / len(areas))

    def test_no_items_and_no_number(self):
        assert risk_coverage([]).area is None
        with pytest.raises(ValueError, match="not a number"):
            risk_coverage([(float("nan"), True)])

    @given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans()), min_size=1), st.randoms())
    def test_properties(self, items: list[tuple[float, bool]], random):
        found = risk_coverage(items)
        shuffled = list(items)
        random.shuffle(shuffled)
        assert risk_coverage(shuffled) == found
        assert 0 <= found.area <= 1
        assert found.points[-1] == (1, sum(not right for _, right in items) / len(items))
