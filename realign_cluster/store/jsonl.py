"""Splits a JSONL file into lines, a block at a time, with their offsets. Does not parse them.

Memory is bounded by the block and the longest line allowed: a longer one is skipped over and only its place is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

BLOCK_BYTES: Final = 4 * 1024 * 1024
BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Lines:
    """Consecutive lines without their ends; line i is number `first_row` + i (from 0) and begins at byte
    `offsets[i]`.
    """

    first_row: int
    lines: list[bytes]
    offsets: npt.NDArray[np.int64]
    end: int  # offset after the last one's end


@dataclass(frozen=True, slots=True)
class LongLine:
    """A line of more than the bytes allowed."""

    row: int
    offset: int
    length: int
    end: int


def lines_of(path: Path, row: int, offset: int, max_line_bytes: int) -> Iterator[Lines | LongLine]:
    """Lines of `path` from line `row`, which begins at `offset`. CRLF ends and a byte order mark are not part of a
    line.
    """
    left = b""  # the beginning of a line whose end is not read yet
    skipped = 0  # bytes of a long line passed over
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while data := file.read(BLOCK_BYTES):
            if offset == 0 and row == 0 and not left and not skipped and data.startswith(BOM):
                data, offset = data[len(BOM) :], len(BOM)
            if skipped:
                end = data.find(b"\n")
                if end < 0:
                    skipped += len(data)
                    continue
                yield LongLine(row, offset, skipped + end, offset + skipped + end + 1)
                row, offset, data = row + 1, offset + skipped + end + 1, data[end + 1 :]
                skipped = 0
            data = left + data if left else data
            lines = data.split(b"\n")
            left = lines.pop()
            if lines:
                piece = _lines(row, offset, lines, b"\r\n" in data)
                yield piece
                row, offset = row + len(lines), piece.end
            if len(left) > max_line_bytes:
                skipped, left = len(left), b""
    if skipped:
        yield LongLine(row, offset, skipped, offset + skipped)
    elif left:
        yield _lines(row, offset, [left], left.endswith(b"\r"))


def _lines(row: int, offset: int, lines: list[bytes], carriage_returns: bool) -> Lines:
    ends = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines))
    ends += 1
    np.cumsum(ends, out=ends)
    offsets = np.empty(len(lines), dtype=np.int64)
    offsets[0] = offset
    offsets[1:] = ends[:-1] + offset
    if carriage_returns:
        lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
    return Lines(row, lines, offsets, offset + int(ends[-1]))
