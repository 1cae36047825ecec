"""What a row costs the coordinator's store: scan, read for a lease, record, write out. And its memory at that many
rows.

    python benchmarks/store_rows.py [--rows 1000000] [--folder DIR]

CPU microseconds per row of this process, all threads, next to wall time: on a busy machine the first is the one to
compare. Rows of 260 bytes, units of 2,048 token equivalents, one commit per 50 units, fully synchronous.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from realign_cluster.domain.events import Commit, Grant, ResultReceived, Tick, UnitRef
from realign_cluster.domain.ids import AttemptId, Epoch, LeaseId, NodeName
from realign_cluster.domain.job import Fields
from realign_cluster.store.intake import scan_into_ledger
from realign_cluster.store.ledger import Entry, Ledger, ResultRecord
from realign_cluster.store.output import write_outputs
from realign_cluster.store.readers import Sources, expand_inputs

NODE = NodeName("node")
UNITS_PER_COMMIT = 50
LINE = b'{"loglik":{"sum":-%d.25,"mean":-1.5,"tokens":12,"truncated":false}}'


def write_rows(path: Path, rows: int) -> None:
    with path.open("wb") as file:
        for at in range(rows):
            row = {"prompt": f"tell me {at} about it " * 3, "response": f"the answer is {at} " * (8 + at % 5), "id": at}
            file.write(orjson.dumps(row) + b"\n")


class Clock:
    """Adds up what the steps named alike took."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._spent: dict[str, tuple[float, float]] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        before = self._spent.get(name, (0.0, 0.0))
        self._spent[name] = (before[0] + time.perf_counter() - wall, before[1] + time.process_time() - cpu)

    def show(self) -> None:
        for name, (wall, cpu) in self._spent.items():
            print(f"{name:8} {cpu / self._rows * 1e6:6.2f} us CPU/row {wall / self._rows * 1e6:6.2f} us wall/row")


def entries(
    ledger: Ledger, sources: Sources, units: tuple[UnitRef, ...], epoch: Epoch, attempt: int, clock: Clock
) -> list[Entry]:
    """A grant of `units` and their results, as a node that scores nothing sends them."""
    with clock.step("read"):
        positions = ledger.unit_positions([unit.unit for unit in units])
        for unit in units:
            b"\n".join(sources.read(positions[unit.unit]))
    attempts = tuple((AttemptId(attempt + at), unit.unit) for at, unit in enumerate(units))
    grant = Grant(node=NODE, lease=LeaseId(attempt), attempts=attempts, expected_seconds=1.0, reason="longest first")
    found = [Entry(event=Tick(at=1.0), commands=(grant,))]
    for (number, unit), ref in zip(attempts, units, strict=True):
        found.append(
            Entry(
                event=ResultReceived(
                    at=2.0, node=NODE, attempt=number, unit=unit, epoch=epoch, valid=True, compute_seconds=0.1
                ),
                commands=(Commit(node=NODE, attempt=number, unit=unit),),
                result=ResultRecord(
                    unit=unit, attempt=number, epoch=epoch, node=NODE, rows=ref.rows,
                    payload=b"\n".join(LINE % at for at in range(ref.rows)),
                ),
            )
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make input and run (default: a temporary folder)")
    arguments = parser.parse_args()
    clock = Clock(arguments.rows)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", arguments.rows)
        sources = Sources(expand_inputs([folder / "rows.jsonl"]), folder / "input-cache")
        with Ledger.create(folder / "ledger.sqlite", {}) as ledger, sources:
            with clock.step("scan"):
                summary = scan_into_ledger(ledger, sources, ("loglik",), Fields())
            opened = ledger.open_epoch(0.0, time.time())
            attempt, recorded, exhausted = int(opened.next_attempt), 0, False
            while not exhausted:
                page, exhausted = ledger.load_pending(4096)
                for first in range(0, len(page), UNITS_PER_COMMIT):
                    units = page[first : first + UNITS_PER_COMMIT]
                    batch = entries(ledger, sources, units, opened.epoch, attempt, clock)
                    with clock.step("record"):
                        ledger.record(batch, time.time())
                    attempt += len(units)
                    recorded += len(batch)
            with clock.step("output"):
                tally = write_outputs(ledger, sources, folder)
            assert tally.accounted
            clock.show()
            size = (folder / "ledger.sqlite").stat().st_size
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(f"{summary.rows:,} rows in {summary.units:,} units, {recorded:,} entries; ledger {size / 1e6:,.0f} MB")
        print(f"peak memory of this process {peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
