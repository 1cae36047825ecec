"""Where the sentences of an answer begin and end.

Rules, not a model: a full stop ends a sentence unless it belongs to an abbreviation, an initial, a number, an
address, a list marker or code. Citations that follow the full stop belong to the sentence before it ("... in 1990.
[1] Next"). Nothing is lost: between two spans there is only white space. Made for English; 。！？ end a sentence too.
In a text without capitals (an uncased tokenizer's) a small letter may open a sentence.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from realign_cluster.metrics.abbreviations import BEFORE_NUMBERS, CLOSING, OPENING, STARTERS
from realign_cluster.metrics.citation_marks import find_marks

LONG_LINE: Final = (
    60  # characters; a line this long without a full stop was wrapped, a shorter one was ended on purpose
)

FENCE: Final = re.compile(r"^[ \t]*(```++|~~~++)")
HEADING: Final = re.compile(r"^[ \t]*(?:#{1,6}\s+\S.*|\*\*[^*\n]{1,80}\*\*:?\s*|__[^_\n]{1,80}__:?\s*)$")
RULE: Final = re.compile(r"^[ \t]*(?:[-*_=]\s*){3,}$|^[ \t]*\|.*\|[ \t]*$")  # a line drawn, or a row of a table
LIST_MARKER: Final = re.compile(r"[ \t]*(?:[-*+•‣–]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)])[ \t]+")
OWN_LINE: Final = re.compile(
    r"[ \t]*(?:\[\^?[\w-]+\]:?\s|>)"
)  # a footnote's text, an entry of a bibliography, a quotation
ENDING: Final = re.compile(r"(?P<stop>[.!?…]+|[。！？]+)(?P<closers>[\"'”’»)\]*_]*)")
WORD_BEFORE: Final = re.compile(r"[^\s(\[{\"“‘'*_/–—]*$")
# Full stops in here end nothing: code, links, addresses, brackets, and a quotation after which the sentence goes on.
PROTECTED: Final = re.compile(
    r"`[^`\n]{1,300}`|\[[^\]\n]{0,300}\](?:\([^)\s]{0,300}\))?|(?:https?://|www\.)\S+[^\s.,;:!?)\]\"'”]|\([^()\n]{1,300}\)"
    r"|\"[^\"\n]{1,300}\"(?=,|\s+[a-z])|“[^“”\n]{1,300}”(?=,|\s+[a-z])"
)
INITIALS: Final = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]")  # U.N of "U.N."
CLOSER: Final = re.compile(r"[.\"'”’»)]*")
WHITE: Final = re.compile(r"\s*")
NEAR: Final = 200  # characters around a full stop that decide what it is
NEXT_WORD: Final = re.compile(r"[\s\"'“‘«(\[*_]*([A-Za-z]+)(\.?)")


class Kind(StrEnum):
    PROSE = "prose"  # list items included, with their marker
    HEADING = "heading"
    CODE = "code"
    TABLE = "table"  # and lines drawn across


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """text[begin:end], without white space at either end."""

    begin: int
    end: int
    kind: Kind = Kind.PROSE


def split_sentences(text: str) -> tuple[Sentence, ...]:
    """All of `text` but the white space between them, in order."""
    marks = [(mark.begin, mark.end) for mark in find_marks(text)]
    cased = any(character.isupper() for character in text)
    found: list[Sentence] = []
    for begin, end, kind in _blocks(text):
        if kind is not Kind.PROSE:
            found.append(Sentence(begin=begin, end=end, kind=kind))
            continue
        for start, stop in _within(text, begin, end, marks, cased):
            if found and _only_marks(text, start, stop, marks) and found[-1].kind is Kind.PROSE:
                found[-1] = Sentence(begin=found[-1].begin, end=stop)
            else:
                found.append(Sentence(begin=start, end=stop))
    return tuple(found)


def _only_marks(text: str, begin: int, end: int, marks: list[tuple[int, int]]) -> bool:
    """Nothing but citations and punctuation: no sentence of its own."""
    at = begin
    for place in range(bisect_left(marks, (begin, -1)), len(marks)):
        start, stop = marks[place]
        if stop > end or any(character.isalnum() for character in text[at:start]):
            break
        at = stop
    return at > begin and not any(character.isalnum() for character in text[at:end])


def _blocks(text: str) -> Iterator[tuple[int, int, Kind]]:
    """Stretches no sentence crosses: paragraphs, list items, headings, code."""
    lines = [match.span() for match in re.finditer(r"[^\n]*(?:\n|\Z)", text) if match.end() > match.start()]
    position = 0
    while position < len(lines):
        begin, end = lines[position]
        line = text[begin:end].rstrip("\n")
        kind = Kind.PROSE
        position += 1
        if fence := FENCE.match(line):
            kind = Kind.CODE
            while position < len(lines):
                end = lines[position][1]
                position += 1
                if text[lines[position - 1][0] : end].strip().startswith(fence.group(1)):
                    break
        elif HEADING.match(line):
            kind = Kind.HEADING
        elif RULE.match(line):
            kind = Kind.TABLE
        else:
            while position < len(lines) and _goes_on(text[slice(*lines[position - 1])], text[slice(*lines[position])]):
                end = lines[position][1]
                position += 1
        if trimmed := _trim(text, begin, end):
            yield *trimmed, kind


def _goes_on(line: str, following: str) -> bool:
    """Whether the next line belongs to the same paragraph, and the break between them is only a wrapped line's."""
    line, bare = line.strip(), following.strip()
    if not line or not bare or any(pattern.match(following) for pattern in (FENCE, HEADING, RULE, OWN_LINE)):
        return False
    if LIST_MARKER.match(following) and not re.match(r"[ \t]*[a-zA-Z]\)?[ \t]", following):
        return False
    if re.search(r"[.!?:…。！？][\"'”’»)\]]*$", line):
        return False
    return bare[0].islower() or len(line) >= LONG_LINE


def _within(text: str, begin: int, end: int, marks: list[tuple[int, int]], cased: bool) -> Iterator[tuple[int, int]]:
    protected = [match.span() for match in PROTECTED.finditer(text, begin, end)]
    start = begin
    search_from = begin
    if marker := LIST_MARKER.match(text, begin, end):
        search_from = marker.end()
    for match in ENDING.finditer(text, search_from, end):
        if match.start() < start or _holds(protected, match.start(), match.end()):
            continue
        stop = _past_marks(text, match.end(), end, marks, cased)
        if _ends_here(text, match, start, stop, end, cased):
            yield start, stop
            start = _past_white(text, stop, end)
    if start < end:
        yield start, end


def _past_white(text: str, position: int, end: int) -> int:
    white = WHITE.match(text, position, end)
    return white.end() if white else position


def _holds(spans: list[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether one of `spans`, which are in order, goes on behind `end` and begins at or before `begin`."""
    at = bisect_right(spans, begin, key=lambda span: span[0]) - 1
    return at >= 0 and end < spans[at][1]


def _past_marks(text: str, position: int, end: int, marks: list[tuple[int, int]], cased: bool) -> int:
    """Behind the citations that follow the full stop, if what comes after them begins a sentence or the block ends."""
    stop = position
    for at in range(bisect_left(marks, (position, -1)), len(marks)):
        begin, finish = marks[at]
        if finish > end or _past_white(text, stop, begin) < begin:
            break
        stop = finish
    closer = CLOSER.match(text, stop, end)
    after = closer.end() if closer and stop > position else stop
    rest = _past_white(text, after, end)
    return after if rest >= end or not ((cased and text[rest].islower()) or text[rest] in ",;:") else position


def _ends_here(text: str, match: re.Match[str], start: int, stop: int, end: int, cased: bool) -> bool:
    if stop >= end:
        return True
    ending = match.group("stop")
    if ending[0] in "。！？":
        return True
    following = _past_white(text, stop, end)
    rest = text[following : min(end, following + NEAR)]
    if stop == match.end() and following == stop:
        return False
    if following == stop and not rest[0].isupper():
        return False
    if (cased and rest[0].islower()) or rest[0] in ",;:)]}%":
        return False
    if ending != ".":
        return True
    return stop > match.end() or not _belongs_to_word(text, start, match.start(), rest)


def _belongs_to_word(text: str, start: int, dot: int, rest: str) -> bool:
    """Whether the full stop at `dot` is an abbreviation's, an initial's or an enumeration's."""
    before = WORD_BEFORE.search(text, max(start, dot - NEAR), dot)
    word = before.group() if before else ""
    opens = _opens_a_sentence(rest)
    plain = word.lower()
    if not word:
        return False
    if len(word) <= 2 and word.isdigit():  # "steps: 1. Mix"
        lead = text[max(start, dot - NEAR) : dot - len(word)].rstrip()
        return not lead or lead[-1] in ":;!?,"
    if plain in BEFORE_NUMBERS:
        return rest[0].isdigit() and (len(word) > 1 or word.islower())
    if plain in OPENING and (len(word) > 1 or word.islower()):
        return not opens if plain == "al" else True
    initials = (len(word) == 1 and word.isupper()) or INITIALS.fullmatch(word)
    return bool(plain in CLOSING or initials) and not opens


def _opens_a_sentence(rest: str) -> bool:
    match = NEXT_WORD.match(rest)
    return bool(match) and not match.group(2) and match.group(1).lower() in STARTERS  # type: ignore[union-attr]


def _trim(text: str, begin: int, end: int) -> tuple[int, int] | None:
    piece = text[begin:end]
    bare = piece.strip()
    if not bare:
        return None
    first = begin + len(piece) - len(piece.lstrip())
    return first, first + len(bare)
