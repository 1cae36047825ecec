"""Turns the JSONL parts of one output folder into Parquet, with one schema for all parts.

Where every input is a Parquet file or an Arrow dataset, its columns keep their types. Otherwise a column gets the
type that holds all its values, and JSON text if they have none in common. Reads each part twice, a few thousand rows
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from realign_cluster.store.durable import durable_file
from realign_cluster.store.positions import PLACES_SUFFIX
from realign_cluster.store.readers import Sources
from realign_cluster.store.table_rows import TableCursor, common_schema

BATCH_ROWS: Final = 4096
COMPRESSION: Final = "zstd"
OWN_COLUMNS: Final = ("row_id", "scores", "reason", "error")

_JSON_TEXT: Final = pa.large_string()  # while types are collected: no common type, so JSON text


def convert_parts(folder: Path, sources: Sources) -> None:
    """Replaces part-*.jsonl in `folder` by part-*.parquet, each durable before its JSONL goes."""
    parts = sorted(folder.glob("part-*.jsonl"))
    if not parts:
        return
    table = common_schema(sources.files)
    added = _added_fields(parts, set() if table is None else set(table.names))
    kept = [] if table is None else [field for field in table if field.name not in {other.name for other in added}]
    cursor = None if table is None else TableCursor(sources.files, pa.schema(kept))
    schema = pa.schema([*kept, *added])
    for part in parts:
        places = part.with_suffix(PLACES_SUFFIX)
        with (
            durable_file(part.with_suffix(".parquet")) as file,
            pq.ParquetWriter(file, schema, compression=COMPRESSION) as writer,
        ):
            place = np.fromfile(places, dtype="<u8").reshape(-1, 2)
            for rows in _batches(part):
                own = None if cursor is None else cursor.take(place[: len(rows), 0], place[: len(rows), 1])
                place = place[len(rows) :]
                columns = _columns(rows)
                arrays = [] if own is None else [column.combine_chunks() for column in own.columns]
                arrays += [_array(columns.get(field.name) or [None] * len(rows), field) for field in added]
                writer.write_table(pa.table(arrays, schema=schema))
        part.unlink()
        places.unlink()


def _batches(part: Path) -> Iterator[list[dict[str, Any]]]:
    with part.open("rb") as file:
        while rows := [_row(line) for line in islice(file, BATCH_ROWS)]:
            yield rows


def _row(line: bytes) -> dict[str, Any]:
    try:
        row: dict[str, Any] = orjson.loads(line)
    except orjson.JSONDecodeError:  # a failed row that kept its odd bytes: as text
        at = line.rindex(b',"row_id":"')
        row = {"raw": line[:at].decode("utf-8", "replace") + "}", **orjson.loads(b"{" + line[at + 1 :])}
    return row


def _added_fields(parts: list[Path], table: set[str]) -> list[pa.Field]:
    """Fields for every column that is not in `table` with its own type; the run's own columns come last."""
    types: dict[str, pa.DataType] = {}
    for part in parts:
        for rows in _batches(part):
            for name, values in _columns(rows).items():
                if name in table and name not in OWN_COLUMNS:
                    continue
                found = _type_of(values)
                types[name] = found if name not in types else common_type(types[name], found) or _JSON_TEXT
    ordered = [name for name in types if name not in OWN_COLUMNS] + [name for name in OWN_COLUMNS if name in types]
    return [
        pa.field(name, pa.string(), metadata={"content": "json"})
        if types[name] == _JSON_TEXT
        else pa.field(name, _written(types[name]))
        for name in ordered
    ]


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both, or None."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = common_type(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            merged = common_type(fields[field.name], field.type) if field.name in fields else field.type
            if merged is None:
                return None
            fields[field.name] = merged
        return pa.struct(list(fields.items()))
    return None


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError, TypeError):
        return _JSON_TEXT


def _written(kind: pa.DataType) -> pa.DataType:
    """What Parquet can hold: nulls only and objects without fields become text."""
    if pa.types.is_null(kind) or (pa.types.is_struct(kind) and kind.num_fields == 0):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _written(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_written(kind.value_type))
    return kind


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    if field.metadata is not None:
        values = [None if value is None else orjson.dumps(value).decode() for value in values]
    return pa.array(
        [_fitted(value, field.type) for value in values] if _has_text_for_objects(field.type) else values,
        type=field.type,
    )


def _has_text_for_objects(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_text_for_objects(field.type) for field in kind)
    if pa.types.is_list(kind):
        return _has_text_for_objects(kind.value_type)
    return bool(pa.types.is_string(kind))


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """`value` with what `_written` made text as text: objects without fields."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {field.name: _fitted(value.get(field.name), field.type) for field in kind}
    if isinstance(value, list) and pa.types.is_list(kind):
        return [_fitted(item, kind.value_type) for item in value]
    if value is not None and not isinstance(value, str) and pa.types.is_string(kind):
        return orjson.dumps(value).decode()
    return value
