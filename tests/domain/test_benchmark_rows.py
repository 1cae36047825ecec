"""Questions of a benchmark: what they may be, and what is said of those that are not."""

from __future__ import annotations

from typing import Any

import pytest

from realign_cluster.domain.benchmark_rows import BenchmarkItem, benchmark_item
from realign_cluster.domain.rows import BadField


@pytest.mark.parametrize(
    ("row", "choices", "correct"),
    [
        ({"prompt": "p", "answer": "a"}, ("a",), 0),
        ({"prompt": "p", "choices": ["a", "b"], "answer": 1}, ("a", "b"), 1),
        ({"prompt": "p", "choices": ["a", "b", "c"], "answer": "c", "other": 1}, ("a", "b", "c"), 2),
    ],
)
def test_questions(row: dict[str, Any], choices: tuple[str, ...], correct: int) -> None:
    assert benchmark_item(row) == BenchmarkItem(prompt="p", choices=choices, correct=correct)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "prompt: is"),
        ({"prompt": "p"}, "answer: is"),
        ({"prompt": "p", "choices": ["a"], "answer": 0}, "at least two"),
        ({"prompt": "p", "choices": ["a", 2], "answer": 0}, "choices.1: is a number"),
        ({"prompt": "p", "choices": ["a", "a"], "answer": 0}, "twice"),
        ({"prompt": "p", "choices": ["a", "b"], "answer": 2}, "from 0 to 1"),
        ({"prompt": "p", "choices": ["a", "b"], "answer": True}, "from 0 to 1"),
        ({"prompt": "p", "choices": ["a", "b"], "answer": "c"}, "one of the choices"),
    ],
)
def test_mistakes_are_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadField, match=said):
        benchmark_item(row)
