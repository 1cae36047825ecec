"""Rows of a capability benchmark: a prompt with choices of which one is right, or with the one right answer.

    {"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}        answer: its index, or its text
    {"prompt": "The capital of France is", "answer": "Paris"}

What is measured: with choices, how often the right one has the highest log-probability (accuracy; chance is 1 over
their number); without, the mean negative log-likelihood of the answer, nats per token. Pure; knows no files and models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realign_cluster.domain.rows import BadField, kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkItem:
    """`correct` is an index into `choices`. A single choice: it is the answer."""

    prompt: str
    choices: tuple[str, ...]
    correct: int


def benchmark_item(row: Mapping[str, Any]) -> BenchmarkItem:
    """Raises BadField, naming the field and what would be right."""
    prompt = _text("prompt", row.get("prompt"))
    answer = row.get("answer")
    if "choices" not in row:
        return BenchmarkItem(prompt=prompt, choices=(_text("answer", answer),), correct=0)
    found = row["choices"]
    if not isinstance(found, list) or len(found) < 2:
        raise BadField("choices", f"is {kind_of(found)}, expected a list of at least two texts")
    choices = tuple(_text(f"choices.{at}", choice) for at, choice in enumerate(found))
    if len(set(choices)) < len(choices):
        raise BadField("choices", "has the same text twice")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return BenchmarkItem(prompt=prompt, choices=choices, correct=answer)
    if answer in choices:
        return BenchmarkItem(prompt=prompt, choices=choices, correct=choices.index(str(answer)))
    raise BadField("answer", f"is {answer!r}, expected one of the choices, or its index from 0 to {len(choices) - 1}")


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadField(field, f"is {kind_of(value)}, expected a text")
    return value
