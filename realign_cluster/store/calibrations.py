"""What was measured of nodes and links, kept between runs: one SQLite file beside the cluster's authority.

A calibration belongs to (node id, model hash, task, versions) and goes stale with age or with a version. Must not
measure, plan or know what a speed is used for. Several commands may have the file open at once, so it stays in
rollback-journal mode: WAL with two writers is unsafe before SQLite 3.51.3, and a calibration is written a few times
an hour.

To try out how a run corrects a wrong calibration, put one: `store.put(key, name, calibration)` with any
cost_per_second replaces what is there, and the next plan and run believe it until results say otherwise.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from pydantic import ValidationError

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.job import Sampling, ScoreJob
from realign_cluster.domain.report import Calibration

SCHEMA_VERSION = 1
DEFAULT_MAX_AGE_DAYS = 30.0
HALF_WEIGHT_SECONDS = 60.0  # a run that kept the node busy this long counts as much as everything before it
BUSY_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calibration (
    node_id TEXT NOT NULL, model_hash TEXT NOT NULL, task TEXT NOT NULL, versions TEXT NOT NULL,
    node_name TEXT NOT NULL, measured_at TEXT NOT NULL, body TEXT NOT NULL,
    live_cost_per_second REAL, live_at TEXT, runs INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (node_id, model_hash, task, versions)
) WITHOUT ROWID, STRICT;
CREATE TABLE IF NOT EXISTS link (
    from_node TEXT NOT NULL, to_node TEXT NOT NULL, measured_at TEXT NOT NULL,
    round_trip_seconds REAL NOT NULL, bytes_per_second REAL NOT NULL,
    PRIMARY KEY (from_node, to_node)
) WITHOUT ROWID, STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationKey:
    """What a measurement holds for. `versions` as `versions_text` writes it, `task` as `task_of` does."""

    node_id: str
    model_hash: str  # of its shape: a model that was trained further is as fast as it was
    task: str
    versions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCalibration:
    key: CalibrationKey
    node_name: str
    calibration: Calibration  # as it was measured
    measured_at: datetime
    live_cost_per_second: float | None  # after the runs since then; None when there were none
    live_at: datetime | None
    runs: int
    stale: str = ""  # why it is not to be trusted, empty when it is

    @property
    def current(self) -> Calibration:
        """The calibration with its speed as corrected by runs."""
        live = self.live_cost_per_second
        if live is None or self.calibration.cost_per_second <= 0:
            return self.calibration
        ratio = live / self.calibration.cost_per_second
        rows = self.calibration.rows_per_second * ratio
        return self.calibration.model_copy(update={"cost_per_second": live, "rows_per_second": rows})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLink:
    from_node: str
    to_node: str
    measured_at: datetime
    round_trip_seconds: float
    bytes_per_second: float


def task_of(job: ScoreJob) -> str:
    """ "ifd v1+loglik v1, auto, left, up to 2048 tokens": what changes the cost of a row besides its length. The
    token limit goes into buckets of powers of two.
    """
    kinds = "+".join(f"{kind} v{job.kind_versions.get(kind, 1)}" for kind in sorted(job.kinds))
    bucket = 1 << max(0, math.ceil(math.log2(max(job.max_tokens, 1))))
    parts = [kinds, job.chat, job.truncate, f"up to {bucket} tokens"]
    if job.template is not None or job.labels:
        text = orjson.dumps([job.template, job.labels])
        parts.append(f"template {hashlib.blake2b(text, digest_size=4).hexdigest()}")
    if "generate" in job.kinds:
        drawn = job.sampling.max_new_tokens if job.sampling is not None else Sampling().max_new_tokens
        parts.append(f"drawing up to {1 << max(0, math.ceil(math.log2(drawn)))}")
    if job.adapter is not None:
        parts.append("with an adapter")
    if job.reproducible:
        parts.append("reproducible")
    return ", ".join(parts)


def versions_text(versions: Mapping[str, str]) -> str:
    """ "mlx=0.32.4 mlx-lm=0.32.2": sorted, so that equal versions give equal text."""
    return " ".join(f"{name}={value}" for name, value in sorted(versions.items()))


def blend(stored: float, measured: float, *, busy_seconds: float) -> float:
    """Exponentially weighted speed: `measured` over `busy_seconds` of work counts 1/2 at a minute, 3/4 at two."""
    weight = 1.0 - math.exp2(-max(busy_seconds, 0.0) / HALF_WEIGHT_SECONDS)
    return stored + weight * (measured - stored)


class Calibrations:
    """The store. Opens or creates `path`; every method is one transaction, so a kill leaves the old or the new row."""

    def __init__(self, path: Path) -> None:
        """Raises RealignError when the file is not a calibration store or cannot be opened."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, SCHEMA_VERSION):
                self._db.close()
                raise RealignError(
                    f"{path} has version {found}, this program reads {SCHEMA_VERSION}",
                    f"remove it and calibrate again: rm {path}",
                )
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        except (sqlite3.Error, OSError) as error:
            raise RealignError(f"{path}: {error}", f"remove it and calibrate again: rm {path}") from error

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- calibrations
    # -----------------------------------------------------------------------------------------------------

    def put(self, key: CalibrationKey, node_name: str, calibration: Calibration) -> None:
        """Store a measurement; what runs corrected before it is forgotten."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO calibration VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, 0)",
                (
                    key.node_id,
                    key.model_hash,
                    key.task,
                    key.versions,
                    node_name,
                    _time(calibration.measured_at).isoformat(),
                    calibration.model_dump_json(),
                ),
            )

    def find(
        self, key: CalibrationKey, *, now: datetime, max_age_days: float = DEFAULT_MAX_AGE_DAYS
    ) -> StoredCalibration | None:
        """The measurement for `key`, or the newest one made with other versions; look at `.stale` before trusting
        it.
        """
        rows = self._db.execute(
            "SELECT * FROM calibration WHERE node_id = ? AND model_hash = ? AND task = ? "
            "ORDER BY versions = ? DESC, measured_at DESC LIMIT 1",
            (key.node_id, key.model_hash, key.task, key.versions),
        ).fetchall()
        if not rows:
            return None
        return self._judged(_stored(rows[0]), key.versions, now, max_age_days)

    def get(
        self, key: CalibrationKey, *, now: datetime, max_age_days: float = DEFAULT_MAX_AGE_DAYS
    ) -> StoredCalibration | None:
        """The measurement for exactly `key` when it is fresh, else None."""
        found = self.find(key, now=now, max_age_days=max_age_days)
        return found if found is not None and not found.stale else None

    def correct(self, key: CalibrationKey, measured: float, *, busy_seconds: float, now: datetime) -> float | None:
        """Blend a run's own cost per second into the stored speed; the new one, or None when nothing was stored."""
        if not (measured > 0 and math.isfinite(measured)):
            return None
        with self._transaction():
            row = self._db.execute(
                "SELECT * FROM calibration WHERE node_id = ? AND model_hash = ? AND task = ? AND versions = ?",
                (key.node_id, key.model_hash, key.task, key.versions),
            ).fetchone()
            if row is None:
                return None
            corrected = blend(_stored(row).current.cost_per_second, measured, busy_seconds=busy_seconds)
            self._db.execute(
                "UPDATE calibration SET live_cost_per_second = ?, live_at = ?, runs = runs + 1 "
                "WHERE node_id = ? AND model_hash = ? AND task = ? AND versions = ?",
                (corrected, now.isoformat(), key.node_id, key.model_hash, key.task, key.versions),
            )
        return corrected

    def everything(self, *, now: datetime, max_age_days: float = DEFAULT_MAX_AGE_DAYS) -> list[StoredCalibration]:
        """All that is kept, newest first, each with whether its age makes it stale."""
        rows = self._db.execute("SELECT * FROM calibration ORDER BY measured_at DESC, node_name").fetchall()
        stored = [_stored(row) for row in rows]
        return [self._judged(item, item.key.versions, now, max_age_days) for item in stored]

    def forget(self, *, node_id: str | None = None, model_hash: str | None = None) -> int:
        """Remove what matches both (None matches all), the node's links included; how many calibrations went."""
        with self._transaction():
            count = self._db.execute(
                "DELETE FROM calibration WHERE (?1 IS NULL OR node_id = ?1) AND (?2 IS NULL OR model_hash = ?2)",
                (node_id, model_hash),
            ).rowcount
            if model_hash is None:
                self._db.execute(
                    "DELETE FROM link WHERE ?1 IS NULL OR from_node = ?1 OR to_node = ?1",
                    (node_id,),
                )
        return count

    # --- links
    # ------------------------------------------------------------------------------------------------------------

    def put_link(
        self, from_node: str, to_node: str, *, round_trip_seconds: float, bytes_per_second: float, now: datetime
    ) -> None:
        """`from_node` dialled `to_node`; both are node ids, or names where the caller has no ids."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO link VALUES (?, ?, ?, ?, ?)",
                (from_node, to_node, now.isoformat(), round_trip_seconds, bytes_per_second),
            )

    def links(self) -> list[StoredLink]:
        rows = self._db.execute("SELECT * FROM link ORDER BY from_node, to_node").fetchall()
        return [
            StoredLink(
                from_node=row[0],
                to_node=row[1],
                measured_at=_time(row[2]),
                round_trip_seconds=row[3],
                bytes_per_second=row[4],
            )
            for row in rows
        ]

    # --- inside
    # -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @staticmethod
    def _judged(stored: StoredCalibration, versions: str, now: datetime, max_age_days: float) -> StoredCalibration:
        reasons = []
        if stored.key.versions != versions:
            reasons.append(f"it was measured with {stored.key.versions}, now {versions}")
        last = max(stored.measured_at, stored.live_at or stored.measured_at)
        if now - last > timedelta(days=max_age_days):
            reasons.append(f"it is {(now - last).days} days old")
        return _with_reason(stored, " and ".join(reasons))


def _with_reason(stored: StoredCalibration, reason: str) -> StoredCalibration:
    return StoredCalibration(
        key=stored.key,
        node_name=stored.node_name,
        calibration=stored.calibration,
        measured_at=stored.measured_at,
        live_cost_per_second=stored.live_cost_per_second,
        live_at=stored.live_at,
        runs=stored.runs,
        stale=reason,
    )


def _stored(row: tuple[str, str, str, str, str, str, str, float | None, str | None, int]) -> StoredCalibration:
    node_id, model_hash, task, versions, name, measured_at, body, live, live_at, runs = row
    try:
        calibration = Calibration.model_validate_json(body)
    except ValidationError as error:
        raise RealignError(
            f"the stored calibration of {name} cannot be read: {error.errors()[0]['msg']}",
            "measure again: realign calibrate",
        ) from None
    return StoredCalibration(
        key=CalibrationKey(node_id=node_id, model_hash=model_hash, task=task, versions=versions),
        node_name=name,
        calibration=calibration,
        measured_at=_time(measured_at),
        live_cost_per_second=live,
        live_at=_time(live_at) if live_at else None,
        runs=runs,
    )


def _time(text: str) -> datetime:
    """ISO 8601; a time without a zone is taken as UTC. ValueError when it is neither."""
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
