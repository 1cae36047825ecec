"""Inputs on disk and runs carried through the real ledger, for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.domain.events import Commit, Grant, ResultReceived, Tick, UnitRef
from realign_cluster.domain.job import Fields
from realign_cluster.store.intake import ScanOptions, ScanSummary, scan_into_ledger
from realign_cluster.store.ledger import Entry, Ledger, ResultRecord
from realign_cluster.store.readers import Sources, expand_inputs

WALL = 1_700_000_000.0


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def made_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of unequal length with text outside ASCII."""
    return [
        {"prompt": f"question {at} " + "é" * (at % 7), "response": "word " * (1 + at * 37 % 60), "id": at}
        for at in range(first, first + count)
    ]


def score_line(raw: bytes) -> bytes:
    """A score that depends on nothing but the row's bytes."""
    return orjson.dumps({"loglik": {"sum": -float(len(raw)), "mean": -0.5, "tokens": len(raw), "truncated": False}})


class Run:
    """A run folder's ledger and sources, scanned on request."""

    def __init__(self, folder: Path, inputs: list[Path], **ledger_options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "ledger.sqlite"
        identity = {"recipe": "test"}
        exists = self.path.exists()
        self.ledger = (Ledger.open if exists else Ledger.create)(self.path, identity, **ledger_options)
        self.sources = Sources(expand_inputs(inputs), folder / "input-cache")
        self.next_attempt = 1
        self.epoch = 0

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.sources.close()
        self.ledger.close()

    def scan(self, kinds: tuple[str, ...] = ("loglik",), fields: Fields | None = None, **options: Any) -> ScanSummary:
        return scan_into_ledger(self.ledger, self.sources, kinds, fields or Fields(), ScanOptions(**options))

    def open(self) -> None:
        opened = self.ledger.open_epoch(0.0, WALL)
        self.epoch, self.next_attempt = opened.epoch, opened.next_attempt

    def grant(self, units: Iterable[UnitRef], node: str = "one", at: float = 1.0) -> tuple[Entry, dict[int, int]]:
        """The entry that leases `units`, and the attempt of each unit."""
        attempts = {}
        for unit in units:
            attempts[unit.unit] = self.next_attempt
            self.next_attempt += 1
        grant = Grant(
            node=node,
            lease=min(attempts.values()),
            attempts=tuple((attempt, unit) for unit, attempt in attempts.items()),
            expected_seconds=1.0,
            reason="longest first",
        )
        return Entry(event=Tick(at=at), commands=(grant,)), attempts

    def result(
        self, unit: int, attempt: int, node: str = "one", line: Callable[[bytes], bytes] = score_line, at: float = 2.0
    ) -> Entry:
        """The entry that commits the true scores of `unit`."""
        raws = self.sources.read(self.ledger.unit_positions([unit])[unit])
        event = ResultReceived(
            at=at, node=node, attempt=attempt, unit=unit, epoch=self.epoch, valid=True, compute_seconds=0.5
        )
        record = ResultRecord(
            unit=unit,
            attempt=attempt,
            epoch=self.epoch,
            node=node,
            payload=b"\n".join(map(line, raws)),
            rows=len(raws),
            tokens=10 * len(raws),
            compute_seconds=0.5,
            shape="1x8",
        )
        return Entry(event=event, commands=(Commit(node=node, attempt=attempt, unit=unit),), result=record)

    def score_all(self, line: Callable[[bytes], bytes] = score_line, page: int = 64) -> None:
        """A whole sitting, every unit committed."""
        self.open()
        exhausted = False
        while not exhausted:
            units, exhausted = self.ledger.load_pending(page)
            if units:
                granted, attempts = self.grant(units)
                self.ledger.record([granted], WALL)
                self.ledger.record(
                    [self.result(unit, attempt, line=line) for unit, attempt in attempts.items()], WALL + 1
                )


def read_parts(folder: Path) -> list[dict[str, Any]]:
    return [
        orjson.loads(line) for part in sorted(folder.glob("part-*.jsonl")) for line in part.read_bytes().splitlines()
    ]
