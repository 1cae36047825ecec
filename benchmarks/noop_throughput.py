"""Rows per second of everything but the scoring: a JSONL file to the closed output, through two daemons over mTLS and a
fully synchronous ledger, with a scorer that does nothing.

    python benchmarks/noop_throughput.py [--rows 1000000] [--repeat 1] [--folder DIR]

Two rates: of the whole command, from its start to its exit, and from the first byte of input read to the output
closed. Beside them, in the same run, a limit: one plain Python process that reads every line and writes it with a row
id, and nothing else. On a busy machine wall time says little: the steady figure is CPU per row, user and system, of
each process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import orjson
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.cluster.kit import CurateCluster  # real daemons, enrolled

NODES = ("alpha", "beta")
WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """Seconds of one run, and CPU seconds of every process in it."""

    command: float  # from the start of the command to its exit
    input_to_output: float  # from the first byte read to the output closed
    cpu: dict[str, float]


def write_rows(path: Path, rows: int) -> int:
    """Rows of about 100 bytes; returns the bytes of all."""
    with path.open("wb", buffering=WRITE_BYTES) as file:
        for at in range(rows):
            row = {
                "id": at,
                "prompt": f"What is {at} and {at % 97}?",
                "response": f"It is {at + at % 97}, or about that.",
            }
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return path.stat().st_size


def read_and_write(rows: Path, out: Path) -> tuple[float, float]:
    """The limit: parses and writes every row with an id, in this process. Returns wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    with rows.open("rb", buffering=WRITE_BYTES) as source, out.open("wb", buffering=WRITE_BYTES) as target:
        for at, line in enumerate(source):
            row = orjson.loads(line)
            row["row_id"] = blake2b(b"%d %b" % (at, line), digest_size=16).hexdigest()
            target.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        target.flush()
        os.fsync(target.fileno())
    return time.perf_counter() - wall, time.process_time() - cpu


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def run_once(cluster: CurateCluster, rows: Path, out: Path, count: int) -> Sitting:
    """One `realign curate`. The workers it starts stay, warm, so that their CPU time can be read afterwards."""
    daemons = cluster.daemons
    before = {name: cpu_seconds(daemon.pid) for name, daemon in daemons.items()}
    workers = {pid: cpu_seconds(pid) for daemon in daemons.values() for pid in daemon.worker_pids()}
    command = cluster.command(rows, out, "--model", "none", "--score", "noop")
    with (rows.parent / "coordinator.log").open("wb") as log:
        started, started_at = time.monotonic(), time.time()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=cluster.environment)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit((rows.parent / "coordinator.log").read_text())
    summary = orjson.loads((out / "summary.json").read_bytes())
    if summary["rows"]["kept"] != count:
        raise SystemExit(f"of {count} rows {summary['rows']['kept']} were kept")
    cpu = {"coordinator": used.ru_utime + used.ru_stime}
    for name, daemon in daemons.items():
        cpu[f"daemon {name}"] = cpu_seconds(daemon.pid) - before[name]
        cpu[f"worker {name}"] = sum(cpu_seconds(pid) - workers.get(pid, 0.0) for pid in daemon.worker_pids())
    # run.toml is written just before the input is first read; renaming into place is the last that is done to failed/
    first_byte, closed = (out / "run.toml").stat().st_mtime, (out / "failed").stat().st_ctime
    assert started_at <= first_byte <= closed
    return Sitting(command=seconds, input_to_output=closed - first_byte, cpu=cpu)


def show(sitting: Sitting, rows: int, limit: tuple[float, float]) -> None:
    wall, limit_cpu = limit
    print(f"whole command              {rows / sitting.command:9,.0f} rows/s  {sitting.command:6.2f} s")
    print(f"first byte to output       {rows / sitting.input_to_output:9,.0f} rows/s  {sitting.input_to_output:6.2f} s")
    print(
        f"limit: read and write only {rows / wall:9,.0f} rows/s  {wall:6.2f} s"
        f"  (first byte to output / limit: {wall / sitting.input_to_output:.2f})"
    )
    print("CPU microseconds per row, user and system:")
    for name, seconds in sitting.cpu.items():
        print(f"  {name:15} {seconds / rows * 1e6:6.2f}")
    total = sum(sitting.cpu.values())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(
        f"  {'together':15} {total / rows * 1e6:6.2f}  (all {cores} cores: {rows / total * cores:,.0f} rows/s at most)"
    )
    print(f"  {'limit':15} {limit_cpu / rows * 1e6:6.2f}")
    share = total / (sitting.command * cores)
    print(f"of the CPU time of this machine while it ran, {share:.0%} was this run's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=1, help="runs, each after the other on the same daemons")
    parser.add_argument("--folder", type=Path, help="where to make input and runs (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, ExitStack() as closing:
        folder = Path(name)
        size = write_rows(folder / "rows.jsonl", arguments.rows)
        cluster = CurateCluster(folder)
        closing.callback(cluster.close)
        for node in NODES:
            cluster.start(node, cores=1)
        for attempt in range(arguments.repeat):
            print(
                f"{arguments.rows:,} rows of {size / arguments.rows:.0f} bytes, {len(NODES)} daemons, run {attempt + 1}"
            )
            out = folder / f"run-{attempt}"
            sitting = run_once(cluster, folder / "rows.jsonl", out, arguments.rows)
            limit = read_and_write(folder / "rows.jsonl", folder / "limit.jsonl")
            show(sitting, arguments.rows, limit)


if __name__ == "__main__":
    main()
