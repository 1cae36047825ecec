"""The run's record: units, attempts, results and every decision, in one SQLite file with one writing connection.

What `record` has returned from survives a kill -9 and a power cut. Applies decisions, makes none; must not know gRPC
or nodes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.events import RunOpened, UnitRef
from realign_cluster.domain.ids import AttemptId, Epoch, LeaseId, UnitId
from realign_cluster.store.connection import open_writer, transaction
from realign_cluster.store.ledger_changes import Changes, Entry, LedgerConflict, ResultRecord
from realign_cluster.store.ledger_file import cannot_be_made, check_identity, create_ledger_file, encode_meta
from realign_cluster.store.ledger_reader import LedgerReader
from realign_cluster.store.ledger_schema import PENDING, SCHEMA, SCHEMA_VERSION

__all__ = ["Entry", "Ledger", "LedgerConflict", "LedgerReader", "ResultRecord", "encode_meta"]

SMALL_WRITE_BYTES: Final = 64 * 1024


class Ledger(LedgerReader):
    """The writer's view. Every method may be called from any thread; reads do not wait for a commit in progress."""

    def __init__(self, path: Path, *, max_pages: int | None = None) -> None:
        super().__init__(path)
        self._writer = open_writer(path, max_pages)
        self._writing = threading.Lock()
        self._epoch = 0
        self._first_child: int = 0  # units from here on were cut by the scheduler of this epoch
        self._cursor: tuple[int, int] | None = None

    @classmethod
    def create(cls, path: Path, identity: Mapping[str, Any], *, max_pages: int | None = None) -> Ledger:
        """A new ledger at `path`, which must not exist. `identity`: what must be equal for the run to be resumed.

        Appears whole or not at all. Raises FileExistsError if there is one, RunFailed if it cannot be written.
        """
        create_ledger_file(path, SCHEMA, {"schema_version": SCHEMA_VERSION, "identity": identity})
        try:
            return cls(path, max_pages=max_pages)
        except sqlite3.Error as error:
            raise cannot_be_made(path, error) from error

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any] | None = None, *, max_pages: int | None = None) -> Ledger:
        """The ledger at `path`. Raises UsageError naming each key of `identity` that differs from the run's own."""
        ledger = cls(path, max_pages=max_pages)
        if identity is not None:
            try:
                ledger.check_identity(identity)
            except UsageError:
                ledger.close()
                raise
        return ledger

    @classmethod
    def read_only(cls, path: Path) -> LedgerReader:
        return LedgerReader(path)

    def close(self) -> None:
        """The writer last: whoever closes a database last clears its write-ahead log, which a reader cannot."""
        super().close()
        self._writer.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Raises UsageError that names what this run has and what is asked now, for every key that differs."""
        check_identity(self.meta("identity"), identity, self.path.parent)

    @contextlib.contextmanager
    def writing(self, needed_bytes: int = SMALL_WRITE_BYTES) -> Iterator[sqlite3.Connection]:
        """One durable transaction on the writing connection. Raises StorageFull(needed_bytes), nothing written."""
        with transaction(self._writer, self._writing, self.path, needed_bytes):
            yield self._writer

    def set_meta(self, key: str, value: Any) -> None:
        """Notes a JSON value durably."""
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, encode_meta(value)),
            )

    # --- a sitting
    # ------------------------------------------------------------------------------------------------------

    def open_epoch(self, at: float, wall: float) -> RunOpened:
        """Begins a sitting: ends what older ones left live, and says what is to do. `at` monotonic, `wall` seconds
        since 1970.
        """
        with self.writing() as connection:
            connection.execute(
                "UPDATE attempt SET ended_at = ?, outcome = 'older epoch' WHERE outcome IS NULL", (wall,)
            )
            epoch = connection.execute("SELECT coalesce(max(epoch), 0) + 1 FROM epoch").fetchone()[0]
            connection.execute(
                "INSERT INTO epoch (epoch, opened_at, last_at, host, pid) VALUES (?, ?, ?, ?, ?)",
                (epoch, wall, wall, socket.gethostname(), os.getpid()),
            )
            units, cost = connection.execute(
                f"SELECT count(*), coalesce(sum(cost), 0.0) FROM unit WHERE state = {PENDING}"
            ).fetchone()
            next_unit = connection.execute("SELECT coalesce(max(unit_id), 0) + 1 FROM unit").fetchone()[0]
            last = connection.execute(
                "SELECT attempt_id, lease FROM attempt ORDER BY attempt_id DESC LIMIT 1"
            ).fetchone()
        self._epoch, self._first_child, self._cursor = epoch, next_unit, None
        attempt, lease = last or (0, 0)
        return RunOpened(
            at=at,
            epoch=Epoch(epoch),
            units=units,
            cost=cost,
            next_unit=UnitId(next_unit),
            next_attempt=AttemptId(attempt + 1),
            next_lease=LeaseId(lease + 1),
        )

    def close_epoch(self, wall: float) -> None:
        """Ends this sitting in order; a sitting that was killed stays open."""
        with self.writing() as connection:
            connection.execute("UPDATE epoch SET closed_at = ?, last_at = ? WHERE epoch = ?", (wall, wall, self._epoch))

    def load_pending(self, count: int) -> tuple[tuple[UnitRef, ...], bool]:
        """Up to `count` pending units, longest first, each once per epoch; and whether that was all.

        Children that the scheduler cut in this epoch are left out: it has them already.
        """
        columns = "unit_id, cost, longest, row_count, suspected, failed_on"
        select = f"SELECT {columns} FROM unit WHERE state = {PENDING} AND unit_id < ?"
        bound = self._first_child
        if self._cursor is None:
            rows = self._query(f"{select} ORDER BY longest DESC, unit_id LIMIT ?", (bound, count))
        else:
            longest, unit = self._cursor
            rows = self._query(
                f"{select} AND longest = ? AND unit_id > ? ORDER BY unit_id LIMIT ?", (bound, longest, unit, count)
            )
            if len(rows) < count:
                rows += self._query(
                    f"{select} AND longest < ? ORDER BY longest DESC, unit_id LIMIT ?",
                    (bound, longest, count - len(rows)),
                )
        if rows:
            self._cursor = (rows[-1][2], rows[-1][0])
        units = tuple(
            UnitRef(
                unit=row[0], cost=row[1], longest=row[2], rows=row[3], suspected=bool(row[4]), failed_on=_names(row[5])
            )
            for row in rows
        )  # fmt: skip
        return units, len(rows) < count

    def record(self, entries: Sequence[Entry], wall: float) -> None:
        """Makes `entries` durable in one transaction, in order: events, and what their commands change.

        Raises StorageFull (nothing written, the same call may be repeated) or LedgerConflict (a bug of the caller).
        """
        if not entries:
            return
        changes = Changes(self._epoch, wall)
        for entry in entries:
            changes.add(entry)
        with self.writing(changes.size) as connection:
            changes.write(connection)


def _names(text: str) -> tuple[Any, ...]:
    return () if text == "[]" else tuple(orjson.loads(text))
