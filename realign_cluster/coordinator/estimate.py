"""How much work an input is, without taking it in: reads small inputs whole and samples large ones, writes nothing.

For `plan` and `calibrate`, which must answer in seconds. A run counts every row itself (store.intake); must not be used
for anything that has to be exact.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import zstandard

from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.tokens import tokens_per_byte
from realign_cluster.domain.batching import drawn_cost, row_costs
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.plan_facts import WorkFacts
from realign_cluster.domain.rows import BadField, RowCheck
from realign_cluster.store.conversion import BATCH_ROWS, arrow_batches, parquet_batches, rows_to_json
from realign_cluster.store.readers import InputFile, expand_inputs

WHOLE_BYTES = 48 << 20  # of JSON text of one file: up to here every row is read
BLOCKS = 12  # evenly spaced through a larger JSONL file
FIRST_ROWS = 256  # what tokens per byte and sample lengths come from
CHUNK_BYTES = 1 << 20
PARQUET_PACKING = 8  # a Parquet file may unpack to this many times its size


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`first_rows` are raw JSON; `problems` name file and row of rows that lack a field or are not JSON (at most
    ten).
    """

    rows: int
    cost: float
    exact: bool
    tokens_per_byte: float
    longest_row_tokens: int
    median_row_tokens: int
    first_rows: tuple[bytes, ...]
    bad_rows: int
    problems: tuple[str, ...]

    def work(self, request: CurateRequest, *, backend: str = "any") -> WorkFacts:
        return WorkFacts(
            kinds=request.kinds,
            rows=self.rows,
            cost=self.cost,
            longest_row_tokens=self.longest_row_tokens,
            median_row_tokens=self.median_row_tokens,
            backend=backend,
            sharding=request.shard,
            whole_model_only=request.whole_model_only,
            estimated_from="" if self.exact else "parts of the input; the run counts every row",
        )


@dataclass(slots=True)
class _Sample:
    """Rows of one file that were read, and the fraction of the file they stand for."""

    lengths: list[int]
    fraction: float
    bad: int = 0


def estimate(request: CurateRequest, model_folder: Path | None) -> Estimate:
    """Raises UsageError for input that is not there, is damaged or has no row that can be scored."""
    files = expand_inputs(list(request.inputs))
    check = RowCheck(request.kinds, request.fields)
    first_rows: list[bytes] = []
    problems: list[str] = []
    samples = [_read(file, check, first_rows, problems, request.limit) for file in files]
    lengths = np.array([length for sample in samples for length in sample.lengths], dtype=np.int64)
    bad = sum(sample.bad for sample in samples)
    if not len(lengths):
        if problems:
            raise UsageError(
                f"no row of the input can be scored: {problems[0]}", "name its fields: --prompt-field NAME ..."
            )
        raise UsageError(f"the input is empty: {', '.join(file.name for file in files)}", "give files with rows")
    per_byte = tokens_per_byte(model_folder, first_rows, request.kinds, request.fields)
    rows, cost = 0.0, 0.0
    for sample in samples:
        rows += len(sample.lengths) / sample.fraction
        texts = row_costs(np.array(sample.lengths, dtype=np.int64), per_byte) + drawn_cost(request.new_tokens)
        cost += float(texts.sum()) / sample.fraction
    exact = all(sample.fraction >= 1.0 for sample in samples)
    if request.limit is not None and rows > request.limit:
        cost, rows = cost * request.limit / rows, float(request.limit)
    tokens = np.minimum(np.maximum(lengths * per_byte, 1) + request.answer_tokens, request.max_tokens)
    return Estimate(
        rows=round(rows),
        cost=cost,
        exact=exact,
        tokens_per_byte=per_byte,
        longest_row_tokens=request.max_tokens if not exact else int(np.ceil(tokens.max())),
        median_row_tokens=int(np.ceil(np.median(tokens))),
        first_rows=tuple(first_rows),
        bad_rows=bad,
        problems=tuple(problems),
    )


def _read(file: InputFile, check: RowCheck, first_rows: list[bytes], problems: list[str], limit: int | None) -> _Sample:
    sample = _Sample(lengths=[], fraction=1.0)
    size = max(1, file.size)
    if file.format == "jsonl" and size > WHOLE_BYTES:
        sample.fraction = _read_blocks(file, check, sample, first_rows, problems)
        return sample
    if file.format == "parquet" and size > WHOLE_BYTES // PARQUET_PACKING:
        return _read_groups(file, check, first_rows, problems)
    taken = 0
    number = 0
    for rows, done in _pieces(file):
        for raw in rows:
            number += 1
            _take(raw, f"{file.name}:{number}", check, sample, first_rows, problems)
            taken += len(raw) + 1
        if limit is not None and number >= limit:
            break
        if taken > WHOLE_BYTES and done < size:
            sample.fraction = max(done, 1) / size
            break
    return sample


def _read_blocks(
    file: InputFile, check: RowCheck, sample: _Sample, first_rows: list[bytes], problems: list[str]
) -> float:
    """Whole lines of evenly spaced blocks; the fraction of the file's bytes they are."""
    size = file.size
    block = WHOLE_BYTES // BLOCKS
    read = 0
    with file.path.open("rb") as handle:
        for index in range(BLOCKS):
            start = index * (size - block) // (BLOCKS - 1)
            handle.seek(start)
            lines = handle.read(block).split(b"\n")
            whole = lines[:-1] if index == 0 else lines[1:-1]  # the ends of a block are parts of lines
            for at, raw in enumerate(whole):
                place = f"{file.name}:{at + 1}" if index == 0 else f"{file.name}, line after byte {start}"
                _take(raw, place, check, sample, first_rows, problems)
                read += len(raw) + 1
    return read / size if read else 1.0


def _take(
    raw: bytes, place: str, check: RowCheck, sample: _Sample, first_rows: list[bytes], problems: list[str]
) -> None:
    if not raw.strip():
        return
    try:
        row = orjson.loads(raw)
        if not isinstance(row, dict):
            raise BadField("", f"is {type(row).__name__}, expected an object")
        length = check(row)[0] if check.reads_text else len(raw)
    except (orjson.JSONDecodeError, BadField) as error:
        sample.bad += 1
        if len(problems) < 10:
            problems.append(f"{place}: {error}")
        return
    sample.lengths.append(length)
    if len(first_rows) < FIRST_ROWS:
        first_rows.append(raw)


def _read_groups(file: InputFile, check: RowCheck, first_rows: list[bytes], problems: list[str]) -> _Sample:
    """The beginnings of evenly spaced row groups, each standing for as many rows as the next."""
    sample = _Sample(lengths=[], fraction=1.0)
    with pq.ParquetFile(file.path, memory_map=False, pre_buffer=False) as parquet:
        total, groups = int(parquet.metadata.num_rows), int(parquet.num_row_groups)
        chosen = sorted({index * (groups - 1) // (BLOCKS - 1) for index in range(BLOCKS)})
        for group in chosen:
            taken = 0
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], use_threads=False):
                for at, raw in enumerate(rows_to_json(batch).split(b"\n")):
                    _take(raw, f"{file.name}, row {at + 1} of row group {group}", check, sample, first_rows, problems)
                    taken += len(raw)
                if taken > WHOLE_BYTES // len(chosen):
                    break
    read = len(sample.lengths) + sample.bad
    sample.fraction = min(1.0, read / total) if total else 1.0
    return sample


def _pieces(file: InputFile) -> Iterator[tuple[list[bytes], int]]:
    """Lines of JSON and how many bytes of the source they and what came before took."""
    match file.format:
        case "jsonl":
            with file.path.open("rb") as handle:
                yield from _lines(file.path, handle, handle.tell)
        case "jsonl.gz":
            with file.path.open("rb") as raw, gzip.open(raw) as unpacked:
                yield from _lines(file.path, unpacked, raw.tell)
        case "jsonl.zst":
            with file.path.open("rb") as raw:
                reader = zstandard.ZstdDecompressor().stream_reader(
                    raw, read_size=CHUNK_BYTES // 8, read_across_frames=True, closefd=False
                )
                with io.BufferedReader(reader, CHUNK_BYTES) as unpacked:
                    yield from _lines(file.path, unpacked, raw.tell)
        case "parquet":
            size, packed = file.size, _packed_sizes(file.path)
            for batch, done in parquet_batches(file.path):
                yield rows_to_json(batch).split(b"\n"), min(size, round(size * done / packed))
        case "huggingface":
            for batch, done in arrow_batches(file.parts):
                yield rows_to_json(batch).split(b"\n"), done


def _packed_sizes(path: Path) -> int:
    metadata = pq.read_metadata(path)
    return max(1, sum(int(metadata.row_group(group).total_byte_size) for group in range(metadata.num_row_groups)))


def _lines(path: Path, handle: Any, told: Callable[[], int]) -> Iterator[tuple[list[bytes], int]]:
    rest = b""
    while True:
        try:
            data = handle.read(CHUNK_BYTES)
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UsageError(f"{path} is damaged: {error}", "copy or make the file again") from error
        if not data:
            if rest:
                yield [rest], path.stat().st_size
            return
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        yield lines, told()
