"""How long a run of a million units takes to be taken up again: the ledger opened, a sitting begun, the first page of
units read.

    python benchmarks/resume_million.py [--units 1000000] [--folder DIR]

Printed next to a plain `SELECT count(*)` over the same file, with the file in the operating system's cache and without.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from realign_cluster.store.ledger import Ledger
from realign_cluster.store.positions import pack
from realign_cluster.store.scan_log import Cursor, CutUnit, ScanLog, Window

PAGE = 4096
ROWS_PER_UNIT = 4


def make(path: Path, units: int) -> None:
    """A ledger of `units` units through the same calls as a scan, half of them committed."""
    ledger = Ledger.create(path, {"made for": "benchmarks/resume_million.py"})
    log = ScanLog(ledger)
    log.resume_at()
    random = np.random.default_rng(1)
    for first in range(0, units, 20_000):
        count = min(20_000, units - first)
        longest = random.lognormal(6, 1, count).astype(int)
        window = Window()
        rows = np.arange(first * ROWS_PER_UNIT, (first + count) * ROWS_PER_UNIT)
        window.add(0, rows, rows * 300, np.full(len(rows), 300), np.full(len(rows), 280), [None] * len(rows), b"")
        cut = [
            CutUnit(float(length), int(length), pack(0, *(np.arange(at * 4, at * 4 + 4),) * 2, np.full(4, 300)))
            for at, length in enumerate(longest.tolist(), first)
        ]
        log.append(window, cut, Cursor(0, int(rows[-1]) + 1, 0))
    log.finish()
    with ledger.writing() as connection:
        connection.execute("UPDATE unit SET state = 1 WHERE unit_id % 2 = 0")
        connection.execute(
            "INSERT INTO attempt"
            " SELECT unit_id, unit_id, unit_id / 50, 1, 'node', 0, 0, 'committed', '' FROM unit WHERE state = 1"
        )
        connection.execute("UPDATE attempt SET outcome = NULL WHERE attempt_id > ?", (units - 200,))
    ledger.close()


def evict(path: Path) -> bool:
    """Drops this ledger, and nothing else, from this system's file cache. False where there is no call for it."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in path.parent.glob(path.name + "*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return True


MEASURE = """
import sys, time
from pathlib import Path
from realign_cluster.store.ledger import Ledger
began = time.perf_counter()
ledger = Ledger.open(Path(sys.argv[1]))
opened = ledger.open_epoch(0.0, 0.0)
units, _ = ledger.load_pending(int(sys.argv[2]))
print(time.perf_counter() - began, opened.units, len(units))
"""


def resume(path: Path) -> tuple[float, int, int]:
    """Seconds in a new process, units still to do, units in the first page."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(PAGE)], check=True, capture_output=True, text=True
    )
    seconds, left, page = done.stdout.split()
    return float(seconds), int(left), int(page)


def count(path: Path) -> float:
    began = time.perf_counter()
    with sqlite3.connect(path) as connection:
        connection.execute("SELECT count(*) FROM unit").fetchone()
    connection.close()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to make the ledger (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "ledger.sqlite"
        began = time.perf_counter()
        make(path, arguments.units)
        print(
            f"{arguments.units:,} units made in {time.perf_counter() - began:.1f} s,"
            f" {path.stat().st_size / 1e6:,.0f} MB"
        )
        for cached in (True, False):
            if not cached and not evict(path):
                print("cold cache: cannot be had on this system")
                continue
            seconds, left, page = resume(path)
            if not cached:
                evict(path)
            plain = count(path)
            cache = "warm" if cached else "cold"
            print(
                f"{cache} cache: resumed in {seconds:.3f} s ({left:,} units to do, first page of {page:,});"
                f" plain SELECT count(*) {plain:.3f} s"
            )


if __name__ == "__main__":
    main()
