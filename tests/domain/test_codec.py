"""What the ledger stores of events and commands comes back equal."""

from __future__ import annotations

import json
import types
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain import events
from realign_cluster.domain.codec import decode, encode


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    kind = getattr(kind, "__supertype__", kind)
    if get_origin(kind) in (types.UnionType, Union):
        return st.one_of([values_of(part) for part in get_args(kind)])
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return st.lists(values_of(parts[0]), max_size=3).map(tuple)
        return st.tuples(*(values_of(part) for part in parts))
    if kind is events.UnitRef:
        return instances_of(kind)
    return {
        int: st.integers(0, 2**53),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        type(None): st.none(),
    }[kind]


def instances_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    return st.builds(cls, **{field.name: values_of(hints[field.name]) for field in fields(cls)})


KINDS = (*get_args(events.Event), *get_args(events.Command))


@given(st.one_of([instances_of(cls) for cls in KINDS]))
def test_survives_json(item: Any) -> None:
    encoded = encode(item)
    assert decode(encoded) == item
    assert decode(json.loads(json.dumps(encoded))) == item


@pytest.mark.parametrize("cls", KINDS)
def test_every_kind_is_known(cls: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be read|of kind"):
        decode({"kind": cls.__name__, "no such field": 1})


def test_unknown_kind_names_itself() -> None:
    with pytest.raises(ValueError, match="NodeVanished"):
        decode({"kind": "NodeVanished"})
