"""Data that is small enough to be read at once: every row of files, globs and folders, with where each stands."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.store.jsonl import Lines, lines_of
from realign_cluster.store.readers import Sources, expand_inputs
from realign_cluster.store.row_problem import diagnose

MAX_ROW_BYTES: Final = 8 * 1024 * 1024
LISTED_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """`where`: file and line (or row of a table), from 1, as errors show it. `raw`: its JSON."""

    where: str
    raw: bytes
    value: dict[str, Any]


def read_rows(*paths: str | Path) -> list[FileRow]:
    """The rows of JSONL (.gz, .zst), Parquet and Hugging Face datasets, in order; blank lines are left out.

    Raises UsageError, with file and line, for what is no JSON object, and for no rows at all.
    """
    files = expand_inputs(paths)
    rows: list[FileRow] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as cache, Sources(files, Path(cache)) as sources:
        for file in files:
            for piece in lines_of(sources.prepare(file.index), 0, 0, MAX_ROW_BYTES):
                if not isinstance(piece, Lines):
                    where = sources.where(file.index, piece.row)
                    problems.append(f"{where}: the row has {piece.length:,} bytes, at most {MAX_ROW_BYTES:,}")
                    continue
                for at, raw in enumerate(piece.lines):
                    where = sources.where(file.index, piece.first_row + at)
                    try:
                        value = orjson.loads(raw)
                    except orjson.JSONDecodeError as error:
                        if raw.strip():
                            problems.append(diagnose(raw, error, MAX_ROW_BYTES).at(where).shown())
                        continue
                    if isinstance(value, dict):
                        rows.append(FileRow(where=where, raw=raw, value=value))
                    else:
                        problems.append(diagnose(raw, value, MAX_ROW_BYTES).at(where).shown())
    if problems:
        listed = "\n  ".join(problems[:LISTED_PROBLEMS])
        more = f"\n  and {len(problems) - LISTED_PROBLEMS:,} more" if len(problems) > LISTED_PROBLEMS else ""
        raise UsageError(f"{len(problems):,} rows cannot be read:\n  {listed}{more}", "correct or remove them")
    if not rows:
        raise UsageError(f"{', '.join(map(str, paths))}: there are no rows", "give files with one JSON object per line")
    return rows
