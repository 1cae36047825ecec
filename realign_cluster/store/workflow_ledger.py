"""The record of a workflow: jobs that were done and by whom, stages, verdicts, and what people decided.

What a method has returned from survives a kill -9 and a power cut. Decides nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.store.connection import open_writer, transaction
from realign_cluster.store.ledger_file import META, LedgerFile, create_ledger_file, encode_meta

KIND: Final = "workflow"
SCHEMA_VERSION: Final = 1
SCHEMA: Final = f"""
{META};
CREATE TABLE job (
    key TEXT PRIMARY KEY, stage INTEGER NOT NULL, attempt INTEGER NOT NULL, begun REAL NOT NULL, ended REAL,
    request BLOB NOT NULL, result BLOB) WITHOUT ROWID;
CREATE TABLE artifact (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, bytes INTEGER NOT NULL, made_by TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE stage (
    stage INTEGER NOT NULL, attempt INTEGER NOT NULL, begun REAL NOT NULL, ended REAL, body BLOB NOT NULL,
    PRIMARY KEY (stage, attempt)) WITHOUT ROWID;
CREATE TABLE verdict (
    stage INTEGER NOT NULL, attempt INTEGER NOT NULL, gate TEXT NOT NULL, wall REAL NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (stage, attempt, gate)) WITHOUT ROWID;
CREATE TABLE note (seq INTEGER PRIMARY KEY, wall REAL NOT NULL, kind TEXT NOT NULL, body BLOB NOT NULL)
"""
ROOM_BYTES: Final = 1 << 20
UNCOUNTED: Final[dict[str, Any]] = {"look": None, "looks": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    key: str
    stage: int
    attempt: int
    begun: float
    ended: float | None
    request: dict[str, Any]
    result: dict[str, Any] | None  # {"outputs", "value", "failed", "nodes", "versions", "folder"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    stage: int
    attempt: int
    begun: float
    ended: float | None
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRecord:
    stage: int
    attempt: int
    gate: str
    wall: float
    body: dict[str, Any]  # "look" and "looks" are None where a verdict is from before looks were counted


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRecord:
    """`kind`: "sitting", "rerun", "look", "override", "withdrawal", "rollback", "signature"."""

    seq: int
    wall: float
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRecord:
    id: str
    name: str
    bytes: int
    made_by: str  # the key of a job, or "input: PATH"


class WorkflowLedgerReader(LedgerFile):
    """Reads the ledger of a run that may be going on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, KIND, SCHEMA_VERSION)

    def job(self, key: str) -> JobRecord | None:
        found = self._query("SELECT key, stage, attempt, begun, ended, request, result FROM job WHERE key = ?", (key,))
        return _job(found[0]) if found else None

    def jobs(self) -> list[JobRecord]:
        """In the order they were begun."""
        rows = self._query("SELECT key, stage, attempt, begun, ended, request, result FROM job ORDER BY begun, key")
        return [_job(row) for row in rows]

    def artifacts(self) -> dict[str, ArtifactRecord]:
        rows = self._query("SELECT id, name, bytes, made_by FROM artifact")
        return {row[0]: ArtifactRecord(id=row[0], name=row[1], bytes=row[2], made_by=row[3]) for row in rows}

    def stages(self) -> list[StageRecord]:
        rows = self._query("SELECT stage, attempt, begun, ended, body FROM stage ORDER BY stage, attempt")
        return [
            StageRecord(stage=row[0], attempt=row[1], begun=row[2], ended=row[3], body=orjson.loads(row[4]))
            for row in rows
        ]

    def verdicts(self) -> list[VerdictRecord]:
        rows = self._query("SELECT stage, attempt, gate, wall, body FROM verdict ORDER BY stage, attempt, gate")
        return [
            VerdictRecord(stage=row[0], attempt=row[1], gate=row[2], wall=row[3], body=UNCOUNTED | orjson.loads(row[4]))
            for row in rows
        ]

    def notes(self, kind: str | None = None) -> list[NoteRecord]:
        """In the order they were made."""
        rows = self._query("SELECT seq, wall, kind, body FROM note ORDER BY seq")
        found = [NoteRecord(seq=row[0], wall=row[1], kind=row[2], body=orjson.loads(row[3])) for row in rows]
        return [note for note in found if kind in (None, note.kind)]


class WorkflowLedger(WorkflowLedgerReader):
    """The one that writes: its process holds the run's lock."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writer = open_writer(path)
        self._writing = threading.Lock()

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any]) -> WorkflowLedger:
        """A new ledger with these facts. Raises FileExistsError."""
        create_ledger_file(path, SCHEMA, {"kind": KIND, "schema_version": SCHEMA_VERSION, **facts})
        return cls(path)

    def close(self) -> None:
        self._writer.close()
        super().close()

    def set_meta(self, key: str, value: Any) -> None:
        self._write(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            key,
            encode_meta(value),
        )

    def begin_job(self, key: str, stage: int, attempt: int, wall: float, request: Mapping[str, Any]) -> None:
        """Noted once: a job that is gone on with keeps the time it was begun first."""
        self._write(
            "INSERT INTO job (key, stage, attempt, begun, request) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            *(key, stage, attempt, wall, orjson.dumps(request)),
        )

    def end_job(
        self, key: str, wall: float, result: Mapping[str, Any], artifacts: Mapping[str, ArtifactRecord]
    ) -> None:
        with self._transaction():
            self._writer.execute(
                "UPDATE job SET ended = ?, result = ? WHERE key = ?", (wall, orjson.dumps(result), key)
            )
            self._add_artifacts(artifacts)

    def add_artifact(self, record: ArtifactRecord) -> None:
        with self._transaction():
            self._add_artifacts({record.id: record})

    def put_stage(self, stage: int, attempt: int, wall: float, body: Mapping[str, Any], *, ended: bool) -> None:
        self._write(
            "INSERT INTO stage (stage, attempt, begun, ended, body) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (stage, attempt) DO UPDATE SET ended = excluded.ended, body = excluded.body",
            *(stage, attempt, wall, wall if ended else None, orjson.dumps(body)),
        )

    def put_verdict(self, stage: int, attempt: int, gate: str, wall: float, body: Mapping[str, Any]) -> None:
        self._write(
            "INSERT INTO verdict (stage, attempt, gate, wall, body) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (stage, attempt, gate) DO UPDATE SET wall = excluded.wall, body = excluded.body",
            *(stage, attempt, gate, wall, orjson.dumps(body)),
        )

    def drop_after(self, stage: int, attempt: int) -> None:
        """Forgets stages and verdicts that the course as it is judged now does not reach; jobs stay."""
        with self._transaction():
            for table in ("stage", "verdict"):
                self._writer.execute(
                    f"DELETE FROM {table} WHERE stage > ? OR (stage = ? AND attempt > ?)", (stage, stage, attempt)
                )

    def add_note(self, kind: str, wall: float, body: Mapping[str, Any]) -> None:
        self._write("INSERT INTO note (wall, kind, body) VALUES (?, ?, ?)", wall, kind, orjson.dumps(body))

    def _add_artifacts(self, artifacts: Mapping[str, ArtifactRecord]) -> None:
        for record in artifacts.values():
            self._writer.execute(
                "INSERT INTO artifact (id, name, bytes, made_by) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (record.id, record.name, record.bytes, record.made_by),
            )

    def _write(self, statement: str, *values: Any) -> None:
        with self._transaction():
            self._writer.execute(statement, values)

    def _transaction(self) -> contextlib.AbstractContextManager[None]:
        return transaction(self._writer, self._writing, self.path, ROOM_BYTES)


def _job(row: sqlite3.Row) -> JobRecord:
    return JobRecord(
        key=row[0],
        stage=row[1],
        attempt=row[2],
        begun=row[3],
        ended=row[4],
        request=orjson.loads(row[5]),
        result=orjson.loads(row[6]) if row[6] is not None else None,
    )
