"""Turns a batch of decided entries into the fewest statements: what Ledger.record writes in its one transaction.

Applies commands, decides nothing. A command that contradicts the ledger (a second commit of a unit, a commit of an
attempt that is not live) is a bug of the caller and raises LedgerConflict, with nothing written.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson
import zstandard

from realign_cluster.domain import codec
from realign_cluster.domain.events import (
    Blame,
    Command,
    Commit,
    Discard,
    Event,
    Grant,
    NodeLost,
    Quarantine,
    RevokeAttempts,
    Split,
    UnitFailed,
    WorkerExited,
)
from realign_cluster.domain.ids import AttemptId, Epoch, NodeName, UnitId
from realign_cluster.store.ledger_schema import COMMITTED, PENDING, QUARANTINED, SPLIT
from realign_cluster.store.positions import POSITION

COMPRESS_FROM: Final = 512  # bytes
_NO_BOUND: Final = 2**63 - 1
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # no JSON begins like this


class LedgerConflict(RuntimeError):
    """What was to be recorded contradicts what is recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRecord:
    """A valid result as it came from a node: `payload` has one JSON object per row and line, in row order."""

    unit: UnitId
    attempt: AttemptId
    epoch: Epoch
    node: NodeName
    payload: bytes
    rows: int
    tokens: int = 0
    compute_seconds: float = 0.0
    shape: str = ""
    checksum: bytes = b""  # BLAKE2b-128 of payload; computed if empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An event, what the domain decided on it, and the result it brought if the decision holds a Commit."""

    event: Event
    commands: Sequence[Command] = ()
    result: ResultRecord | None = None


class _Zstd(threading.local):
    """One pair for each thread: making them costs more than a unit's payload, and they may not be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


def pack_blob(data: bytes) -> bytes:
    """`data`, compressed where that pays."""
    return _zstd.compressor.compress(data) if len(data) >= COMPRESS_FROM else data


def unpack_blob(blob: bytes) -> bytes:
    return _zstd.decompressor.decompress(blob) if blob[:4] == _ZSTD_MAGIC else blob


class Changes:
    """Collects entries in order, then writes them."""

    def __init__(self, epoch: int, wall: float) -> None:
        self._epoch = epoch
        self._wall = wall
        self._events: list[tuple[Any, ...]] = []
        self._grants: list[tuple[Any, ...]] = []
        self._results: list[tuple[Any, ...]] = []
        self._committed: list[tuple[Any, ...]] = []
        self._closed: dict[int, tuple[Any, ...]] = {}
        # nodes that lost all they held: the outcome of that, and how many grants of this batch came before
        self._emptied: list[tuple[str, str, int]] = []
        self._splits: list[Split] = []
        self._quarantines: list[Quarantine] = []
        self._blames: list[Blame] = []
        self.committed_rows = 0

    def add(self, entry: Entry) -> None:
        body = {"event": codec.encode(entry.event), "commands": [codec.encode(command) for command in entry.commands]}
        self._events.append((self._epoch, entry.event.at, self._wall, pack_blob(orjson.dumps(body))))
        for command in entry.commands:
            match command:
                case Grant():
                    self._grants.extend(
                        (attempt, unit, command.lease, self._epoch, command.node, self._wall, command.reason)
                        for attempt, unit in command.attempts
                    )
                case Commit():
                    self._commit(command, entry.result)
                case RevokeAttempts():
                    for attempt in command.attempts:
                        self._close(attempt, f"revoked: {command.reason}")
                case Discard():
                    self._close(command.attempt, f"discarded: {command.reason}")
                case Split():
                    self._splits.append(command)
                case Quarantine():
                    self._quarantines.append(command)
                case Blame():
                    self._blames.append(command)
                case _:  # effects on nodes: recorded with the event, nothing of the ledger's own
                    pass
        match entry.event:
            case UnitFailed() as event:
                self._close(event.attempt, f"failed: {event.code}")
            case WorkerExited() as event:
                if event.computing is not None:
                    self._close(event.computing, f"worker exited: {event.reason}")
                self._emptied.append((event.node, f"worker exited, not to blame: {event.reason}", len(self._grants)))
            case NodeLost() as event:
                self._emptied.append((event.node, f"node lost: {event.reason}", len(self._grants)))
            case _:
                pass

    def _close(self, attempt: int, outcome: str) -> None:
        self._closed.setdefault(attempt, (self._wall, outcome, attempt))

    def _commit(self, command: Commit, result: ResultRecord | None) -> None:
        if result is None or (result.unit, result.attempt) != (command.unit, command.attempt):
            raise LedgerConflict(f"the commit of unit {command.unit} came without its result")
        if result.epoch != self._epoch or command.attempt in self._closed:
            raise LedgerConflict(f"attempt {command.attempt} of unit {command.unit} is not live: it cannot commit")
        checksum = result.checksum or blake2b(result.payload, digest_size=16).digest()
        self._results.append(
            (
                result.unit, result.attempt, result.epoch, result.node, result.rows, result.tokens,
                result.compute_seconds, result.shape, self._wall, checksum, pack_blob(result.payload), result.unit,
            )
        )  # fmt: skip
        self._committed.append((self._wall, command.attempt, command.unit, self._epoch))
        self.committed_rows += result.rows

    @property
    def size(self) -> int:
        """Bytes that writing will take at most, about: the data twice (WAL and database) and a page per row."""
        data = sum(len(row[-1]) for row in self._events) + sum(len(row[-2]) for row in self._results)
        return 2 * data + 4096 * (4 + 2 * len(self._grants) + 2 * len(self._results))

    def write(self, connection: sqlite3.Connection) -> None:
        """Applies everything, inside the caller's transaction."""
        self._write_splits(connection)
        connection.executemany("INSERT INTO event (epoch, at, wall, body) VALUES (?, ?, ?, ?)", self._events)
        if self._grants:
            connection.executemany(
                "INSERT INTO attempt (attempt_id, unit_id, lease, epoch, node, granted_at, reason)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                self._grants,
            )
        if self._results:
            self._write_results(connection)
        if self._closed:
            connection.executemany(
                "UPDATE attempt SET ended_at = ?, outcome = ? WHERE attempt_id = ? AND outcome IS NULL",
                list(self._closed.values()),
            )
        for node, outcome, grants_before in self._emptied:
            # attempt ids rise: what was granted after that, to the same node come back, stays live
            below = self._grants[grants_before][0] if grants_before < len(self._grants) else _NO_BOUND
            connection.execute(
                "UPDATE attempt SET ended_at = ?, outcome = ?"
                " WHERE node = ? AND epoch = ? AND attempt_id < ? AND outcome IS NULL",
                (self._wall, outcome, node, self._epoch, below),
            )
        for quarantine in self._quarantines:
            _changed(
                connection.execute(
                    f"UPDATE unit SET state = {QUARANTINED} WHERE unit_id = ? AND state = {PENDING}", (quarantine.unit,)
                ),
                1,
                f"unit {quarantine.unit} is not pending and cannot be quarantined",
            )
            connection.execute(
                "INSERT INTO quarantine (unit_id, code, message) VALUES (?, ?, ?)",
                (quarantine.unit, quarantine.code, quarantine.message),
            )
        for blame in self._blames:
            connection.execute(
                "UPDATE unit SET failed_on = json_insert(failed_on, '$[#]', ?) WHERE unit_id = ?",
                (blame.node, blame.unit),
            )
        connection.execute("UPDATE epoch SET last_at = ? WHERE epoch = ?", (self._wall, self._epoch))

    def _write_results(self, connection: sqlite3.Connection) -> None:
        try:
            connection.executemany(
                "INSERT INTO result (unit_id, attempt_id, epoch, node, rows, tokens, compute_seconds, shape,"
                " committed_at, checksum, payload, cost)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT cost FROM unit WHERE unit_id = ?))",
                self._results,
            )
        except sqlite3.IntegrityError as error:
            raise LedgerConflict(f"a unit is committed twice: {error}") from error
        count = len(self._results)
        _changed(
            connection.executemany(
                "UPDATE attempt SET ended_at = ?, outcome = 'committed'"
                " WHERE attempt_id = ? AND unit_id = ? AND epoch = ? AND outcome IS NULL",
                self._committed,
            ),
            count,
            "an attempt that is not live cannot commit",
        )
        _changed(
            connection.executemany(
                f"UPDATE unit SET state = {COMMITTED} WHERE unit_id = ? AND state = {PENDING}",
                [(row[0],) for row in self._results],
            ),
            count,
            "a unit that is not pending cannot be committed",
        )

    def _write_splits(self, connection: sqlite3.Connection) -> None:
        for split in self._splits:
            parent = connection.execute(
                "SELECT unit.window, unit.cost, unit.longest, unit.row_count, unit_rows.rows FROM unit"
                f" JOIN unit_rows USING (unit_id) WHERE unit_id = ? AND state = {PENDING}",
                (split.unit,),
            ).fetchone()
            if parent is None:
                raise LedgerConflict(f"unit {split.unit} is not pending and cannot be split")
            window, cost, longest, row_count, rows = parent
            if sorted(_spans(split.children)) != _whole(split.children, row_count):
                raise LedgerConflict(f"the children of unit {split.unit} do not cover its {row_count} rows")
            connection.execute(f"UPDATE unit SET state = {SPLIT} WHERE unit_id = ?", (split.unit,))
            size = POSITION.itemsize
            for child, first, count in split.children:
                connection.execute(
                    "INSERT INTO unit (unit_id, window, parent, row_count, cost, longest, suspected) VALUES"
                    " (?, ?, ?, ?, ?, ?, 1)",
                    (child, window, split.unit, count, cost * count / row_count, longest),
                )
                connection.execute(
                    "INSERT INTO unit_rows (unit_id, rows) VALUES (?, ?)",
                    (child, rows[first * size : (first + count) * size]),
                )


def _spans(children: Iterable[tuple[int, int, int]]) -> Iterable[tuple[int, int]]:
    return ((first, count) for _, first, count in children)


def _whole(children: Iterable[tuple[int, int, int]], row_count: int) -> list[tuple[int, int]]:
    """The spans that `children` must have to cover `row_count` rows, each once."""
    spans, at = [], 0
    for first, count in sorted(_spans(children)):
        spans.append((at, count))
        at = at + count
        if first != spans[-1][0] or count <= 0:
            return []
    return spans if at == row_count else []


def _changed(cursor: sqlite3.Cursor, expected: int, problem: str) -> None:
    if cursor.rowcount != expected:
        raise LedgerConflict(problem)
