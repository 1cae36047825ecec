"""Recovery's events and commands as plain tagged dictionaries, and back: what the ledger stores and a replay reads.

`decode(encode(x)) == x`, also after the dictionary went through JSON (where tuples become lists).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from realign_cluster.domain.recovery_commands import Command
from realign_cluster.domain.recovery_events import Event

TAG = "kind"

_KINDS: dict[str, type[Any]] = {cls.__name__: cls for cls in (*get_args(Event), *get_args(Command))}
_ADAPTERS: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(cls) for name, cls in _KINDS.items()}


def encode(item: Event | Command) -> dict[str, Any]:
    """`item` as JSON values with its class under "kind"."""
    name = type(item).__name__
    return {TAG: name, **_ADAPTERS[name].dump_python(item, mode="json")}


def decode(encoded: Mapping[str, Any]) -> Event | Command:
    """The event or command that `encode` made this of.

    Raises ValueError for an unknown kind or a missing or unknown field: the ledger is of another version, or damaged.
    """
    values = dict(encoded)
    cls = _KINDS.get(values.pop(TAG, ""))
    if cls is None:
        raise ValueError(f"no event or command of kind {encoded.get(TAG)!r}: the ledger is of another version")
    unknown = values.keys() - {field.name for field in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(unknown))}: the ledger is of another version")
    try:
        item: Event | Command = _ADAPTERS[cls.__name__].validate_python(values)
    except ValidationError as error:
        raise ValueError(f"{cls.__name__} cannot be read: {error}: the ledger is of another version") from error
    return item
