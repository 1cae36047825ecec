"""Reference log-probabilities that some run of this cluster has computed: by what computed them, and by row.

A row is known by its bytes in the prepared dataset, so that another dataset with the same rows finds them. Losing the
file costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from realign_cluster.domain.training import TrainJob

Values = tuple[int, float, float]  # row, chosen, rejected


def reference_key(job: TrainJob) -> str:
    """Of everything that a reference log-probability depends on but the row: weights, tokenizer and template (the
    model's hash), truncation, dtype, and the version of the forward pass.
    """
    facts = {
        "model": job.model.hash,
        "version": job.version,
        **job.model_dump(mode="json", include={"chat", "max_tokens", "truncate", "dtype"}),
    }
    return hashlib.blake2b(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


class ReferenceCache:
    """One file for all models and datasets of a cluster. Raises sqlite3.Error for one that is damaged or in use."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS reference (key TEXT NOT NULL, row BLOB NOT NULL, chosen REAL NOT NULL,"
            " rejected REAL NOT NULL, PRIMARY KEY (key, row)) WITHOUT ROWID"
        )

    def close(self) -> None:
        self._connection.close()

    def find(self, key: str, rows: Iterable[bytes]) -> list[Values]:
        """For the rows that are known, by their number in `rows`."""
        statement = "SELECT chosen, rejected FROM reference WHERE key = ? AND row = ?"
        found = []
        for number, row in enumerate(rows):
            if (values := self._connection.execute(statement, (key, row)).fetchone()) is not None:
                found.append((number, *values))
        return found

    def add(self, key: str, rows: Iterable[bytes], values: dict[int, tuple[float, float]]) -> None:
        """`values` by row number in `rows`. What is known already stays: runs may have begun with it."""
        with contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.executemany(
                "INSERT OR IGNORE INTO reference (key, row, chosen, rejected) VALUES (?, ?, ?, ?)",
                ((key, row, *values[number]) for number, row in enumerate(rows) if number in values),
            )
            cursor.execute("COMMIT")


def row_digests(folder: Path) -> Iterator[bytes]:
    """BLAKE2b-128 of each line of train.jsonl and then of valid.jsonl, as reference rows are numbered."""
    for name in ("train.jsonl", "valid.jsonl"):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                for line in file:
                    yield hashlib.blake2b(line.rstrip(b"\n"), digest_size=16).digest()
