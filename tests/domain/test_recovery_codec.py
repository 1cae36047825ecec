"""What the ledger stores of recovery's events and commands comes back equal."""

from __future__ import annotations

import json
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from realign_cluster.domain.recovery_codec import decode, encode
from realign_cluster.domain.recovery_commands import Command
from realign_cluster.domain.recovery_events import Event

PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    type(None): st.none(),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    kind = getattr(kind, "__supertype__", kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) in (types.UnionType, Union):
        return st.one_of([values_of(each) for each in get_args(kind)])
    if get_origin(kind) is dict:
        key, value = get_args(kind)
        return st.dictionaries(values_of(key), values_of(value), max_size=2)
    if get_origin(kind) is tuple:
        each = get_args(kind)
        if each[-1] is Ellipsis:
            return st.lists(values_of(each[0]), max_size=2).map(tuple)
        return st.tuples(*(values_of(one) for one in each))
    return instances_of(kind)


def instances_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)] if is_dataclass(cls) else list(cls.model_fields)
    assert is_dataclass(cls) or issubclass(cls, BaseModel)
    return st.builds(cls, **{name: values_of(hints[name]) for name in names})


KINDS = (*get_args(Event), *get_args(Command))


@pytest.mark.parametrize("cls", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_survives_json(cls: type[Any], data: st.DataObject) -> None:
    item = data.draw(instances_of(cls))
    assert decode(json.loads(json.dumps(encode(item)))) == item


@pytest.mark.parametrize("cls", KINDS)
def test_another_version_is_noticed(cls: type[Any]) -> None:
    with pytest.raises(ValueError, match="has no no such field: the ledger is of another version"):
        decode({"kind": cls.__name__, "no such field": 1})
    with pytest.raises(ValueError, match="cannot be read"):
        decode({"kind": cls.__name__})


def test_unknown_kind_names_itself() -> None:
    with pytest.raises(ValueError, match="RankVanished"):
        decode({"kind": "RankVanished"})
