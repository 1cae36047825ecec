"""Choices that depend on a seed and on what is chosen from, never on the order in which it comes or on a library."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import TypeVar

Item = TypeVar("Item")


def number(*key: object) -> int:
    """64 uniform bits, the same for the same key everywhere. Parts of `key` are told apart."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def fraction(*key: object) -> float:
    """Uniform in [0, 1)."""
    return (number(*key) >> 11) / 2.0**53


def shuffled(items: Iterable[Item], *key: object) -> list[Item]:
    """Distinct `items` in an order that depends on `key` and on each item alone (by its repr)."""
    return sorted(items, key=lambda item: (number(*key, item), repr(item)))
