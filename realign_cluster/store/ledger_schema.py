"""The ledger's tables. Changing them means a new SCHEMA_VERSION: a ledger of another version is refused, never
altered.
"""

from __future__ import annotations

from typing import Final

from realign_cluster.store.ledger_file import EPOCH, EVENT, META

SCHEMA_VERSION: Final = 2  # also of how events are written: domain/codec.py

PENDING, COMMITTED, SPLIT, QUARANTINED = range(4)  # unit.state

# unit_pending covers what paging and the remaining work need, so that neither touches the table; it is walked longest
# first
SCHEMA: Final = f"""
{META};
CREATE TABLE file (
    file_index INTEGER PRIMARY KEY, name TEXT NOT NULL, format TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, head TEXT NOT NULL, tail TEXT NOT NULL, content_hash TEXT);
CREATE TABLE scan_window (
    window INTEGER PRIMARY KEY, next_file INTEGER NOT NULL, next_row INTEGER NOT NULL, next_offset INTEGER NOT NULL,
    rows INTEGER NOT NULL, text_bytes INTEGER NOT NULL, row_hashes BLOB);
CREATE TABLE unit (
    unit_id INTEGER PRIMARY KEY, window INTEGER NOT NULL, parent INTEGER, row_count INTEGER NOT NULL, cost REAL NOT
    NULL, longest INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, suspected INTEGER NOT NULL DEFAULT 0,
    failed_on TEXT NOT NULL DEFAULT '[]');
CREATE TABLE unit_rows (unit_id INTEGER PRIMARY KEY, rows BLOB NOT NULL);
CREATE TABLE attempt (
    attempt_id INTEGER PRIMARY KEY, unit_id INTEGER NOT NULL, lease INTEGER NOT NULL, epoch INTEGER NOT NULL,
    node TEXT NOT NULL, granted_at REAL NOT NULL, ended_at REAL, outcome TEXT, reason TEXT NOT NULL);
CREATE TABLE result (
    unit_id INTEGER PRIMARY KEY, attempt_id INTEGER NOT NULL, epoch INTEGER NOT NULL, node TEXT NOT NULL, rows INTEGER
    NOT NULL, cost REAL NOT NULL, tokens INTEGER NOT NULL, compute_seconds REAL NOT NULL, shape TEXT NOT NULL,
    committed_at REAL NOT NULL, checksum BLOB NOT NULL, payload BLOB NOT NULL);
CREATE TABLE quarantine (unit_id INTEGER PRIMARY KEY, code TEXT NOT NULL, message TEXT NOT NULL);
CREATE TABLE bad_row (
    window INTEGER NOT NULL, position BLOB NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL);
{EVENT};
{EPOCH};
"""

# made when the scan is complete: inserting into a table without them is faster
INDEXES: Final = """
CREATE INDEX IF NOT EXISTS unit_pending ON unit (longest DESC, unit_id, cost, row_count, suspected, failed_on) WHERE
state = 0; CREATE INDEX IF NOT EXISTS unit_window ON unit (window);
CREATE INDEX IF NOT EXISTS unit_quarantined ON unit (unit_id, row_count) WHERE state = 3;
CREATE INDEX IF NOT EXISTS attempt_live ON attempt (attempt_id) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS bad_row_window ON bad_row (window);
"""
