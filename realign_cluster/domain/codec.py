"""Events and commands as plain tagged dictionaries, and back: what the ledger stores and a replay reads.

Knows the shapes in `domain.events` and nothing of files, databases or JSON libraries: the caller serialises.
`decode(encode(x)) == x`, also after the dictionary went through JSON (where tuples become lists).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, get_args

from realign_cluster.domain.events import Command, Event, UnitRef

TAG = "kind"

_Convert = Callable[[Any], Any]


def _pairs(value: Any) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(item) for item in value)


def _pack_units(units: tuple[UnitRef, ...]) -> dict[str, list[Any]]:
    """By column, since pages of thousands are stored; what hardly any unit has only for those that have it."""
    return {
        "unit": [ref.unit for ref in units],
        "cost": [ref.cost for ref in units],
        "longest": [ref.longest for ref in units],
        "rows": [ref.rows for ref in units],
        "troubled": [
            [at, ref.suspected, list(ref.failed_on)] for at, ref in enumerate(units) if ref.suspected or ref.failed_on
        ],
    }


def _unpack_units(packed: Any) -> tuple[UnitRef, ...]:
    columns = zip(packed["unit"], packed["cost"], packed["longest"], packed["rows"], strict=True)
    units = [UnitRef(unit=unit, cost=cost, longest=longest, rows=rows) for unit, cost, longest, rows in columns]
    for at, suspected, failed_on in packed["troubled"]:
        units[at] = replace(units[at], suspected=suspected, failed_on=tuple(failed_on))
    return tuple(units)


# (class, field) -> how it is written, how it is read. Every field that is not a plain JSON value must be here.
_SPECIAL: dict[tuple[str, str], tuple[_Convert | None, _Convert]] = {
    ("RunOpened", "planned_nodes"): (None, tuple),
    ("UnitsLoaded", "units"): (_pack_units, _unpack_units),
    ("Grant", "attempts"): (None, _pairs),
    ("RevokeAttempts", "attempts"): (None, tuple),
    ("Split", "children"): (None, _pairs),
}


class _Plan:
    """How one class is written and read."""

    __slots__ = ("cls", "name", "names", "readers", "values", "writers")

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.name = cls.__name__
        self.names = tuple(field.name for field in fields(cls))
        getter = attrgetter(*self.names)
        self.values: Callable[[Any], tuple[Any, ...]] = getter if len(self.names) > 1 else lambda item: (getter(item),)
        special = {name: _SPECIAL[self.name, name] for name in self.names if (self.name, name) in _SPECIAL}
        for field in fields(cls):
            if "tuple" in str(field.type) and field.name not in special:
                raise TypeError(f"{self.name}.{field.name} is not a plain JSON value: say in codec how it is stored")
        self.writers = [(name, write) for name, (write, _) in special.items() if write is not None]
        self.readers = [(name, read) for name, (_, read) in special.items()]


_PLANS: dict[str, _Plan] = {cls.__name__: _Plan(cls) for cls in (*get_args(Event), *get_args(Command))}


def encode(item: Event | Command) -> dict[str, Any]:
    """`item` as JSON values with its class under "kind". Tuples stay tuples: orjson and msgpack take them."""
    plan = _PLANS[type(item).__name__]
    encoded: dict[str, Any] = {TAG: plan.name}
    encoded.update(zip(plan.names, plan.values(item), strict=True))
    for name, write in plan.writers:
        encoded[name] = write(encoded[name])
    return encoded


def decode(encoded: Mapping[str, Any]) -> Event | Command:
    """The event or command that `encode` made this of.

    Raises ValueError for an unknown kind or a missing or unknown field: the ledger is of another version, or damaged.
    """
    values = dict(encoded)
    plan = _PLANS.get(values.pop(TAG, ""))
    if plan is None:
        raise ValueError(f"no event or command of kind {encoded.get(TAG)!r}: the ledger is of another version")
    try:
        for name, read in plan.readers:
            values[name] = read(values[name])
        item: Event | Command = plan.cls(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{plan.name} cannot be read: {error}: the ledger is of another version") from error
    return item
