"""The citations of an answer: its marks, its bibliography, the sources they mean, and the text without them.

A key is resolved in the sources that the answer was given. Where the answer has a bibliography of its own (a section of
references, or the texts of footnotes), the entry is asked first: an address or a title in it that is known says which
source is meant; else the key itself is looked up. A key that leads nowhere is unknown, and reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from realign_cluster.metrics.citation_marks import YEAR, Form, Mark, find_marks, work_key
from realign_cluster.metrics.measured import ItemId, PooledRatio, SourceId, pooled_ratio

SECTION: Final = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]*)?(?:\*\*|__)?(?:references|bibliography|sources|works cited|citations|footnotes|notes)"
    r"(?:\*\*|__)?[ \t]*:?[ \t]*(?:\*\*|__)?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
ENTRY: Final = re.compile(r"^[ \t]*(?:[-*•][ \t]+)?(?:\[(\^?[\w-]+)\]:?|\(?(\d{1,3})[.)])[ \t]+(\S.*)$", re.MULTILINE)
WORK_ENTRY: Final = re.compile(
    r"^[ \t]*(?:[-*•][ \t]+)?(([A-Z][^\d\n(]{1,200}?)[ ,]*\(?((?:1[5-9]|20)\d\d[a-z]?)\b.*)$", re.MULTILINE
)
FOOTNOTE_TEXT: Final = re.compile(r"^[ \t]*\[\^([\w-]+)\]:[ \t]*(\S.*)$", re.MULTILINE)
BARE_ENTRY: Final = re.compile(r"^[ \t]*\[(\d{1,3})\]:?[ \t]+(\S.*)$", re.MULTILINE)
WORK_KEY: Final = re.compile(rf"^[^\d/]+ {YEAR}$")
BY_AUTHOR: Final = (Form.AUTHOR_PARENTHESIS, Form.AUTHOR_BRACKET)
ADDRESS: Final = re.compile(r"(?:https?://|www\.)[^\s<>()\[\]\"]+[^\s<>()\[\]\".,;:]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """text[begin:end] of the answer says what `key` stands for."""

    begin: int
    end: int
    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Citations:
    """`marks` are those of the running text, text[:body_end] without the lines of `entries`."""

    marks: tuple[Mark, ...]
    entries: tuple[Entry, ...]
    body_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """One source for each key of a mark, in order; None where the key is unknown."""

    mark: Mark
    sources: tuple[SourceId | None, ...]

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(key for key, source in zip(self.mark.keys, self.sources, strict=True) if source is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CitationFormat:
    """The one format a policy is trained to use.

    `several`: two sources at one place as [1][2] ("apart") or [1, 2] ("together"). `full_stop`: the mark stands before
    it ("so [1].") or after it ("so. [1]"). "any" leaves it open.
    """

    form: Form = Form.BRACKET
    several: Literal["apart", "together", "any"] = "any"
    full_stop: Literal["before", "after", "any"] = "any"


def read_citations(text: str) -> Citations:
    """Marks and bibliography of `text`. A line of a bibliography cites nothing."""
    body_end = _body_end(text)
    footnotes = _entries(text, FOOTNOTE_TEXT, 0, body_end)
    entries = footnotes + _section_entries(text, body_end)
    marks = tuple(
        mark
        for mark in find_marks(text)
        if mark.begin < body_end and not any(entry.begin <= mark.begin < entry.end for entry in footnotes)
    )
    return Citations(marks=marks, entries=entries, body_end=body_end)


def known_by_number(sources: Sequence[SourceId]) -> dict[str, SourceId]:
    """Sources that a prompt numbered from 1."""
    return {str(number): source for number, source in enumerate(sources, 1)}


def resolve(citations: Citations, known: Mapping[str, SourceId]) -> tuple[Resolved, ...]:
    """`known` leads from keys, and as one likes from addresses and titles, to sources; case does not matter.

    Where no work is known by author and year, neither here nor to the answer's bibliography, a name and a year in
    brackets that resolve to nothing are left out as part of the sentence: "(London, 1999)" reads like a citation.
    """
    lookup = {_plain(name): source for name, source in known.items()}
    entries: dict[str, SourceId] = {}
    for entry in citations.entries:
        if (source := _source_of(entry.text, lookup)) is not None:
            entries.setdefault(_plain(entry.key), source)
    works = any(WORK_KEY.search(name) for name in [*lookup, *(entry.key for entry in citations.entries)])
    found = (
        Resolved(mark=mark, sources=tuple(entries.get(_plain(key), lookup.get(_plain(key))) for key in mark.keys))
        for mark in citations.marks
    )
    return tuple(one for one in found if works or one.mark.form not in BY_AUTHOR or any(one.sources))


def strip_citations(text: str) -> str:
    """`text` without its marks, and without the white space and the empty brackets that they leave: what it claims."""
    kept, at = [], 0
    for mark in find_marks(text):
        kept.append(text[at : mark.begin])
        at = mark.end
    bare = "".join([*kept, text[at:]])
    if not kept:
        return bare.strip()
    bare = re.sub(r"[ \t]*\(\s*[,;]*\s*\)", "", bare)
    bare = re.sub(r"[ \t]+([.,;:!?)])", r"\1", bare)
    bare = re.sub(r",(?:\s*,)+", ",", bare)
    return re.sub(r"[ \t]{2,}", " ", bare).strip()


def in_format(text: str, wanted: CitationFormat) -> tuple[int, int]:
    """(citations in the wanted format, all citations) of one answer; malformed ones are among the latter."""
    marks = read_citations(text).marks
    return sum(_keeps_to(text, mark, wanted) for mark in marks), len(marks)


def format_agreement(answers: Iterable[tuple[ItemId, str]], wanted: CitationFormat) -> PooledRatio:
    """Citations in the one configured format / citations. An answer without any is undefined."""
    return pooled_ratio(
        "citation format agreement", "citations in format / citations",
        ((item, *in_format(text, wanted)) for item, text in answers),
    )  # fmt: skip


def _keeps_to(text: str, mark: Mark, wanted: CitationFormat) -> bool:
    if mark.form is not wanted.form:
        return False
    if wanted.several == "apart" and len(mark.keys) > 1:
        return False
    before, after = text[: mark.begin].rstrip(), text[mark.end :].lstrip()
    neighbours = before.endswith("]") or after.startswith("[")
    if wanted.several == "together" and neighbours and mark.form is Form.BRACKET:
        return False
    while match := re.search(r"(?:\[[^\[\]]*\]|\([^()]*\)|<sup>[^<]*</sup>)\s*$", before):
        before = before[: match.start()].rstrip()
    stopped = bool(re.search(r"[.!?][\"'”’)]*$", before))
    return wanted.full_stop == "any" or stopped == (wanted.full_stop == "after")


def _body_end(text: str) -> int:
    """Where the bibliography begins: at its heading, or at the first of the last lines that are all [n] entries."""
    for heading in SECTION.finditer(text):
        rest = text[heading.end() :].strip()
        lines = [line for line in rest.splitlines() if line.strip()]
        entries = sum(bool(ENTRY.match(line) or WORK_ENTRY.match(line) or ADDRESS.search(line)) for line in lines)
        if lines and entries * 2 >= len(lines):
            return heading.start()
    end = len(text)
    position = len(text)
    for line in reversed(text.splitlines(keepends=True)):
        position -= len(line)
        if BARE_ENTRY.match(line):
            end = position
        elif line.strip():
            break
    return end if end > 0 and text[:end].strip() else len(text)


def _section_entries(text: str, begin: int) -> tuple[Entry, ...]:
    numbered = _entries(text, ENTRY, begin, len(text))
    works = tuple(
        Entry(begin=match.start(), end=match.end(), key=work_key(match.group(2), match.group(3)), text=match.group(1))
        for match in WORK_ENTRY.finditer(text, begin)
    )
    return numbered + works


def _entries(text: str, pattern: re.Pattern[str], begin: int, end: int) -> tuple[Entry, ...]:
    found = []
    for match in pattern.finditer(text, begin, end):
        *keys, entry = match.groups()
        key = next(key for key in keys if key)
        found.append(Entry(begin=match.start(), end=match.end(), key=key.lstrip("^"), text=entry.strip()))
    return tuple(found)


def _source_of(entry: str, lookup: Mapping[str, SourceId]) -> SourceId | None:
    for address in ADDRESS.findall(entry):
        if (source := lookup.get(_plain(address))) is not None:
            return source
    plain = _plain(entry)
    if (source := lookup.get(plain)) is not None:
        return source
    titles = [name for name in lookup if len(name) >= 12 and name in plain]
    return lookup[max(titles, key=len)] if titles else None


def _plain(name: str) -> str:
    bare = re.sub(r"^(?:https?://)?(?:www\.)?", "", name.strip().casefold())
    return re.sub(r"\s+", " ", bare).rstrip("/. ")
