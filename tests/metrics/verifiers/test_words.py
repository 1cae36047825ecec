"""Words in one form, and evidence in sentences and chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.verifiers.evidence import chunk_spans, sentence_spans
from realign_cluster.metrics.verifiers.words import stem_of, words_of


@pytest.mark.parametrize(
    "alike",
    [
        ("1,200", "1200"),
        ("12", "twelve", "Twelve"),
        ("1990s", "1990"),
        ("19th", "19", "nineteen"),
        ("Zoë's", "zoe", "Zoe’s"),
        ("invents", "invented", "inventing"),
        ("cities", "city"),
        ("Straße", "strasse"),
    ],
)
def test_forms_of_one_word_are_one_stem(alike: tuple[str, ...]):
    assert len({stem_of(word) for word in alike}) == 1


@pytest.mark.parametrize("apart", [("1.2", "12"), ("1,2", "12"), ("2018", "2019"), ("cat", "car"), ("B2B", "b")])
def test_other_words_are_not(apart: tuple[str, ...]):
    assert len({stem_of(word) for word in apart}) == len(apart)


def test_what_a_word_is():
    words = {word.text: word for word in words_of("Not the 3rd B2B deal of Anna wasn't 1,200.50 euros.")}
    assert [text for text, word in words.items() if word.is_number] == ["3rd", "1,200.50"]
    assert [text for text, word in words.items() if word.is_negation] == ["Not", "wasn't"]
    content = [text for text, word in words.items() if word.is_content]
    assert content == ["3rd", "B2B", "deal", "Anna", "1,200.50", "euros"]
    assert words["1,200.50"].stem == "1200.50"


@given(st.text())
def test_any_text_has_words_with_stems(text: str):
    assert all(word.stem for word in words_of(text))


def sentences(text: str) -> list[str]:
    return [span.of(text) for span in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. J. Smith met Mr. Jones. They spoke.", ["Dr. J. Smith met Mr. Jones.", "They spoke."]),
        ("It cost 3.5 million in the U.S. Army.", ["It cost 3.5 million in the U.S. Army."]),
        ('He said "Go." Then left.', ['He said "Go."', "Then left."]),
        ("# Heading\n\nText\nmore text", ["# Heading", "Text", "more text"]),
        ("e.g. this stays. But this ends", ["e.g. this stays.", "But this ends"]),
        ("the ostrel mine salt. the gorwim sell soap.", ["the ostrel mine salt.", "the gorwim sell soap."]),
        ("  \n ", []),
    ],
)
def test_sentences(text: str, parts: list[str]):
    assert sentences(text) == parts


TEXTS = st.text(alphabet="ab .\nA!", max_size=120)


@given(text=TEXTS, limit=st.integers(1, 40), overlap=st.integers(0, 3))
def test_chunks_hold_all_of_the_evidence_and_fit(text: str, limit: int, overlap: int):
    chunks = chunk_spans(text, max_characters=limit, overlap_sentences=overlap)
    assert all(0 < chunk.end - chunk.start <= limit for chunk in chunks)
    held = {at for chunk in chunks for at in range(chunk.start, chunk.end)}
    assert {at for at, letter in enumerate(text) if not letter.isspace()} <= held
    places = [(chunk.start, chunk.end) for chunk in chunks]
    assert places == sorted(set(places))
    assert all(after[1] > before[1] for before, after in itertools.pairwise(places))


def test_chunks_overlap_by_sentences():
    text = "Aa aa. Bb bb. Cc cc. Dd dd."
    assert [chunk.of(text) for chunk in chunk_spans(text, max_characters=13)] == [
        "Aa aa. Bb bb.",
        "Bb bb. Cc cc.",
        "Cc cc. Dd dd.",
    ]
    assert [chunk.of(text) for chunk in chunk_spans(text, max_characters=13, overlap_sentences=0)] == [
        "Aa aa. Bb bb.",
        "Cc cc. Dd dd.",
    ]
    with pytest.raises(ValueError, match="at least one"):
        chunk_spans(text, max_characters=0)
