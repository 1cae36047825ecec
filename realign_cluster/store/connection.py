"""How SQLite is opened and how its errors read: WAL, fully synchronous, one writing connection.

SQLite before 3.51.3 can damage a WAL when two connections write and checkpoint at once: there is one writer per
process and a lock on the run folder, so an old SQLite is worth a warning and no more.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from realign_cluster.domain.errors import RunFailed
from realign_cluster.store.space import StorageFull

SAFE_VERSION = (3, 51, 3)
BUSY_SECONDS = 10.0
CHECKPOINT_PAGES = 4000


def version_warning() -> str | None:
    """What to tell the user about the SQLite in use, or None."""
    if sqlite3.sqlite_version_info >= SAFE_VERSION:
        return None
    return (
        f"SQLite {sqlite3.sqlite_version} is older than {'.'.join(map(str, SAFE_VERSION))}:"
        " let no other program write to a run's ledger while the run is on"
    )


def open_writer(path: Path, max_pages: int | None = None) -> sqlite3.Connection:
    """The one writing connection. `max_pages` bounds the file, to provoke a really full database in tests."""
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    if sys.platform == "darwin":
        connection.execute("PRAGMA fullfsync=1")
        connection.execute("PRAGMA checkpoint_fullfsync=1")
    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    connection.execute("PRAGMA cache_size=-32768")
    if max_pages is not None:
        connection.execute(f"PRAGMA max_page_count={int(max_pages)}")
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; it sees every committed transaction."""
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=ro",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA query_only=1")
        connection.execute("PRAGMA cache_size=-16384")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, lock: threading.Lock, path: Path, needed_bytes: int) -> Iterator[None]:
    """All or nothing, durable when the block ends. A full disk raises StorageFull(needed_bytes), with nothing
    written.
    """
    with lock:
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(connection)
            raise _translated(error, path, needed_bytes) from error
        except OSError as error:
            _roll_back(connection)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(path, needed_bytes) from error
            raise
        except BaseException:
            _roll_back(connection)
            raise


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):  # SQLite rolled back by itself
            connection.execute("ROLLBACK")


def _translated(error: sqlite3.Error, path: Path, needed_bytes: int) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0) or 0
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return StorageFull(path, needed_bytes)
    if code & 0xFF == sqlite3.SQLITE_IOERR and not _has_room(path, needed_bytes):
        return StorageFull(path, needed_bytes)  # writing to the shared-memory file fails this way on a full disk
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return RunFailed(f"the ledger {path} is damaged: {error}", "start the run again in a new folder")
    return error


def _has_room(path: Path, needed_bytes: int) -> bool:
    import shutil

    return shutil.disk_usage(path.parent).free > needed_bytes + 1024 * 1024
