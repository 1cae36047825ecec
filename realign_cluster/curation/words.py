"""Texts as words: the form in which duplicates and contamination are looked for.

Case, punctuation, spacing and the Unicode form (NFKC) do not count; numbers do, since facts differ by them. Of scripts
that put no spaces between words (Chinese, Japanese) each character is a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from realign_cluster.domain.rows import BadField, Missing, kind_of, lookup

Words = tuple[str, ...]

_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD: Final = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def words_of(text: str) -> Words:
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def grams(words: Sequence[str], length: int) -> list[str]:
    """All runs of `length` words, in order, each as one text; none if there are fewer words."""
    return [" ".join(words[at : at + length]) for at in range(len(words) - length + 1)]


def plain_text(value: Any) -> str | None:
    """The text of a text, a list of texts or a list of messages ({"role", "content"}); None for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    parts = [item.get("content") if isinstance(item, Mapping) else item for item in value]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if len(texts) == len(parts) else None


def field_texts(row: Mapping[str, Any], fields: Sequence[str]) -> tuple[str, ...]:
    """The texts of those of `fields` (keys or dotted paths) that the row has.

    Raises BadField for one that holds no text, and if the row has none of them.
    """
    found: list[str] = []
    for field in fields:
        value = lookup(row, field)
        if isinstance(value, Missing) or value is None:
            continue
        if (text := plain_text(value)) is None:
            raise BadField(field, f"is {kind_of(value)}, expected a text, texts or messages")
        found.append(text)
    if not found:
        raise BadField("", f"has none of the fields {', '.join(fields)}")
    return tuple(found)
