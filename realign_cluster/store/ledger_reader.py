"""What a ledger says: progress, nodes, attempts, events, and every row's outcome in input order. Opens read-only.

Must not write: `realign runs report` reads the ledger of a run that is going on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from realign_cluster.domain import codec
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.events import Command, Event
from realign_cluster.domain.ids import AttemptId, Epoch, LeaseId, NodeName, UnitId
from realign_cluster.store.ledger_changes import unpack_blob
from realign_cluster.store.ledger_file import SCORE, LedgerFile
from realign_cluster.store.ledger_schema import COMMITTED, PENDING, QUARANTINED, SCHEMA_VERSION
from realign_cluster.store.positions import Positions, unpack
from realign_cluster.store.readers import Fingerprint

PAGE: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Rows and cost of a run. `rows` = committed + pending + quarantined + bad, once the scan is complete."""

    rows: int
    units: int  # as cut: children of a split do not count
    cost: float
    pending_units: int
    pending_rows: int
    pending_cost: float
    committed_rows: int
    quarantined_rows: int
    bad_rows: int
    duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    node: NodeName
    units: int
    rows: int
    cost: float
    share: float  # of the committed cost
    tokens: int
    busy_seconds: float  # worker compute


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """`outcome` is None while live, else "committed", "revoked: ...", "discarded: ...", "failed: ...", "worker
    exited: ...", "node lost: ..." or "older epoch". Times are wall clock, seconds."""

    attempt: AttemptId
    unit: UnitId
    lease: LeaseId
    epoch: Epoch
    node: NodeName
    granted_at: float
    ended_at: float | None
    outcome: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    epoch: Epoch
    opened_at: float
    last_at: float  # of the last record
    closed_at: float | None  # None: it was killed
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """An input file as it was scanned. `content_hash` is None until it was read whole, or if only its beginning was."""

    name: str
    format: str
    fingerprint: Fingerprint
    content_hash: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    seq: int
    epoch: Epoch
    wall: float
    event: Event
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultPoint:
    """One committed unit, for the report's throughput over time."""

    node: NodeName
    committed_at: float
    rows: int
    cost: float
    tokens: int
    compute_seconds: float
    shape: str
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOutcome:
    """Every accounted row of one window, in input order.

    Row i is at `positions[i]`; either `results[i]` is its line of scores (or of its own error), or `errors[i]` is the
    (code, message) for which it was never scored. Rows still to do are absent.
    """

    window: int
    positions: Positions
    results: list[bytes | None]
    errors: list[tuple[str, str] | None]


class LedgerReader(LedgerFile):
    """Thread-safe. Raises UsageError where there is no ledger, or one of another version."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UsageError(f"there is no ledger at {path}", "name the folder of a run")
        try:
            super().__init__(path, SCORE, SCHEMA_VERSION)
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path} is not the ledger of a run: {error}", "name the folder of a run") from error

    @property
    def scanned(self) -> bool:
        """Whether the whole input is cut into units."""
        return bool(self.meta("scan_complete"))

    def files(self) -> list[FileRecord]:
        """The input files in order, as they were when the run was made."""
        rows = self._query(
            "SELECT name, format, size, mtime_ns, head, tail, content_hash FROM file ORDER BY file_index"
        )
        return [
            FileRecord(
                name=row[0],
                format=row[1],
                fingerprint=Fingerprint(size=row[2], mtime_ns=row[3], head=row[4], tail=row[5]),
                content_hash=row[6],
            )
            for row in rows
        ]

    def unit_positions(self, units: list[UnitId] | tuple[UnitId, ...]) -> dict[UnitId, Positions]:
        """Packed positions of the rows of each unit, in the unit's row order."""
        found: dict[UnitId, Positions] = {}
        for start in range(0, len(units), 500):
            some = tuple(units[start : start + 500])
            marks = ",".join("?" * len(some))
            for unit, rows in self._query(f"SELECT unit_id, rows FROM unit_rows WHERE unit_id IN ({marks})", some):
                found[UnitId(unit)] = unpack(rows)
        return found

    def counters(self) -> Counters:
        """Progress. Costs an index scan over the pending units: about 0.1 s for a million of them."""
        scan = self.meta("scan_complete") or {}
        ((pending, rows, cost),) = self._query(
            f"SELECT count(*), coalesce(sum(row_count), 0), coalesce(sum(cost), 0.0) FROM unit WHERE state = {PENDING}"
        )
        ((quarantined,),) = self._query(f"SELECT coalesce(sum(row_count), 0) FROM unit WHERE state = {QUARANTINED}")
        ((bad,),) = self._query("SELECT count(*) FROM bad_row")
        total = scan.get("rows", 0)
        return Counters(
            rows=total,
            units=scan.get("units", 0),
            cost=scan.get("cost", 0.0),
            pending_units=pending,
            pending_rows=rows,
            pending_cost=cost,
            committed_rows=max(0, total - rows - quarantined - bad),
            quarantined_rows=quarantined,
            bad_rows=bad,
            duplicates=scan.get("duplicates", 0),
        )

    def nodes_summary(self) -> list[NodeSummary]:
        """Per node, what it committed over all epochs."""
        found = self._query(
            "SELECT node, count(*), sum(rows), sum(cost), sum(tokens), sum(compute_seconds) FROM result"
            " GROUP BY node ORDER BY node"
        )
        total = sum(row[3] for row in found) or 1.0
        return [
            NodeSummary(
                node=NodeName(node),
                units=units,
                rows=rows,
                cost=cost,
                share=cost / total,
                tokens=tokens,
                busy_seconds=seconds,
            )
            for node, units, rows, cost, tokens, seconds in found
        ]

    @property
    def granted_anything(self) -> bool:
        """Whether any attempt was ever granted."""
        return bool(self._query("SELECT 1 FROM attempt LIMIT 1"))

    def attempts(self, node: NodeName | None = None, *, live_only: bool = False) -> list[AttemptRecord]:
        """Every attempt in order of its id, or those of one node, or those without an outcome."""
        conditions = [sql for sql, asked in (("node = ?", node is not None), ("outcome IS NULL", live_only)) if asked]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._query(
            "SELECT attempt_id, unit_id, lease, epoch, node, granted_at, ended_at, outcome, reason"
            f" FROM attempt{where} ORDER BY attempt_id",
            () if node is None else (node,),
        )
        return [
            AttemptRecord(
                attempt=row[0], unit=row[1], lease=row[2], epoch=row[3], node=row[4], granted_at=row[5],
                ended_at=row[6], outcome=row[7], reason=row[8],
            )
            for row in rows
        ]  # fmt: skip

    def epochs(self) -> list[EpochRecord]:
        rows = self._query("SELECT epoch, opened_at, last_at, closed_at, host, pid FROM epoch ORDER BY epoch")
        return [
            EpochRecord(epoch=row[0], opened_at=row[1], last_at=row[2], closed_at=row[3], host=row[4], pid=row[5])
            for row in rows
        ]

    def events(self, epoch: Epoch | None = None) -> Iterator[RecordedEvent]:
        """Events with their commands in the order in which they were decided, of one epoch or of all."""
        seq = 0
        condition = "" if epoch is None else f" AND epoch = {int(epoch)}"
        while True:
            rows = self._query(
                f"SELECT seq, epoch, wall, body FROM event WHERE seq > ?{condition} ORDER BY seq LIMIT {PAGE}", (seq,)
            )
            for seq, of_epoch, wall, blob in rows:
                body = orjson.loads(unpack_blob(blob))
                yield RecordedEvent(
                    seq=seq,
                    epoch=of_epoch,
                    wall=wall,
                    event=codec.decode(body["event"]),  # type: ignore[arg-type]
                    commands=tuple(codec.decode(command) for command in body["commands"]),  # type: ignore[misc]
                )
            if len(rows) < PAGE:
                return

    def results_timeline(self) -> Iterator[ResultPoint]:
        """Committed units in order of commit time."""
        rows = self._query(
            "SELECT node, committed_at, rows, cost, tokens, compute_seconds, shape, epoch FROM result"
            " ORDER BY committed_at, unit_id"
        )
        for row in rows:
            yield ResultPoint(
                node=row[0], committed_at=row[1], rows=row[2], cost=row[3], tokens=row[4], compute_seconds=row[5],
                shape=row[6], epoch=row[7],
            )  # fmt: skip

    def windows(self) -> Iterator[WindowOutcome]:
        """Every window in input order, one in memory at a time."""
        for (window,) in self._query("SELECT window FROM scan_window ORDER BY window"):
            yield self.window(window)

    def window(self, window: int) -> WindowOutcome:
        units = self._query(
            f"SELECT unit.unit_id, unit_rows.rows, result.payload, quarantine.code, quarantine.message FROM unit"
            f" JOIN unit_rows USING (unit_id) LEFT JOIN result USING (unit_id) LEFT JOIN quarantine USING (unit_id)"
            f" WHERE unit.window = ? AND unit.state IN ({COMMITTED}, {QUARANTINED})",
            (window,),
        )
        blobs: list[bytes] = []
        results: list[bytes | None] = []
        errors: list[tuple[str, str] | None] = []
        for unit, rows, payload, code, message in units:
            count = len(unpack(rows))
            blobs.append(rows)
            if payload is None:
                results += [None] * count
                errors += [(code, message)] * count
                continue
            lines = unpack_blob(payload).split(b"\n")
            if len(lines) == count + 1 and not lines[-1]:
                lines.pop()
            if len(lines) != count:
                raise ValueError(f"the result of unit {unit} has {len(lines)} lines for {count} rows")
            results += lines
            errors += [None] * count
        for position, code, message in self._query(
            "SELECT position, code, message FROM bad_row WHERE window = ?", (window,)
        ):
            blobs.append(position)
            results.append(None)
            errors.append((code, message))
        positions = unpack(b"".join(blobs))
        order = np.lexsort((positions["row"], positions["file"]))
        chosen = order.tolist()
        return WindowOutcome(
            window=window,
            positions=positions[order],
            results=[results[at] for at in chosen],
            errors=[errors[at] for at in chosen],
        )
