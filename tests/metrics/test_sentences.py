"""Where sentences end, on cases that a full stop alone gets wrong, and on answers that people have cut into claims."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.sentences import Kind, split_sentences

from .real_data import rows_of


def cut(text: str) -> list[str]:
    return [text[sentence.begin : sentence.end] for sentence in split_sentences(text)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. J. K. Rowling met Mr. Smith Jr. in St. Louis.", "She left."],
        ["The U.S. Army came from the U.S.", "It left at 5 p.m. on Monday.", "The end."],
        ["It is 3.14 long, e.g. 1.5 m or i.e. 2.", "Version 2.0.1 is out."],
        ["Apple Inc. was founded in 1976.", "He owned Apple Inc.", "However, he sold it."],
        ["Smith et al. (2020) say so; see Fig. 3 and No. 5.", "She said no.", "Vitamin C.", "Plan B."],
        ["It was found c. 1990 by Prof. Lee, Ph.D., of the univ. there.", "Etc."],
        ["Was it Smith et al?", "Paris says so.", "By J. K?", "Yes."],
        ["What?", "Really!", "Wait... what?", "He paused…", "Then he went.", "Stop!!", "Why?!"],
        ['He said "Stop! Now." and left.', '"Why?"', "She asked.", "“It is so.”", "Yes."],
        ["See https://a.b/c.html?x=1.2 or www.d.org.", "Use `a.b. C` now.", "Read [a. B](http://x.y/z)."],
        ["He went (to Rome. Then home).", "(He came. He saw.)", "Next."],
        ["これは文。", "次の文！", "End."],
    ],
)  # fmt: skip
def test_one_paragraph(sentences: list[str]):
    assert cut(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["It opened in 1990. [1]", "Next came it.[2][3]", "Then more. [4, 5]", "End."],
        ["It opened.[^1]", "It grew. (Smith, 2020)", "It closed.¹", "It fell.<sup>2</sup>", "End."],
        ["It opened [1].", "[2] says that it closed.", "[3], too."],
        ["It covers 5 m².", "It has 10⁶ cells."],
        ['He said "it opened." [1]', "It did."],
    ],
)
def test_citations_after_the_full_stop_belong_to_the_sentence_before(sentences: list[str]):
    assert cut(" ".join(sentences)) == sentences


def test_a_citation_after_the_full_stop_before_a_small_letter_opens_the_next():
    assert cut("It opened. [2] shows that it did.") == ["It opened.", "[2] shows that it did."]


def test_blocks():
    text = "# A head. Ing\nIntro:\n1. First. It is.\n2. Second\n- Third e.g. this\n\n"
    text += "```py\na. B\n\nC. D\n```\n| a. B | c |\nEnd."
    kinds = [(text[s.begin : s.end], s.kind) for s in split_sentences(text)]
    assert kinds == [
        ("# A head. Ing", Kind.HEADING),
        ("Intro:", Kind.PROSE),
        ("1. First.", Kind.PROSE),
        ("It is.", Kind.PROSE),
        ("2. Second", Kind.PROSE),
        ("- Third e.g. this", Kind.PROSE),
        ("```py\na. B\n\nC. D\n```", Kind.CODE),
        ("| a. B | c |", Kind.TABLE),
        ("End.", Kind.PROSE),
    ]


def test_wrapped_lines_go_on_and_ended_ones_do_not():
    long = "This line was wrapped because it had come to the margin of the"
    assert cut(f"{long}\nUniversity page. More.") == [f"{long}\nUniversity page.", "More."]
    assert cut("Roses\nViolets\nand thorns") == ["Roses", "Violets\nand thorns"]


def test_a_text_without_capitals():
    text = "vor lives in kal [1] . mo was born e.g. in zu . [2] dun is 3.5 old."
    assert cut(text) == ["vor lives in kal [1] .", "mo was born e.g. in zu . [2]", "dun is 3.5 old."]


def test_a_list_within_a_sentence():
    assert cut("Steps: 1. Mix. 2. Bake. See Fig. 3. It works.") == [
        "Steps: 1. Mix.",
        "2. Bake.",
        "See Fig. 3.",
        "It works.",
    ]


PIECES = st.sampled_from(
    ["It is so", "Dr", "e.g", "3", "A", "the", "http://a.b", "code", ".", ". ", "! ", "? ", "… ", "[1]", " [2, 3]",
     "(Smith, 2020)", "[^a]", "²", "\n", "\n\n", "\n- ", "\n1. ", "```", "`", '"', "”", "(", ")", "[", "]", ":", "# ",
     "|",
     "。", " ", "\t"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=200))
def test_nothing_is_lost(text: str):
    at = 0
    for sentence in split_sentences(text):
        assert sentence.begin >= at
        assert not text[at : sentence.begin].strip()
        piece = text[sentence.begin : sentence.end]
        assert piece
        assert piece == piece.strip()
        at = sentence.end
    assert not text[at:].strip()


HOSTILE = ["(A B C ", "[1, ", "a. B. ", "((((", '"A. b ', "[^", "a. [1] B. ", "(Smith, 2020) ", "```", "- ", "`a"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_long_and_hostile_texts_take_no_time(piece: str):
    began = time.process_time()
    split_sentences(piece * (40_000 // len(piece)))
    assert time.process_time() - began < 4.0


@pytest.mark.data
def test_against_the_claims_of_expertqa():
    """Its claims are spaCy's sentences of answers by six systems. spaCy breaks at list markers and joins paragraphs,
    which is what most of the difference is; where an answer is plain prose nearly all sentences are the same.
    """
    same = all_ = same_in_prose = all_in_prose = 0
    for row in rows_of("expertqa_rand_val.jsonl"):
        for answer in row["answers"].values():
            text = answer["answer_string"]
            mine = {letters for piece in cut(text) if (letters := re.sub(r"\W", "", piece))}
            theirs = {letters for one in answer["claims"] if (letters := re.sub(r"\W", "", one["claim_string"]))}
            all_ += len(theirs)
            same += len(mine & theirs)
            if "\n" not in text.strip() and ":" not in text:
                all_in_prose += len(theirs)
                same_in_prose += len(mine & theirs)
    assert all_ > 1000
    assert same / all_ > 0.92
    assert all_in_prose > 300
    assert same_in_prose / all_in_prose > 0.98
