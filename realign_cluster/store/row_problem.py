"""What is wrong with a row that cannot be scored, in words a user can act on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from realign_cluster.domain.rows import kind_of


@dataclass(frozen=True, slots=True)
class RowProblem:
    code: str  # "bad-field", "not-json", "not-utf8", "not-unicode", "not-an-object", "too-large"
    message: str
    field: str = ""
    where: str = ""

    @property
    def text(self) -> str:
        """Without the place: what failed/ says."""
        return f"{self.field}: {self.message}" if self.field else self.message

    def at(self, where: str) -> RowProblem:
        return replace(self, where=where)

    def shown(self) -> str:
        return f"{self.where}: {self.text}"


def diagnose(raw: bytes, found: Any, largest: int) -> RowProblem:
    """Why `raw` is not a JSON object of at most `largest` bytes. `found` is its value, or the error from parsing it."""
    if len(raw) > largest:
        return RowProblem("too-large", f"the row has {len(raw):,} bytes, at most {largest:,} are allowed")
    if not isinstance(found, Exception):
        return RowProblem("not-an-object", f"expected a JSON object, found {kind_of(found)}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return RowProblem("not-utf8", f"not UTF-8: byte {raw[error.start]:#04x} at position {error.start}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return RowProblem("not-json", f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return RowProblem("not-json", "nested too deeply")
    lone = next((mark for mark in json.dumps(value, ensure_ascii=False) if "\ud800" <= mark <= "\udfff"), None)
    if lone is not None:
        return RowProblem("not-unicode", f"holds a lone surrogate (\\u{ord(lone):04x}), which is no character")
    if any(isinstance(item, float) and item - item != 0 for item in _numbers(value)):
        return RowProblem("not-json", "holds NaN or Infinity, which JSON does not have")
    return RowProblem("not-json", f"not JSON: {found}")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, float) else []
