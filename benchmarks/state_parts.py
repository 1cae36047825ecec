"""Writing and verifying the part files of a training state, next to a plain write, read and hash of the same bytes.

    python benchmarks/state_parts.py [--megabytes 20 1000] [--folder DIR] [--repeats 5]

All in turn, so that what else runs here meets all alike; the median of the repeats. CPU time is this process's: what a
snapshot takes from the step beside which it is written. New files each time, the old ones removed before. The first
round is not counted: on a virtual machine it pays for memory.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from realign_cluster.domain.world import StatePart
from realign_cluster.store.durable import sync_descriptor
from realign_cluster.store.state_part import PartHeader, data_path, remove_part, verify_part, write_part

TENSORS = 120
CHUNK_BYTES = 1 << 20
HEADER = PartHeader(kind="snapshot", step=1)


class State:
    """Arrays of `size` bytes together, and the ways to write and read them in `folder`."""

    def __init__(self, folder: Path, size: int) -> None:
        rng = np.random.default_rng(0)
        shape = (size // TENSORS // 4,)
        self._arrays: list[NDArray[np.float32]] = [rng.standard_normal(shape, np.float32) for _ in range(TENSORS)]
        self._folder = folder
        self._plain = folder / "plain"
        self.bytes = sum(array.nbytes for array in self._arrays)
        self.part: StatePart | None = None

    def write_plain(self, durable: bool) -> None:
        with self._plain.open("wb", buffering=0) as file:
            for array in self._arrays:
                data = array.data.cast("B")
                while data:
                    data = data[file.write(data) :]
            if durable:
                sync_descriptor(file.fileno())

    def write_part(self, durable: bool) -> None:
        tensors = ((f"weights/{at}", "F32", array.shape, array) for at, array in enumerate(self._arrays))
        self.part = write_part(self._folder, HEADER, tensors, durable=durable)

    def hash(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for array in self._arrays:
            digest.update(array.data)

    def read_plain(self) -> None:
        buffer = bytearray(CHUNK_BYTES)
        with self._plain.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def verify(self) -> None:
        assert self.part is not None
        assert verify_part(data_path(self._folder, self.part)) == self.part

    def remove(self) -> None:
        self._plain.unlink(missing_ok=True)
        if self.part is not None:
            remove_part(self._folder, self.part)


def measure(state: State, repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds and CPU seconds by name."""
    works: dict[str, Callable[[], None]] = {
        "plain write": lambda: state.write_plain(False),
        "write_part": lambda: state.write_part(False),
        "BLAKE2b alone": state.hash,
        "plain read": state.read_plain,
        "verify_part": state.verify,
        "plain write, synced": lambda: state.write_plain(True),
        "write_part, durable": lambda: state.write_part(True),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            if name == "plain write, synced":
                state.remove()
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        state.remove()
    return {
        name: (statistics.median(wall for wall, _ in rounds[1:]), statistics.median(cpu for _, cpu in rounds[1:]))
        for name, rounds in found.items()
    }


def show(size: int, found: dict[str, tuple[float, float]]) -> None:
    pairs = {"write_part": "plain write", "write_part, durable": "plain write, synced", "verify_part": "plain read"}
    print(f"{size / 1e6:,.0f} MB in {TENSORS} tensors")
    for name, (wall, cpu) in found.items():
        line = f"  {name:20} {size / wall / 1e6:8,.0f} MB/s {wall * 1e3:9.1f} ms {cpu * 1e3:9.1f} ms CPU"
        if other := pairs.get(name):
            other_wall, other_cpu = found[other]
            line += f"   {wall / other_wall:4.1f} x the time, {cpu / other_cpu:4.1f} x the CPU of {other}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[20, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    for megabytes in arguments.megabytes:
        size = megabytes * 1_000_000
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            # the arrays, and two files in the page cache
            if psutil.virtual_memory().available < 4 * size or shutil.disk_usage(name).free < 4 * size:
                print(f"{megabytes:,} MB left out: less than four times that is free", file=sys.stderr)
                continue
            state = State(Path(name), size)
            show(state.bytes, measure(state, arguments.repeats))


if __name__ == "__main__":
    main()
