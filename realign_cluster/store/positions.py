"""Where rows are: packed positions as the ledger stores them, and the ids that name rows in the output.

A position is 24 bytes, little-endian: file index (u32), row index in the file (u64, from 0; the line number less one
for JSONL), offset of its first byte (u64) and length in bytes (u32) in the file, or in the canonical JSON copy of one
that is not plain JSONL.
"""

from __future__ import annotations

from binascii import hexlify
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

POSITION: Final = np.dtype([("file", "<u4"), ("row", "<u8"), ("offset", "<u8"), ("length", "<u4")])
MAX_LENGTH: Final = 2**32 - 1
PLACES_SUFFIX: Final = ".places"  # beside an output part: (file, row) of each line, u64 little-endian

# what a row id hashes before the row's raw bytes: file index (u32) and row index (u64), little-endian
_ID_HEADER: Final = np.dtype([("file", "<u4"), ("row", "<u8")])

Positions = npt.NDArray[Any]  # of dtype POSITION, shape (rows,)


def pack(file: int, rows: npt.ArrayLike, offsets: npt.ArrayLike, lengths: npt.ArrayLike) -> Positions:
    """Positions of rows of one file; the three columns have shape (rows,)."""
    row = np.asarray(rows)
    packed = np.empty(len(row), dtype=POSITION)
    packed["file"] = file
    packed["row"] = row
    packed["offset"] = offsets
    packed["length"] = lengths
    return packed


def unpack(blob: bytes) -> Positions:
    return np.frombuffer(blob, dtype=POSITION)


def row_ids(positions: Positions, raws: list[bytes]) -> list[bytes]:
    """32 hex digits per row: BLAKE2b-128 of file index (u32 LE), row index (u64 LE) and the row's raw bytes."""
    headers = np.empty(len(positions), dtype=_ID_HEADER)
    headers["file"], headers["row"] = positions["file"], positions["row"]
    packed = headers.tobytes()
    digests = [
        blake2b(packed[at : at + 12] + raw, digest_size=16).digest()
        for at, raw in zip(range(0, len(packed), 12), raws, strict=True)
    ]
    digits = hexlify(b"".join(digests))
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]
