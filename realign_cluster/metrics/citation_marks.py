"""How a citation looks in running text: one pattern for each form, and where each mark is.

Knows no source and no sentence. Forms that are read: [1], [1, 2], [1-3], [1][2], [[1]], [1](address); (Author, 2020)
and [Author 2020], several with semicolons; footnotes [^1]; superscripts, as characters or as <sup>1</sup>. A bracket
that opens on a number and is never closed is a citation too, malformed: else it would hide from the format's gate.
A name with its year after it in brackets, as in "Smith (2020) found", is part of the sentence, not a mark.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LONGEST_RANGE: Final = 20  # [1-20]; a longer one is a span of years or of pages
NUMBERS: Final = r"\d{1,3}(?:\s*(?:[,;]|[-–—])\s*\d{1,3})*"
# "van der Berg", "O'Neill", "Smith et al.", "Smith and Jones", "World Health Organization"
AUTHOR: Final = (
    r"(?:(?:van|von|de|der|la|el|al)\s+){0,2}[A-Z][\w'’.-]*"
    r"(?:(?:\s+(?:and|&|of|de|van|der|for)|,?\s+&|,)?\s+[A-Z][\w'’.-]*){0,5}(?:\s+et\s+al\.?)?"
)
# What stands before a year in brackets and is nobody's name: "(June 2018)", "[Oct. 2014]".
NO_AUTHOR: Final = (
    r"(?!(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|January|February|March|April|June|July|August"
    r"|September|October|November|December|Spring|Summer|Autumn|Fall|Winter|Early|Late|Mid|Since|Until|Before|After"
    r"|Circa|In|From|Born|Died|Season|Vol|Photo)\b)"
)
YEAR: Final = r"(?:1[5-9]|20)\d\d[a-z]?"
WORK: Final = rf"{NO_AUTHOR}{AUTHOR},?\s+(?:{YEAR}|n\.d\.)(?:,\s+pp?\.\s*\d+(?:[-–]\d+)?)?"
WORKS: Final = rf"(?:(?:see|cf\.|e\.g\.,?)\s+)?{WORK}(?:\s*;\s*{WORK})*"
SUPERSCRIPT_DIGITS: Final = "⁰¹²³⁴⁵⁶⁷⁸⁹"

PATTERN: Final = re.compile(
    rf"""
      (?P<footnote>\[\^[\w-]+\](?!:))
    | (?P<bracket>\[\[?\s*{NUMBERS}\s*\]\]?(?:\((?:https?://|\#)[^\s()]*\))?)
    | (?P<author_parenthesis>\({WORKS}\))
    | (?P<author_bracket>\[{WORKS}\](?!\())
    | (?P<superscript><sup>\s*\[?{NUMBERS}\]?\s*</sup>|[{SUPERSCRIPT_DIGITS}]+(?:[⁻,˒][{SUPERSCRIPT_DIGITS}]+)*)
    | (?P<malformed>\[\s*\d{{1,3}}(?=\s*(?:[.!?;:](?:\s|$)|$|\n|[A-Za-z]{{3}})))
    """,
    re.VERBOSE,
)
POWER_BEFORE: Final = re.compile(  # m², km², 10⁶, (x + y)², sin², sin⁻¹
    r"(?:^|[^^A-Za-z])(?:[A-Za-z]{1,2}|sin|cos|tan|log)$|[\d)×·⁻]$"
)
ARRAY_BEFORE: Final = re.compile(r"=\s*$|\w\($")  # x = [1, 2]; f([1, 2])


class Form(StrEnum):
    BRACKET = "bracket"
    AUTHOR_PARENTHESIS = "author_parenthesis"
    AUTHOR_BRACKET = "author_bracket"
    FOOTNOTE = "footnote"
    SUPERSCRIPT = "superscript"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """text[begin:end] cites `keys`: digits, or "smith 2020" for a work; of a malformed mark those it seems to mean."""

    begin: int
    end: int
    form: Form
    keys: tuple[str, ...]


def find_marks(text: str) -> tuple[Mark, ...]:
    """Every citation of `text` outside code, in order, never overlapping."""
    code = [match.span() for match in CODE.finditer(text)]
    return tuple(mark for mark in _all_marks(text) if not _within(code, mark.begin))


def _within(spans: list[tuple[int, int]], position: int) -> bool:
    at = bisect_right(spans, position, key=lambda span: span[0]) - 1
    return at >= 0 and position < spans[at][1]


CODE: Final = re.compile(
    r"^(?P<fence>```++|~~~++)[^\n]*\n.*?(?:^(?P=fence)[^\n]*$|\Z)|`[^`\n]{1,300}`", re.MULTILINE | re.DOTALL
)


def work_key(author: str, year: str) -> str:
    """The key of a work: the first author's family name and the year, in lower case and without accents."""
    first = re.split(r"\s+(?:and|&|et)\s+|,", author.strip())[0].strip(" .")
    if not re.search(r"\s(?:of|for)\s", first):
        first = first.rsplit(" ", 1)[-1] if len(first.split()) <= 2 else first
    plain = "".join(c for c in unicodedata.normalize("NFKD", first) if not unicodedata.combining(c))
    return f"{plain.casefold()} {year.casefold()}"


def _all_marks(text: str) -> Iterator[Mark]:
    for match in PATTERN.finditer(text):
        form = Form(str(match.lastgroup))
        keys = _keys(form, match.group())
        if keys and not (form is Form.SUPERSCRIPT and _is_power(text, match)) and not _is_array(text, match):
            yield Mark(begin=match.start(), end=match.end(), form=form, keys=keys)


def _is_power(text: str, match: re.Match[str]) -> bool:
    return not match.group().startswith("<") and bool(
        POWER_BEFORE.search(text[max(0, match.start() - 12) : match.start()])
    )


def _is_array(text: str, match: re.Match[str]) -> bool:
    return match.group().startswith("[") and bool(ARRAY_BEFORE.search(text[max(0, match.start() - 4) : match.start()]))


def _keys(form: Form, mark: str) -> tuple[str, ...]:
    match form:
        case Form.FOOTNOTE:
            return (mark[2:-1],)
        case Form.AUTHOR_PARENTHESIS | Form.AUTHOR_BRACKET:
            return tuple(work_key(author, year) for author, year in WORK_PARTS.findall(mark))
        case Form.SUPERSCRIPT if not mark.startswith("<"):
            return _numbers(mark.translate(PLAIN_DIGITS))
        case _:
            return _numbers(re.sub(r"\]\(.*", "", mark))


WORK_PARTS: Final = re.compile(rf"({AUTHOR}),?\s+({YEAR}|n\.d\.)")
PLAIN_DIGITS: Final = str.maketrans(SUPERSCRIPT_DIGITS + "⁻˒", "0123456789-,")


def _numbers(mark: str) -> tuple[str, ...]:
    """ "1, 3-5" is 1, 3, 4, 5; () if a range runs backwards or is longer than a list of sources would be."""
    found: list[str] = []
    for first, last in re.findall(r"(\d+)(?:\s*[-–—]\s*(\d+))?", mark):
        begin, end = int(first), int(last or first)
        if not 0 <= end - begin < LONGEST_RANGE:
            return ()
        found += [str(number) for number in range(begin, end + 1)]
    return tuple(found)
