"""Which sentences claim something, how a sentence of two claims is split, and what vouches for each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.citations import read_citations
from realign_cluster.metrics.claims import body_sentences, extract_claims
from realign_cluster.metrics.measured import ItemId, SourceId
from realign_cluster.metrics.reading import cited_answers, read_answer
from realign_cluster.metrics.sentence_roles import Role, role_of

from .real_data import rows_of


@pytest.mark.parametrize(
    ("sentence", "role"),
    [
        ("Paris is the capital of France [1].", Role.CLAIM),
        ("It is in Peru.", Role.CLAIM),
        ("Please note that the tower was closed in 1990 [2].", Role.CLAIM),
        ("- **Poor growth** occurs in children[2]", Role.CLAIM),
        ("He asked, “What is this?”", Role.CLAIM),
        ("Its author is unknown.", Role.CLAIM),
        ("The court found no evidence of fraud.", Role.CLAIM),
        ("It does not contain lead.", Role.CLAIM),
        ("What is the capital of France?", Role.QUESTION),
        ('"What is this?"', Role.QUESTION),
        ("I don't know.", Role.ABSTENTION),
        ("I’m sorry, but I couldn’t find any notable person with that name.", Role.ABSTENTION),
        ("The provided passages do not explicitly mention her birthplace [1].", Role.ABSTENTION),
        ("This cannot be determined from the given context.", Role.ABSTENTION),
        ("There is not enough information to answer the question.", Role.ABSTENTION),
        ("Her birthplace is not stated in the sources.", Role.ABSTENTION),
        ("None of the documents mentions it.", Role.ABSTENTION),
        ("Unknown.", Role.ABSTENTION),
        ("Sure, here you go!", Role.FILLER),
        ("I hope this helps.", Role.FILLER),
        ("Please let me know if you have other questions.", Role.FILLER),
        ("It depends on many different factors.", Role.HEDGE),
        ("It may perhaps be so in some cases.", Role.HEDGE),
        ("I think that the tower is beautiful.", Role.OPINION),
        ("Consider talking to a doctor.", Role.INSTRUCTION),
        ("Then carefully remove the bag from the box.", Role.INSTRUCTION),
        ("The advantages of a sample include:", Role.LEAD_IN),
        ("1[1].", Role.FRAGMENT),
        ("Quadrature Encoder", Role.FRAGMENT),
    ],
)
def test_roles(sentence: str, role: Role):
    assert role_of(sentence) is role


def claims(text: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(claim.text, claim.keys) for claim in extract_claims(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It lies in Peru [1]. Is it high? I hope this helps!", [("It lies in Peru.", ("1",))]),
        ("The tower was built in 1990 [1], and the bridge was built in 1991 [2].",
         [("The tower was built in 1990", ("1",)), ("the bridge was built in 1991.", ("2",))]),
        ("The tower was built in 1990, but it was closed in 1991. [1, 2]",
         [("The tower was built in 1990", ("1", "2")), ("it was closed in 1991.", ("1", "2"))]),
        ("The tower was built in 1990 [1]; it was closed in 1991.",
         [("The tower was built in 1990", ("1",)), ("it was closed in 1991.", ())]),
        ("She said that it was old, and it was sold [1].", [("She said that it was old, and it was sold.", ("1",))]),
        ("As it was old, and it was ugly, it was sold.", [("As it was old, and it was ugly, it was sold.", ())]),
        ("- **Pain** occurs in bones[2]", [("Pain occurs in bones", ("2",))]),
        ("J. Smith was born in Rome.", [("J. Smith was born in Rome.", ())]),
        ("It holds tea, coffee, and the usual things.", [("It holds tea, coffee, and the usual things.", ())]),
        ("I am not sure, but Paris is the capital of France.", [("Paris is the capital of France.", ())]),
        ("# Paris is a head\n```\nParis is code.\n```\nParis is big [1].\n\nReferences\n[1] Paris is a book.",
         [("Paris is big.", ("1",))]),
    ],
)  # fmt: skip
def test_claims_with_what_they_cite(text: str, expected: list[tuple[str, tuple[str, ...]]]):
    assert claims(text) == expected


@given(
    st.lists(st.sampled_from(["Paris is big", " [1]", "[2]", ". ", ", and it was old", "; the town has a river", "? ",
                              "I don't know", "\n", "(Smith, 2020)", "Perhaps", "1. ", ": "]), max_size=25).map("".join)
)  # fmt: skip
def test_claims_lie_in_order_within_sentences_of_the_body(text: str):
    sentences = body_sentences(text, read_citations(text))
    at = 0
    for claim in extract_claims(text):
        assert claim.begin >= at
        assert claim.sentence in sentences
        assert claim.sentence.begin <= claim.begin < claim.end <= claim.sentence.end
        assert claim.text
        at = claim.end


def test_a_read_answer_has_sentences_claims_and_unknown_ids():
    text = "Hello! The tower is old [1][9]. It was built in 1990. [2] I hope this helps."
    answer = read_answer(ItemId("x"), text, {"1": SourceId("a"), "2": SourceId("b")})
    assert [(one.claim, one.sources) for one in answer.sentences] == [
        ("Hello!", ()), ("The tower is old.", ("a", None)), ("It was built in 1990.", ("b",)),
        ("I hope this helps.", ()),
    ]  # fmt: skip
    assert [(one.text, one.sources) for one in answer.claims] == [
        ("The tower is old.", ("a", None)), ("It was built in 1990.", ("b",)),
    ]  # fmt: skip
    assert answer.cited == {"a", "b"}
    assert [(text[mark.begin : mark.end], key) for mark, key in answer.unknown] == [("[9]", "9")]
    (cited,) = cited_answers([answer], {SourceId("a"): "text of a"})
    assert [sentence.passages for sentence in cited.sentences] == [(), ("text of a", None), (None,), ()]


@pytest.mark.parametrize("text", ["", "  \n", "```\ncode\n```", "# Head", "[1]", "References\n[1] A book"])
def test_an_answer_without_sentences_claims_nothing(text: str):
    answer = read_answer(ItemId("x"), text, {"1": SourceId("a")})
    assert answer.sentences == ()
    assert answer.claims == ()


@pytest.mark.data
def test_most_sentences_of_expertqa_claim_something():
    """The answers of experts' questions are prose about facts; a rule that dropped them would show here."""
    sentences = found = 0
    for row in rows_of("expertqa_rand_val.jsonl"):
        for answer in row["answers"].values():
            text = answer["answer_string"]
            sentences += len(body_sentences(text, read_citations(text)))
            found += len({claim.sentence for claim in extract_claims(text)})
    assert sentences > 1200
    assert 0.85 < found / sentences < 0.97
