"""Citations in every form, what is none, bibliographies, resolving, and the text without them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.metrics.citation_marks import Form, find_marks, work_key
from realign_cluster.metrics.citations import (
    CitationFormat,
    format_agreement,
    in_format,
    known_by_number,
    read_citations,
    resolve,
    strip_citations,
)
from realign_cluster.metrics.measured import ItemId, SourceId

from .real_data import rows_of

THREE = known_by_number([SourceId("a"), SourceId("b"), SourceId("c")])


def found(text: str) -> list[tuple[str, Form, tuple[str, ...]]]:
    return [(text[mark.begin : mark.end], mark.form, mark.keys) for mark in find_marks(text)]


@pytest.mark.parametrize(
    ("text", "mark", "form", "keys"),
    [
        ("so [1].", "[1]", Form.BRACKET, ("1",)),
        ("so[12]", "[12]", Form.BRACKET, ("12",)),
        ("so [1, 2; 4].", "[1, 2; 4]", Form.BRACKET, ("1", "2", "4")),
        ("so [1-3].", "[1-3]", Form.BRACKET, ("1", "2", "3")),
        ("so [1–2, 5].", "[1–2, 5]", Form.BRACKET, ("1", "2", "5")),
        ("so [[3]].", "[[3]]", Form.BRACKET, ("3",)),
        ("so [3](https://a.b/c).", "[3](https://a.b/c)", Form.BRACKET, ("3",)),
        ("so (Smith, 2020).", "(Smith, 2020)", Form.AUTHOR_PARENTHESIS, ("smith 2020",)),
        ("so (Smith & Lee, 2020a).", "(Smith & Lee, 2020a)", Form.AUTHOR_PARENTHESIS, ("smith 2020a",)),
        ("so (see Müller et al., 2019; Lee 2021).", "(see Müller et al., 2019; Lee 2021)", Form.AUTHOR_PARENTHESIS,
         ("muller 2019", "lee 2021")),
        ("so (van der Berg, 1999, p. 12).", "(van der Berg, 1999, p. 12)", Form.AUTHOR_PARENTHESIS,
         ("van der berg 1999",)),
        ("so [Author 2020].", "[Author 2020]", Form.AUTHOR_BRACKET, ("author 2020",)),
        ("so [Smith and Jones, 2020; Lee, n.d.].", "[Smith and Jones, 2020; Lee, n.d.]", Form.AUTHOR_BRACKET,
         ("smith 2020", "lee n.d.")),
        ("so.[^1]", "[^1]", Form.FOOTNOTE, ("1",)),
        ("so.[^note-a]", "[^note-a]", Form.FOOTNOTE, ("note-a",)),
        ("it is so.¹²", "¹²", Form.SUPERSCRIPT, ("12",)),
        ("it holds³ now", "³", Form.SUPERSCRIPT, ("3",)),
        ("it holds<sup>2, 3</sup> now", "<sup>2, 3</sup>", Form.SUPERSCRIPT, ("2", "3")),
        ("so [1.", "[1", Form.MALFORMED, ("1",)),
    ],
)  # fmt: skip
def test_forms(text: str, mark: str, form: Form, keys: tuple[str, ...]):
    assert found(text) == [(mark, form, keys)]


@pytest.mark.parametrize(
    "text",
    [
        "an area of 5 m² or 3 km², and x² + y³, 10⁶ cells", "[sic] [a] [see p. 5] [1990] [1990-2020] [3-1] [1-100]",
        "sin⁻¹ of sin²", "x = [1, 2] and f([3])", "in (June 2018) or [Oct. 2014]",
        "(in 2020) (2020) (1) (the year 1999)", "`x[1]` and\n```\ny[2]\n```\n", "Smith (2020) found it", "[^1]: a text",
    ],
)  # fmt: skip
def test_what_is_no_citation(text: str):
    assert found(text) == []


def test_neighbours_are_marks_of_their_own():
    assert [keys for _, _, keys in found("so [1][2] and [3] [4].")] == [("1",), ("2",), ("3",), ("4",)]


def test_work_keys_are_the_same_however_the_author_is_written():
    assert (
        work_key("Müller, H.", "2019")
        == work_key("Müller et al.", "2019")
        == work_key("Hans Müller and B. Lee", "2019")
    )


class TestBibliography:
    def test_a_section_cites_nothing_and_says_what_keys_stand_for(self):
        text = "It is so [1]. It was [2].\n\n## References\n[1] Smith, J. The book. https://a.b/c\n2. Lee. Other.\n"
        citations = read_citations(text)
        assert [mark.keys for mark in citations.marks] == [("1",), ("2",)]
        assert [(entry.key, entry.text) for entry in citations.entries] == [
            ("1", "Smith, J. The book. https://a.b/c"), ("2", "Lee. Other."),
        ]  # fmt: skip
        assert text[citations.body_end :].startswith("## References")

    def test_entries_at_the_end_need_no_heading(self):
        citations = read_citations("It is so [1].\n\n[1] A book\n[2]: Another\n")
        assert [entry.key for entry in citations.entries] == ["1", "2"]
        assert len(citations.marks) == 1

    def test_the_word_sources_alone_is_no_bibliography(self):
        citations = read_citations("Sources:\nIt is so [1]. There is much more to say of it.")
        assert len(citations.marks) == 1

    def test_texts_of_footnotes(self):
        citations = read_citations("It is so.[^1]\n\n[^1]: A book, see [2].\n\nIt goes on.[^2]")
        assert [mark.keys for mark in citations.marks] == [("1",), ("2",)]
        assert [(entry.key, entry.text) for entry in citations.entries] == [("1", "A book, see [2].")]

    def test_works_by_author(self):
        citations = read_citations(
            "So (Smith, 2020).\n\n**References**\n- Smith, J. (2020). The book.\n- Lee, A. 2019. It."
        )
        assert [entry.key for entry in citations.entries] == ["smith 2020", "lee 2019"]


class TestResolving:
    def sources(self, text: str, known: dict[str, SourceId]) -> list[SourceId | None]:
        return [source for one in resolve(read_citations(text), known) for source in one.sources]

    def test_by_number_with_unknown_ids_reported(self):
        resolved = resolve(read_citations("So [1, 7]. And [0][3]."), THREE)
        assert [one.sources for one in resolved] == [("a", None), (None,), ("c",)]
        assert [one.unknown for one in resolved] == [("7",), ("0",), ()]

    def test_by_work(self):
        assert self.sources("So (Smith, 2020; Lee, 2020).", {"Smith 2020": SourceId("s")}) == ["s", None]

    def test_a_place_and_a_year_cite_nothing_where_no_work_is_known(self):
        text = "He exhibited (London, 1999) [1]."
        assert self.sources(text, THREE) == ["a"]
        assert self.sources(text, THREE | {"smith 2020": SourceId("s")}) == [None, "a"]

    def test_the_entry_of_the_answer_says_which_source_is_meant(self):
        """Numbered as the answer likes: its [1] is the prompt's second source."""
        known = THREE | {"https://b.org/page": SourceId("b"), "The Great Book of Things": SourceId("c")}
        text = "So [1]. And [2].\n\nReferences\n[1] https://www.b.org/page/\n[2] Lee, the great book of things, 1999"
        assert self.sources(text, known) == ["b", "c"]

    def test_an_entry_that_nobody_knows_leaves_the_number(self):
        assert self.sources("So [2].\n\nReferences\n[2] Something made up", THREE) == ["b"]


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("It is so [1].", "It is so."),
        ("It is so. [1][2]", "It is so."),
        ("It is [1], as he says [2, 3], so (Smith, 2020).", "It is, as he says, so."),
        ("It is so.[^1]", "It is so."),
        ("It covers 5 m² (in 2020).", "It covers 5 m² (in 2020)."),
        ("According to one[3](https://a.b), it is.", "According to one, it is."),
        ("no citation", "no citation"),
    ],
)
def test_the_text_without_citations(text: str, bare: str):
    assert strip_citations(text) == bare


@given(st.text(alphabet="ab .,[]()123^-;\n", max_size=60))
def test_nothing_but_marks_is_taken_out(text: str):
    marks = find_marks(text)
    assert all(0 <= mark.begin < mark.end <= len(text) and mark.keys for mark in marks)
    assert all(first.end <= second.begin for first, second in pairwise(marks))
    outside = [c for at, c in enumerate(text) if c in "ab" and not any(mark.begin <= at < mark.end for mark in marks)]
    assert [c for c in strip_citations(text) if c in "ab"] == outside


class TestFormat:
    @pytest.mark.parametrize(
        ("text", "wanted", "expected"),
        [
            ("a [1]. b [2, 3]. c (Smith, 2020). d [4.", CitationFormat(), (2, 4)),
            ("a [1]. b [2, 3]. c [4][5].", CitationFormat(several="apart"), (3, 4)),
            ("a [1]. b [2, 3]. c [4][5].", CitationFormat(several="together"), (2, 4)),
            ("a [1]. B. [2] C [3][4]. D. [5][6]", CitationFormat(full_stop="before"), (3, 6)),
            ("a [1]. B. [2] C [3][4]. D. [5][6]", CitationFormat(full_stop="after"), (3, 6)),
            ("a.[^1] b [2]", CitationFormat(form=Form.FOOTNOTE), (1, 2)),
            ("nothing", CitationFormat(), (0, 0)),
        ],
    )
    def test_counts(self, text: str, wanted: CitationFormat, expected: tuple[int, int]):
        assert in_format(text, wanted) == expected

    def test_agreement_is_pooled_and_an_answer_without_citations_is_undefined(self):
        found = format_agreement(
            [(ItemId("x"), "a [1]. b (Lee, 2020)."), (ItemId("y"), "a [1]. b [2]."), (ItemId("z"), "a.")],
            CitationFormat(),
        )
        assert found.value == 3 / 4
        assert found.defined == (("x", 1, 2), ("y", 2, 2))
        assert found.undefined == ("z",)


@pytest.mark.data
def test_the_citations_of_expertqa():
    """What its claims say they cite is what is found in them; all in brackets, and each leads to one of the sources."""
    marks = unknown = agree = claims = 0
    for row in rows_of("expertqa_rand_val.jsonl"):
        for answer in row["answers"].values():
            citations = read_citations(answer["answer_string"])
            assert {mark.form for mark in citations.marks} <= {Form.BRACKET}
            known = {str(n): SourceId(str(n)) for n in range(1, len(answer["attribution"]) + 1)}
            resolved = resolve(citations, known)
            marks += sum(len(mark.keys) for mark in citations.marks)
            unknown += sum(len(one.unknown) for one in resolved)
            for claim in answer["claims"]:
                cited = {key for mark in find_marks(claim["claim_string"]) for key in mark.keys}
                said = {evidence.split("]")[0].strip("[ ") for evidence in claim["evidence"]}
                claims += 1
                agree += cited == said
    assert marks > 1200
    assert unknown / marks < 0.02
    assert agree / claims > 0.95
