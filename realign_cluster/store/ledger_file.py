"""What the ledgers of all kinds of runs share: one SQLite file that appears whole, facts, an identity, its reader.

Knows no units, steps or events: `ledger` and `train_ledger` do.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.store.connection import open_reader
from realign_cluster.store.durable import sync_folder

META: Final = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
EPOCH: Final = """CREATE TABLE epoch (
    epoch INTEGER PRIMARY KEY, opened_at REAL NOT NULL, last_at REAL NOT NULL, closed_at REAL, host TEXT NOT NULL,
    pid INTEGER NOT NULL)"""
EVENT: Final = """CREATE TABLE event (
    seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, at REAL NOT NULL, wall REAL NOT NULL, body BLOB NOT NULL)"""
SHOWN_CHARACTERS: Final = 120
SCORE: Final = "score"  # the kind of a ledger that names none
RUN_OF_KIND: Final = {SCORE: "a scoring run", "train": "a training", "workflow": "the run of a workflow"}
_MISSING: Final = object()


def create_ledger_file(path: Path, statements: str, meta: Mapping[str, Any]) -> None:
    """A new database at `path` with these tables and facts. Raises FileExistsError, or RunFailed if it cannot be
    written.
    """
    if path.exists():
        raise FileExistsError(path)
    temporary = path.with_name(path.name + ".part")
    for leftover in (temporary, Path(f"{temporary}-wal"), Path(f"{temporary}-shm")):
        leftover.unlink(missing_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN")
            for statement in statements.split(";"):
                connection.execute(statement)
            connection.executemany(
                "INSERT INTO meta (key, value) VALUES (?, ?)",
                [(key, encode_meta(value)) for key, value in meta.items()],
            )
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.Error as error:
        raise cannot_be_made(path, error) from error
    temporary.rename(path)
    sync_folder(path.parent)


class LedgerFile:
    """A ledger of one kind, open to be read, also while its run goes on; thread-safe. Raises UsageError for one of
    another kind or version, sqlite3.Error where there is none.
    """

    def __init__(self, path: Path, kind: str, version: int) -> None:
        self.path = path
        self._reading = threading.Lock()
        self._reader = open_reader(path)
        with contextlib.ExitStack() as failed:
            failed.callback(self._reader.close)
            found = (self.meta("kind") or SCORE, self.meta("schema_version"))
            if found[0] != kind:
                raise UsageError(
                    f"{path.parent} is {RUN_OF_KIND.get(found[0], found[0])}, not {RUN_OF_KIND[kind]}",
                    f"realign runs show {path.parent} looks at it; what is to be run goes into another folder",
                )
            if found != (kind, version):
                raise UsageError(
                    f"the ledger {path} is of version {found[1]}, here version {version} is read",
                    "use the version of realign-cluster that made it, or start the run again in a new folder",
                )
            failed.pop_all()

    def close(self) -> None:
        self._reader.close()

    def meta(self, key: str) -> Any:
        """A fact of the run (a JSON value), None if it was not noted."""
        found = self._query("SELECT value FROM meta WHERE key = ?", (key,))
        return orjson.loads(found[0][0]) if found else None

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._reading:
            return self._reader.execute(statement, values).fetchall()


def ledger_kind(path: Path) -> str:
    """ "score", "train" or "workflow". Raises UsageError for a file that is no ledger."""
    try:
        with contextlib.closing(open_reader(path)) as connection:
            found = connection.execute("SELECT value FROM meta WHERE key = 'kind'").fetchone()
    except sqlite3.Error as error:
        raise UsageError(
            f"{path} is not the ledger of a run: {error}", "start the run again in a new folder"
        ) from error
    return str(orjson.loads(found[0])) if found else SCORE


def check_identity(recorded: Mapping[str, Any], identity: Mapping[str, Any], folder: Path) -> None:
    """Raises UsageError that names what this run has and what is asked now, for every key that differs: of a table,
    "optimizer.weight_decay".
    """
    differences = list(_differences(recorded, orjson.loads(encode_meta(identity))))
    if differences:
        listed = "\n  ".join(differences)
        raise UsageError(
            f"the run at {folder} was made from something else:\n  {listed}",
            "repeat the command it was started with, or choose another --out",
        )


def encode_meta(value: Any) -> str:
    """A JSON value as the meta table holds it: equal values give equal texts."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()


def cannot_be_made(path: Path, error: sqlite3.Error) -> RunFailed:
    return RunFailed(
        f"the ledger {path} cannot be made: {error}", "see whether that disk is full, of bytes or of files"
    )


def _differences(recorded: Mapping[str, Any], asked: Mapping[str, Any], table: str = "") -> Iterator[str]:
    for key in sorted({*recorded, *asked}):
        has, now = recorded.get(key, _MISSING), asked.get(key, _MISSING)
        if isinstance(has, dict) and isinstance(now, dict):
            yield from _differences(has, now, f"{table}{key}.")
        elif has != now:
            has_text, now_text = _text(has), _text(now)
            start = next(
                (at for at, (one, other) in enumerate(zip(has_text, now_text, strict=False)) if one != other), 0
            )
            yield f"{table}{key}: the run has {_shown(has_text, start)}, now it is {_shown(now_text, start)}"


def _text(value: Any) -> str:
    return "nothing" if value is _MISSING else encode_meta(value)


def _shown(text: str, start: int) -> str:
    """With what stands at `start`, where another text differs."""
    begin = max(0, start - SHOWN_CHARACTERS // 2) if len(text) > SHOWN_CHARACTERS else 0
    end = begin + SHOWN_CHARACTERS
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if len(text) > end else ''}"
