"""The record of a training run: every decision, every rank's steps, measurements, reference log-probabilities.

What a method has returned from survives a kill -9 and a power cut. Applies nothing and decides nothing; the states of
the model are files (`checkpoints`), not rows here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.store.connection import open_writer, transaction
from realign_cluster.store.ledger_file import (
    EPOCH,
    EVENT,
    META,
    LedgerFile,
    cannot_be_made,
    check_identity,
    create_ledger_file,
    encode_meta,
)

SCHEMA_VERSION: Final = 1
SCHEMA: Final = f"""
{META};
{EVENT};
{EPOCH};
CREATE TABLE step (
    step INTEGER NOT NULL, generation INTEGER NOT NULL, node TEXT NOT NULL, wall REAL NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (step, generation, node)) WITHOUT ROWID;
CREATE TABLE measurement (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, node TEXT NOT NULL,
    wall REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE reference (row INTEGER PRIMARY KEY, chosen REAL NOT NULL, rejected REAL NOT NULL)
"""

PAGE_ROWS: Final = 4096  # read at a time
_SET_META: Final = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One rank's report of one step of one generation. `body` is its StepDone as JSON."""

    step: int
    generation: int
    node: str
    wall: float
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Anything else that a rank measured: `kind` is the report's op ("evaluated", "divergence", "kept", ...)."""

    kind: str
    step: int
    generation: int
    node: str
    wall: float
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    seq: int
    epoch: int
    at: float  # the coordinator's monotonic clock of that epoch
    wall: float
    body: dict[str, Any]  # {"event": {...}, "commands": [...]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    epoch: int
    opened_at: float
    last_at: float
    closed_at: float | None  # None: it was killed, or goes on


class TrainLedgerReader(LedgerFile):
    """Reads the ledger of a run that may be going on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "train", SCHEMA_VERSION)

    def steps(self) -> Iterator[StepRecord]:
        """By step, generation, node: a step that was computed again comes once for every time."""
        columns = "step, generation, node, wall, body"
        for row in self._pages(
            f"SELECT {columns} FROM step WHERE (step, generation, node) > (?, ?, ?)", (-1, -1, ""), 3
        ):
            yield StepRecord(step=row[0], generation=row[1], node=row[2], wall=row[3], body=orjson.loads(row[4]))

    def last_step(self) -> int:
        """The highest that was ever reported; 0 before the first."""
        return int(self._query("SELECT coalesce(max(step), 0) FROM step")[0][0])

    def measurements(self, kind: str) -> Iterator[Measurement]:
        """In the order they came."""
        columns = "seq, step, generation, node, wall, body"
        for row in self._pages(f"SELECT {columns} FROM measurement WHERE seq > ? AND kind = ?", (-1,), 1, kind):
            yield Measurement(
                kind=kind, step=row[1], generation=row[2], node=row[3], wall=row[4], body=orjson.loads(row[5])
            )

    def events(self, after: int = 0) -> Iterator[EventRecord]:
        """Those with a higher `seq`, in order."""
        for row in self._pages("SELECT seq, epoch, at, wall, body FROM event WHERE seq > ?", (after,), 1):
            yield EventRecord(seq=row[0], epoch=row[1], at=row[2], wall=row[3], body=orjson.loads(row[4]))

    def sittings(self) -> list[Sitting]:
        rows = self._query("SELECT epoch, opened_at, last_at, closed_at FROM epoch ORDER BY epoch")
        return [Sitting(epoch=row[0], opened_at=row[1], last_at=row[2], closed_at=row[3]) for row in rows]

    def reference(self) -> dict[int, tuple[float, float]]:
        """Reference log-probabilities (chosen, rejected) by row."""
        return {row[0]: (row[1], row[2]) for row in self._query("SELECT row, chosen, rejected FROM reference")}

    def _pages(self, statement: str, after: Sequence[Any], columns: int, *values: Any) -> Iterator[Any]:
        """Rows in the order of their first `columns`, read some at a time: a long run's do not fit into memory.

        `statement` asks for those beyond `after`, of these columns, and then for `values`.
        """
        order = ", ".join(str(column) for column in range(1, columns + 1))
        while rows := self._query(f"{statement} ORDER BY {order} LIMIT {PAGE_ROWS}", (*after, *values)):
            yield from rows
            after = rows[-1][:columns]


class TrainLedger(TrainLedgerReader):
    """The writer's view. Every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writer = open_writer(path)
        self._writing = threading.Lock()
        self._epoch = 0

    @classmethod
    def create(cls, path: Path, identity: Mapping[str, Any]) -> TrainLedger:
        """Raises FileExistsError, or RunFailed if it cannot be written."""
        create_ledger_file(path, SCHEMA, {"schema_version": SCHEMA_VERSION, "kind": "train", "identity": identity})
        try:
            return cls(path)
        except sqlite3.Error as error:
            raise cannot_be_made(path, error) from error

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> TrainLedger:
        """Raises UsageError naming each key of `identity` that differs from the run's own."""
        ledger = cls(path)
        try:
            check_identity(ledger.meta("identity"), identity, path.parent)
        except UsageError:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        super().close()
        self._writer.close()

    def set_meta(self, key: str, value: Any) -> None:
        with self._transaction() as connection:
            connection.execute(_SET_META, (key, encode_meta(value)))

    def open_epoch(self, wall: float) -> int:
        """Begins a sitting; its number rises with each."""
        with self._transaction() as connection:
            epoch = int(connection.execute("SELECT coalesce(max(epoch), 0) + 1 FROM epoch").fetchone()[0])
            connection.execute(
                "INSERT INTO epoch (epoch, opened_at, last_at, host, pid) VALUES (?, ?, ?, ?, ?)",
                (epoch, wall, wall, socket.gethostname(), os.getpid()),
            )
        self._epoch = epoch
        return epoch

    def close_epoch(self, wall: float) -> None:
        with self._transaction() as connection:
            connection.execute("UPDATE epoch SET closed_at = ?, last_at = ? WHERE epoch = ?", (wall, wall, self._epoch))

    def record(
        self,
        wall: float,
        *,
        events: Iterable[tuple[float, Mapping[str, Any]]] = (),
        steps: Iterable[StepRecord] = (),
        measurements: Iterable[Measurement] = (),
        reference: Iterable[tuple[int, float, float]] = (),
        memory: Mapping[str, Any] | None = None,
    ) -> None:
        """All of it in one transaction. Raises StorageFull (nothing written, the same call may be repeated).

        `events` are (monotonic time, body). A step that a rank reports twice is kept once. `memory` is what the next
        sitting opens with, where it has changed.
        """
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO event (epoch, at, wall, body) VALUES (?, ?, ?, ?)",
                [(self._epoch, at, wall, orjson.dumps(body)) for at, body in events],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO step (step, generation, node, wall, body) VALUES (?, ?, ?, ?, ?)",
                [(each.step, each.generation, each.node, each.wall, orjson.dumps(each.body)) for each in steps],
            )
            connection.executemany(
                "INSERT INTO measurement (kind, step, generation, node, wall, body) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (each.kind, each.step, each.generation, each.node, each.wall, orjson.dumps(each.body))
                    for each in measurements
                ],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO reference (row, chosen, rejected) VALUES (?, ?, ?)", list(reference)
            )
            if memory is not None:
                connection.execute(_SET_META, ("memory", encode_meta(memory)))
            connection.execute("UPDATE epoch SET last_at = ? WHERE epoch = ?", (wall, self._epoch))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with transaction(self._writer, self._writing, self.path, 64 * 1024):
            yield self._writer
