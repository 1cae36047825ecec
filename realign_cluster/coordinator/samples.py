"""Rows of made text in the shape of the run's input: to check a node (canaries) and to measure it (samples).

Made, not taken from the input: a row that kills its worker must not keep a node from joining. Lengths follow the
input's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from realign_cluster.domain.job import Fields, comparable_kinds, roles_needed
from realign_cluster.domain.rows import MISSING, lookup

TEXT = """
a cluster of unequal machines shares the work by measured speed and each batch is scored once then committed to the
ledger before anything is acknowledged because a node may stop at any time the coordinator keeps the plan and the gates
while workers hold the model and compute the likelihood of every answer given its question with evidence when there is
some numbers like 42 or 3.5 and names like Ada or Turing appear so that tokens vary and no sentences are quite the same
"""
WORDS = TEXT.split()
CANARY_LENGTHS = (24, 90, 200, 420)  # text bytes per role: short and long, so that padding matters


def made_text(length: int, seed: int) -> str:
    """English-like text of exactly `length` bytes (ASCII), the same for the same arguments."""
    if length <= 0:
        return ""
    draw = random.Random(seed)
    words: list[str] = []
    size = 0
    while size < length:
        word = draw.choice(WORDS)
        words.append(word)
        size += len(word) + 1
    text = " ".join(words)[:length]
    return text[:-1] + "." if text.endswith(" ") else text


def text_bytes(value: Any) -> int:
    """UTF-8 bytes of the text in a field's value: a string, a list of strings, or a list of messages."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return sum(text_bytes(item.get("content", "") if isinstance(item, Mapping) else item) for item in value)
    return 0


def role_lengths(rows: Iterable[bytes], kinds: Sequence[str], fields: Fields) -> list[dict[str, int]]:
    """Text bytes per role of each row that parses; rows that do not are the intake's business."""
    roles = roles_needed(kinds)
    lengths: list[dict[str, int]] = []
    for raw in rows:
        try:
            row = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(row, dict):
            continue
        found = {role: lookup(row, getattr(fields, role)) for role in roles}
        lengths.append({role: 0 if value is MISSING else text_bytes(value) for role, value in found.items()})
    return lengths


def make_row(lengths: Mapping[str, int], fields: Fields, seed: int) -> bytes:
    """A row with made text of these lengths under the run's own field names."""
    row = {
        getattr(fields, role): made_text(max(1, size), seed * 31 + order)
        for order, (role, size) in enumerate(sorted(lengths.items()))
    }
    return orjson.dumps(row)


def make_canaries(kinds: Sequence[str], fields: Fields) -> tuple[str, ...]:
    roles = roles_needed(comparable_kinds(kinds))
    if not roles:
        return ()
    return tuple(make_row(dict.fromkeys(roles, size), fields, seed=size).decode() for size in CANARY_LENGTHS)


def make_samples(lengths: Sequence[Mapping[str, int]], fields: Fields, count: int = 48) -> list[bytes]:
    """`count` rows whose lengths are spread over the input's own, evenly by rank."""
    if not lengths or not lengths[0]:
        return [b"{}"] * count
    ranked = sorted(lengths, key=lambda item: sum(item.values()))
    chosen = [ranked[(2 * index + 1) * len(ranked) // (2 * count)] for index in range(count)]
    return [make_row(item, fields, seed=index) for index, item in enumerate(chosen)]
