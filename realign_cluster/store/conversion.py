"""Turns compressed JSONL and Arrow tables into plain JSONL files, one canonical JSON object per line and row.

Canonical JSON: keys sorted, UTF-8, no spaces; dates and times as ISO 8601, decimals and durations as text, bytes as
base64, NaN as null. Reads with pyarrow only; memory is bounded by a batch of rows, not by a row group.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import decimal
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from realign_cluster.domain.errors import UsageError
from realign_cluster.store.durable import durable_file
from realign_cluster.store.space import StorageFull, is_disk_full, room

BATCH_ROWS: Final = 2048
CHUNK_BYTES: Final = 1024 * 1024
ROOM_EVERY: Final = 64 * 1024 * 1024

Report = Callable[[int], None]  # bytes of the source read so far


def convert(kind: str, parts: Sequence[Path], target: Path, report: Report | None = None) -> None:
    """Writes the rows of `parts`, of format `kind`, to `target` as JSONL: whole or not at all.

    Raises UsageError for a damaged source, StorageFull when there is no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source = {"jsonl.gz": _gunzip, "jsonl.zst": _unzstd, "parquet": _parquet, "huggingface": _arrow}[kind](parts)
    written = unchecked = 0
    try:
        with durable_file(target) as file:
            for data, done in source:
                if unchecked <= 0:
                    room(target.parent, ROOM_EVERY)
                    unchecked = ROOM_EVERY
                file.write(data)
                written += len(data)
                unchecked -= len(data)
                if report is not None:
                    report(done)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull(target.parent, max(written, ROOM_EVERY)) from error
        raise


Pieces = Iterator[tuple[bytes, int]]  # what to write, bytes of the source read so far


def _gunzip(parts: Sequence[Path]) -> Pieces:
    (path,) = parts
    with path.open("rb") as raw, gzip.open(raw) as file:
        while True:
            try:
                data = file.read(CHUNK_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise _damaged(path, error) from error
            if not data:
                return
            yield data, raw.tell()


def _unzstd(parts: Sequence[Path]) -> Pieces:
    (path,) = parts
    with path.open("rb") as raw:
        yield from _unzstd_frames(path, raw)


def _unzstd_frames(path: Path, raw: BinaryIO) -> Pieces:
    frame = None
    left = b""
    while True:
        data = left or raw.read(CHUNK_BYTES // 8)
        left = b""
        if not data:
            if frame is not None:
                raise _damaged(path, "it ends in the middle of a frame")
            return
        if frame is None:
            frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            out = frame.decompress(data)
        except zstandard.ZstdError as error:
            raise _damaged(path, error) from error
        if frame.eof:
            left, frame = frame.unused_data, None
        yield out, raw.tell()


def _parquet(parts: Sequence[Path]) -> Pieces:
    (path,) = parts
    for batch, done in parquet_batches(path):
        yield rows_to_json(batch), done


def parquet_batches(path: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Record batches of a Parquet file in order, each with the bytes of the row groups read before and with it."""
    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            done = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], use_threads=False):
                    yield batch, done
                done += file.metadata.row_group(group).total_byte_size
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _damaged(path, error) from error


def _arrow(parts: Sequence[Path]) -> Pieces:
    for batch, done in arrow_batches(parts):
        yield rows_to_json(batch), done


def arrow_batches(parts: Sequence[Path]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Record batches of Arrow stream (or file) format files, memory-mapped, at most BATCH_ROWS long."""
    before = 0
    for path in parts:
        try:
            with pa.memory_map(str(path)) as mapped:
                for batch in _ipc_batches(mapped):
                    for start in range(0, batch.num_rows, BATCH_ROWS):
                        yield batch.slice(start, BATCH_ROWS), before + mapped.tell()
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise _damaged(path, error) from error
        before += path.stat().st_size


def _ipc_batches(mapped: Any) -> Iterator[pa.RecordBatch]:
    try:
        reader = pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        file = pa.ipc.open_file(mapped)
        for at in range(file.num_record_batches):
            yield file.get_batch(at)
        return
    yield from reader


def _damaged(path: Path, why: object) -> UsageError:
    return UsageError(f"{path} is damaged: {why}", "copy or make the file again")


def rows_to_json(batch: pa.RecordBatch) -> bytes:
    """The rows of `batch` as canonical JSON, one per line, each ended by a newline."""
    names = batch.schema.names
    if len(set(names)) != len(names):
        raise UsageError(f"two columns are named alike: {', '.join(sorted(names))}", "rename one of them")
    columns = [_plain(column) for column in batch.columns]
    option = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    rows = zip(*columns, strict=True) if columns else iter([()] * batch.num_rows)
    try:
        return b"".join(
            orjson.dumps(dict(zip(names, row, strict=True)), default=_as_json, option=option) for row in rows
        )
    except orjson.JSONEncodeError as error:
        raise UsageError(f"a column cannot be written as JSON: {error}", "leave that column out") from error


def _plain(column: pa.Array) -> list[Any]:
    kind = column.type
    if (pa.types.is_timestamp(kind) and kind.unit == "ns") or (pa.types.is_time64(kind) and kind.unit == "ns"):
        # Python's own types stop at microseconds
        column = column.cast(pa.string())
    with contextlib.suppress(AttributeError):
        column = column.storage  # extension types
    values: list[Any] = column.to_pylist()
    return values


def _as_json(value: Any) -> Any:
    match value:
        case decimal.Decimal():
            return str(value)
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case datetime.timedelta():
            return f"{value.total_seconds():.6f}s"
    if isinstance(value, int):  # beyond 64 bits
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
