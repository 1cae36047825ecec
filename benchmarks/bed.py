"""What benchmarks of whole runs on the test bed share: unequal hosts brought up, and the CPU time that each was given.
Run by itself it does nothing.

A quota holds only while the machine has CPU to spare, so the bed goes before whatever else runs here, and no ratio
means anything without what the hosts really got.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.testbed.bed import COORDINATOR, Bed, testbed_script
from tests.testbed.conftest import why_not

SAMPLE_SECONDS = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def bed_of(shares: Mapping[str, float], disk_mib: int = 768) -> Iterator[Bed]:
    """A bed of hosts by name, each with its percentage of one CPU. Exits with the reason where there can be none."""
    script = testbed_script()
    if (reason := why_not()) or script is None:
        sys.exit(f"no test bed here: {reason}")
    name = f"bench{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        bed = Bed(script=script, name=name, state=Path(folder) / "bed", hosts=tuple(shares))
        bed.env = {"HOME": str(bed.data), "REALIGN_HOME": str(bed.data / ".realign")}
        try:
            hosts = ",".join(f"{host}={share:g}" for host, share in shares.items())
            bed.verb("up", "--hosts", hosts, "--disk", str(disk_mib))
            _go_first(f"testbed-{bed.name}")
            yield bed
        finally:
            bed.close()


class CpuMeter:
    """CPU seconds of each host of a bed from when the meter is started, sampled; what dead processes used counts."""

    def __init__(self, bed: Bed) -> None:
        self._groups = _control_groups(f"testbed-{bed.name}", "freezer")
        self._hosts = (COORDINATOR, *bed.hosts)
        self._last: dict[str, dict[int, float]] = {host: {} for host in self._hosts}
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> CpuMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def percent(self, host: str, begin: float, end: float) -> float:
        """Of one CPU between two moments of the wall clock."""
        inside = [sample for sample in self._samples if begin - SAMPLE_SECONDS <= sample[0] <= end + SAMPLE_SECONDS]
        if len(inside) < 2:
            return 0.0
        (first_at, first), (last_at, last) = inside[0], inside[-1]
        return 100 * (last[host] - first[host]) / (last_at - first_at)

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            used = {}
            for host in self._hosts:
                seen = self._last[host]
                for pid in self._processes(host):
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        seen[pid] = _cpu_seconds(pid)
                used[host] = sum(seen.values())
            self._samples.append((time.time(), used))

    def _processes(self, host: str) -> set[int]:
        found: set[int] = set()
        for group in self._groups:
            with contextlib.suppress(FileNotFoundError):
                found |= {int(pid) for pid in (group / host / "cgroup.procs").read_text().split()}
        return found


def machine() -> str:
    """What the figures were measured on, and how busy it is now."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {os.uname().sysname} {os.uname().release}, load {load:.1f}"


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _go_first(name: str) -> None:
    """The bed as a whole weighs more than other programs; its hosts keep their quotas."""
    for group in _control_groups(name, "cpu"):
        for file, weight in (("cpu.shares", 65536), ("cpu.weight", 10000)):
            if (group / file).exists():
                (group / file).write_text(str(weight))


def _control_groups(name: str, controller: str) -> list[Path]:
    """The bed's directory in the hierarchy of this controller."""
    found = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            found += [Path(top) / name for top, folders, _ in os.walk(where) if name in folders]
    return found
