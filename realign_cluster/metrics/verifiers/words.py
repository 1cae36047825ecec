"""Words of a text as the lexical rules and the BM25 index compare them: numbers in one form, letters folded, endings
taken off.

English endings and stop words; text in a script without spaces between words comes out as long runs.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

WORDS_VERSION = 1  # raise it whenever the same text would give other stems: indexes and verdicts depend on it
LEAST_STEM = 3

_WORD = re.compile(r"\d+(?:[.,]\d+)*(?![^\W_])|[^\W_]+(?:['’][^\W\d_]+)?")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_COUNTED = re.compile(r"(\d+)(?:st|nd|rd|th|s)")
_CONTRACTED = ("n't", "n’t")


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_TWO_TO_TWENTY = _listed(
    """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty"""
)
_SPELLED = {name: str(number) for number, name in enumerate(_TWO_TO_TWENTY, start=2)}
_ENDINGS = _listed(
    "ations ation ingly ments ment ness ings ing edly ies ied ers er ors or ed es ly al s e y i"
)  # longest first within each family; the first that leaves a stem is taken off
NEGATIONS = frozenset(
    _listed("no not never none nor neither nobody nothing nowhere without cannot hardly unlikely fails failed false")
)
STOP_WORDS = frozenset(
    _listed(
        """a an the and or but if of in on at to for from by with as is are was were be been being it its this
        that these those i me my we us our you your he him his she her they them their who whom whose which what
        when where why how there here has have had having do does did done doing will would can could may might
        shall should must not no nor neither never none nothing nobody nowhere cannot than then so also too very
        just only both all same own while because though although through against among amongst between within
        without upon per via during before after above below under over about into onto off out up down again
        further other another some any each every more most such few one s t ll re ve d m"""
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    text: str
    stem: str

    @property
    def is_number(self) -> bool:
        return self.stem[0].isdigit()

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper()

    @property
    def is_content(self) -> bool:
        """Says something on its own: a number, or no stop word, "n't" or single letter."""
        folded = self.text.casefold()
        return self.is_number or not (folded in STOP_WORDS or folded.endswith(_CONTRACTED) or len(self.stem) < 2)

    @property
    def is_negation(self) -> bool:
        folded = self.text.casefold()
        return folded in NEGATIONS or folded.endswith(_CONTRACTED)


def words_of(text: str) -> list[Word]:
    """In order. "1,200" and "1200" are one stem, so are "twelve" and "12", "1990s" and "1990", "Zoë's" and "zoe"."""
    return [Word(text=match, stem=stem_of(match)) for match in _WORD.findall(text)]


@lru_cache(maxsize=65536)
def stem_of(word: str) -> str:
    if word[0].isdigit():
        if _THOUSANDS.fullmatch(word):
            return word.replace(",", "")
        counted = _COUNTED.fullmatch(word.casefold())
        return counted.group(1) if counted else word.casefold()
    decomposed = unicodedata.normalize("NFKD", word)
    folded = "".join(letter for letter in decomposed if not unicodedata.combining(letter)).casefold().replace("’", "'")
    folded = folded.removesuffix("'s") or word
    if folded in _SPELLED:
        return _SPELLED[folded]
    for ending in _ENDINGS:
        if folded.endswith(ending) and len(folded) - len(ending) >= LEAST_STEM:
            return folded[: -len(ending)]
    return folded
