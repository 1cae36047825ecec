"""`events.jsonl`: what happened in a run and what was decided on it, one JSON object per line, derived from the ledger.

    {"seq": 7, "epoch": 1, "time": "2026-01-31T09:30:00.250Z", "at": 12.25, "kind": "NodeReady", "node": "m4max-1", ...,
     "commands": [{"kind": "Grant", ...}]}

`at` is the coordinator's monotonic clock, comparable within an epoch. For people and scripts; the ledger is the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.domain import codec
from realign_cluster.domain.events import UnitsLoaded
from realign_cluster.store.durable import durable_file
from realign_cluster.store.ledger_reader import LedgerReader, RecordedEvent


def write_events(ledger: LedgerReader, path: Path) -> int:
    """Replaces `path`; returns the number of events."""
    written = 0
    with durable_file(path) as file:
        for recorded in ledger.events():
            file.write(orjson.dumps(event_line(recorded), option=orjson.OPT_APPEND_NEWLINE))
            written += 1
    return written


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an events.jsonl, as they stand. Raises FileNotFoundError."""
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def event_line(recorded: RecordedEvent) -> dict[str, Any]:
    """One event for scripts: units that were loaded are counted, not listed."""
    time = datetime.fromtimestamp(recorded.wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = codec.encode(recorded.event)
    if isinstance(recorded.event, UnitsLoaded):
        units = recorded.event.units
        body |= {
            "units": len(units),
            "cost": sum(unit.cost for unit in units),
            "rows": sum(unit.rows for unit in units),
        }
    return {
        "seq": recorded.seq,
        "epoch": recorded.epoch,
        "time": time,
        **body,
        "commands": [codec.encode(command) for command in recorded.commands],
    }
