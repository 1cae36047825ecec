"""Rows of Parquet files and Arrow datasets with the types they have there, read once from the first to the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realign_cluster.store.conversion import arrow_batches, parquet_batches
from realign_cluster.store.readers import InputFile

TABLE_FORMATS: Final = ("parquet", "huggingface")


def common_schema(files: Sequence[InputFile]) -> pa.Schema | None:
    """The schema that holds the rows of all `files`, or None unless each is a table and their columns agree."""
    if any(file.format not in TABLE_FORMATS for file in files):
        return None
    try:
        schemas = [_schema_of(file).remove_metadata() for file in files]
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        return None


def _schema_of(file: InputFile) -> pa.Schema:
    if file.format == "parquet":
        return pq.read_schema(file.path)
    batch, _ = next(arrow_batches(file.parts[:1]), (None, 0))
    return pa.schema([]) if batch is None else batch.schema


class TableCursor:
    """Gives rows in rising order of (file, row) as tables of `schema`."""

    def __init__(self, files: Sequence[InputFile], schema: pa.Schema) -> None:
        self._files = files
        self._schema = schema
        self._file = -1
        self._batches: Iterator[tuple[pa.RecordBatch, int]] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = 0  # row index of the batch's first row

    def take(self, file: Any, row: Any) -> pa.Table:
        """The rows with these file and row indexes, integer arrays of shape (rows,)."""
        pieces: list[pa.Table] = []
        at = 0
        while at < len(row):
            self._advance(int(file[at]), int(row[at]))
            assert self._batch is not None
            end = self._first + self._batch.num_rows
            here = (file[at:] == self._file) & (row[at:] < end)
            count = len(here) if here.all() else int(np.argmin(here))
            chosen = pa.array((row[at : at + count] - self._first).astype(np.int64))
            pieces.append(self._typed(self._batch.take(chosen)))
            at += count
        return pa.concat_tables(pieces) if pieces else self._schema.empty_table()

    def _typed(self, batch: pa.RecordBatch) -> pa.Table:
        columns = [
            batch.column(field.name).cast(field.type)
            if field.name in batch.schema.names
            else pa.nulls(batch.num_rows, field.type)
            for field in self._schema
        ]
        return pa.table(columns, schema=self._schema)

    def _advance(self, file: int, row: int) -> None:
        if file != self._file:
            source = self._files[file]
            self._batches = parquet_batches(source.path) if source.format == "parquet" else arrow_batches(source.parts)
            self._file, self._batch, self._first = file, None, 0
        while self._batch is None or row >= self._first + self._batch.num_rows:
            self._first += 0 if self._batch is None else self._batch.num_rows
            self._batch, _ = next(self._batches)
