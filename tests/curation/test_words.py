"""Words and texts of rows."""

from __future__ import annotations

from typing import Any

import pytest

from realign_cluster.curation.words import field_texts, grams, plain_text, words_of
from realign_cluster.domain.rows import BadField


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The 3rd-Straße, no. 42!", ("the", "3rd", "strasse", "no", "42")),
        ("ﬁne Ａ", ("fine", "a")),
        ("MLX 東京 は", ("mlx", "東", "京", "は")),
        (" ?!\n", ()),
    ],
)
def test_words(text: str, words: tuple[str, ...]) -> None:
    assert words_of(text) == words


def test_grams() -> None:
    assert grams(["a", "b", "c", "d"], 3) == ["a b c", "b c d"]
    assert grams(["a"], 3) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (["a", "b"], "a\nb"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a\nb"),
        ([{"role": "user"}], None),
        (3, None),
        (None, None),
    ],
)
def test_plain_text(value: Any, text: str | None) -> None:
    assert plain_text(value) == text


def test_texts_of_fields() -> None:
    row = {"prompt": "p", "meta": {"answer": ["a", "b"]}, "gone": None, "number": 3}
    assert field_texts(row, ["prompt", "meta.answer", "gone", "missing"]) == ("p", "a\nb")
    with pytest.raises(BadField, match="number: is a number, expected a text"):
        field_texts(row, ["number"])
    with pytest.raises(BadField, match="has none of the fields gone, missing"):
        field_texts(row, ["gone", "missing"])
