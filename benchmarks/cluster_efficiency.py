"""Two unequal hosts together against the sum of what each does alone, with an equal split beside it, and with one host
killed half way.

    python benchmarks/cluster_efficiency.py [--seconds 120] [--kill HOST] [--back SECONDS] [--json]

On the test bed: hosts of 65.5 % and 34.5 % of one CPU, apart in network and disk, daemons started over ssh. In one go:

    alone         each host by itself on a slice of the rows, the other one idle
    side by side  both at once, each its own run on a slice of its own: the single rates that count, before and after
    together      the whole input on both as one cluster: efficiency = its rate / the sum of the single rates
    equal halves  the same rows cut in two, each host scoring one half as its own run at the same time
    killed        as together, one host killed when half of the work is done: the ideal is what was there at that rate

Hosts of one machine share its caches and often a core: a host is faster while the other one is idle. So single rates
are taken with both at work, and what remains after the kill is held against the survivor's rate alone.
All times are warm: from the first lease to the last commit. Work is the ledger's cost, since a run begins with its
longest rows. The rows' lengths are spread evenly over the input, so that every part of it has the same mix.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from bed import COORDINATOR, CpuMeter, bed_of, machine

from realign_cluster.rpc.versions import local_versions
from realign_cluster.store.ledger import Ledger
from tests.testbed.bed import ROOT, Bed

SHARES = {"m4max-1": 65.5, "m3ultra-1": 34.5}
MODEL = ROOT / "examples" / "tiny-model"
PROBE_ROWS = 1500
SLICE_FRACTION = 0.25  # of --seconds, for each single rate
LEAST_SLICE_SECONDS = 8.0
GOLDEN = (math.sqrt(5) - 1) / 2
TEXT = (
    "a node may stop at any time and the ledger knows what was done before it did so that nothing is lost or "
    "scored twice while others go on with what it held and the rows come out in the order in which they came"
)
WORDS = TEXT.split()


def write_rows(path: Path, count: int) -> Path:
    """Rows with log-normal lengths (median 25 words), spread evenly over the file by the golden ratio."""
    chance, normal = random.Random(1), NormalDist()
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            quantile = min(max((index * GOLDEN) % 1.0, 0.005), 0.995)
            words = round(25 * math.exp(0.6 * normal.inv_cdf(quantile)))
            row = {
                "prompt": f"Question {index}: {' '.join(chance.choices(WORDS, k=8 + words // 4))}",
                "response": " ".join(chance.choices(WORDS, k=words)),
            }
            file.write(json.dumps(row) + "\n")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run, warm. `cpu` is the percentage of one CPU each host was given meanwhile."""

    rows: int
    work: float  # the ledger's cost of all rows
    began: float  # wall clock, of the first lease
    ended: float  # of the last commit
    shares: dict[str, float]
    efficiency: float | None  # the run's own summary
    losses: dict[str, float]
    duplicates: float
    cpu: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds

    @property
    def speed(self) -> float:
        """Work per second."""
        return self.work / self.seconds


class Bench:
    def __init__(self, bed: Bed, meter: CpuMeter) -> None:
        self._bed = bed
        self._meter = meter
        self._runs = 0

    def launch(self, *arguments: object) -> None:
        """`realign-launch` on the coordinator's host."""
        self._bed.python(COORDINATOR, "realign_launcher.main", "--hostfile", self.hosts(), *arguments).ok()

    def hosts(self, *names: str) -> Path:
        return self._bed.hostfile(*(names or self._bed.hosts), cores=1)

    def start(self, rows: Path, *names: str) -> tuple[subprocess.Popen[str], str]:
        """A run on these hosts, or all."""
        self._runs += 1
        folder = f"run-{self._runs}"
        command = [
            *(sys.executable, "-m", "realign_cluster.cli.main", "curate", rows, "--out", self._bed.data / folder),
            *("--model", MODEL, "--score", "loglik,ifd", "--plain", "--hostfile", self.hosts(*names)),
        ]
        said = self._bed.state / f"{folder}.log"
        return self._bed.start(COORDINATOR, ["sh", "-c", f'exec "$@" > {said} 2>&1', "sh", *command]), folder

    def finish(self, started: tuple[subprocess.Popen[str], str]) -> Measured:
        process, folder = started
        if process.wait():
            sys.exit((self._bed.state / f"{folder}.log").read_text()[-4000:])
        path = self._bed.disk(COORDINATOR) / folder
        summary = json.loads((path / "summary.json").read_text())
        reader = Ledger.read_only(path / "ledger.sqlite")
        attempts, counters = reader.attempts(), reader.counters()
        reader.close()
        began = min(attempt.granted_at for attempt in attempts)
        ended = max(attempt.ended_at or 0.0 for attempt in attempts if attempt.outcome == "committed")
        assert summary["state"] == "complete", summary["reason"]
        return Measured(
            rows=summary["rows"]["in"],
            work=counters.cost,
            began=began,
            ended=ended,
            shares={name: node["share"] for name, node in summary["nodes"].items()},
            efficiency=summary["efficiency"]["warm"],
            losses=summary["losses"],
            duplicates=summary["duplicate_fraction"] or 0.0,
            cpu={host: self._meter.percent(host, began, ended) for host in (*self._bed.hosts, COORDINATOR)},
        )

    def run(self, rows: Path, *names: str) -> Measured:
        return self.finish(self.start(rows, *names))

    def side_by_side(self, rows: Mapping[str, Path]) -> dict[str, Measured]:
        """A run of its own for each host, all at the same time."""
        started = {host: self.start(part, host) for host, part in rows.items()}
        return {host: self.finish(one) for host, one in started.items()}

    def half_done(self, folder: str) -> bool:
        path = self._bed.disk(COORDINATOR) / folder / "ledger.sqlite"
        if not path.exists():
            return False
        reader = Ledger.read_only(path)
        try:
            counters = reader.counters()
        finally:
            reader.close()
        return counters.cost > 0 and counters.pending_cost <= counters.cost / 2

    def killed(self, rows: Path, victim: str, back: float | None) -> tuple[Measured, float, float | None]:
        """A run in which `victim` is killed half way; when that was, and when its daemon served again."""
        process, folder = self.start(rows)
        while not self.half_done(folder):
            if process.poll() is not None:
                sys.exit((self._bed.state / f"{folder}.log").read_text()[-4000:])
            time.sleep(0.1)
        killed_at = time.time()
        self._bed.kill(victim)
        served_at = None
        if back is not None:
            time.sleep(back)
            self._bed.boot(victim)
            self.launch("up")
            served_at = time.time()
        measured = self.finish((process, folder))
        if back is None:
            self._bed.boot(victim)
            self.launch("up")
        return measured, killed_at, served_at


def ideal_seconds(everything: float, rest: float, work: float, began: float, gone: float, back: float | None) -> float:
    """The least time for `work`: the speed is `everything` until `gone`, the `rest` until `back`, then as before."""
    left = work - everything * (gone - began)
    if left <= 0:
        return work / everything
    if back is None or left <= rest * (back - gone):
        return gone - began + left / rest
    return back - began + (left - rest * (back - gone)) / everything


def measure(options: argparse.Namespace) -> dict[str, Any]:
    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    described_machine = machine()
    with bed_of(SHARES) as bed, CpuMeter(bed) as meter:
        bench = Bench(bed, meter)
        say("starting daemons over ssh")
        bench.launch("up")
        probe = write_rows(bed.state / "probe.jsonl", PROBE_ROWS)
        guess = {host: bench.run(probe, host).rate for host in SHARES}
        seconds = max(LEAST_SLICE_SECONDS, options.seconds * SLICE_FRACTION)
        slices = {host: write_rows(bed.state / f"{host}.jsonl", round(guess[host] * seconds)) for host in SHARES}
        alone = {}
        for host in SHARES:
            say(f"{host} alone")
            alone[host] = bench.run(slices[host], host)
        say("side by side")
        before = bench.side_by_side(slices)
        count = round(sum(run.rate for run in before.values()) * options.seconds)
        rows = write_rows(bed.state / "rows.jsonl", count)
        say(f"together: {count:,} rows")
        together = bench.run(rows)
        say("side by side")
        after = bench.side_by_side(slices)
        say("equal halves, one host each")
        halves = {host: write_half(rows, bed.state / f"half-{at}.jsonl", at) for at, host in enumerate(SHARES)}
        equal = bench.side_by_side(halves)
        say(f"{options.kill} killed half way")
        killed, gone, back = bench.killed(rows, options.kill, options.back)
        [survivor] = [host for host in SHARES if host != options.kill]
        say(f"{survivor} alone")
        again = bench.run(slices[survivor], survivor)
    total = sum(run.speed for run in (*before.values(), *after.values())) / 2
    rest = (alone[survivor].speed + again.speed) / 2
    ideal = ideal_seconds(total, rest, killed.work, killed.began, gone, back)
    equal_seconds = max(run.ended for run in equal.values()) - min(run.began for run in equal.values())
    versions = local_versions()
    return {
        "machine": described_machine,
        "load_after": machine().rpartition("load ")[2],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"project": versions.project, "mlx": versions.mlx, "python": versions.python},
        "quota": SHARES,
        "rows": count,
        "alone": {host: described(run) for host, run in alone.items()},
        "alone_again": {survivor: described(again)},
        "side_by_side": [{host: described(run) for host, run in runs.items()} for runs in (before, after)],
        "sum_of_single_rates": sum(run.rate for run in (*before.values(), *after.values())) / 2,
        "together": described(together) | {"efficiency_by_single_rates": together.speed / total},
        "equal": {
            "seconds": equal_seconds,
            "cpu": {host: run.cpu[host] for host, run in equal.items()},
            "rate": count / equal_seconds,
            "efficiency_by_single_rates": together.work / equal_seconds / total,
            "hosts": {host: described(run) for host, run in equal.items()},
        },
        "killed": described(killed)
        | {
            "host": options.kill,
            "after_seconds": gone - killed.began,
            "back_after_seconds": back - killed.began if back is not None else None,
            "ideal_seconds": ideal,
            "efficiency_by_single_rates": ideal / killed.seconds,
        },
    }


def write_half(rows: Path, half: Path, which: int) -> Path:
    """Every second row."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    half.write_text("".join(lines[which::2]), encoding="utf-8")
    return half


def described(run: Measured) -> dict[str, Any]:
    return asdict(run) | {"seconds": run.seconds, "rate": run.rate, "work_per_second": run.speed}


def table(found: Mapping[str, Any]) -> str:
    """The result for people."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{found['machine']} (after: {found['load_after']}); {found['date']}; {versions}",
        f"{found['rows']:,} rows; sum of the single rates {found['sum_of_single_rates']:.1f} rows/s",
        "",
        f"{'':22} {'seconds':>8} {'rows/s':>8} {'efficiency':>10}   CPU given, % of one",
    ]

    def line(what: str, run: Mapping[str, Any], efficiency: float | None) -> str:
        ratio = f"{efficiency:10.3f}" if efficiency is not None else f"{'':10}"
        return f"{what:22} {run['seconds']:8.1f} {run['rate']:8.1f} {ratio}   {_cpu(run)}"

    for host, run in (*found["alone"].items(), *found["alone_again"].items()):
        lines.append(line(f"{host} alone", run, None))
    for runs in found["side_by_side"]:
        lines += [line(f"{host} beside", run, None) for host, run in runs.items()]
    together, equal, killed = found["together"], found["equal"], found["killed"]
    lines.append(line("together", together, together["efficiency_by_single_rates"]))
    lines.append(line("equal halves", equal, equal["efficiency_by_single_rates"]))
    what = f"killed at {killed['after_seconds']:.0f} s"
    lines.append(line(what, killed, killed["efficiency_by_single_rates"]))
    lines += [
        "",
        f"equal halves take {equal['seconds'] / together['seconds']:.2f} times as long as together",
        f"killed: {killed['host']}, ideal {killed['ideal_seconds']:.1f} s with what was there"
        + (f", back at {killed['back_after_seconds']:.0f} s" if killed["back_after_seconds"] is not None else ""),
        f"by its own summary: together {_own(together)}",
        f"                    killed   {_own(killed)}",
    ]
    lines += _warnings(found)
    return "\n".join(lines)


def _cpu(run: Mapping[str, Any]) -> str:
    return "  ".join(f"{host} {share:.1f}" for host, share in run.get("cpu", {}).items() if share >= 0.05)


def _own(run: Mapping[str, Any]) -> str:
    if run["efficiency"] is None:
        return "not measured"
    losses = ", ".join(f"{name} {part:.3f}" for name, part in run["losses"].items() if part >= 0.0005)
    shares = ", ".join(f"{name} {share:.3f}" for name, share in run["shares"].items())
    return f"{run['efficiency']:.3f} (lost: {losses or 'nothing'}; shares {shares}; duplicated {run['duplicates']:.4f})"


def _warnings(found: Mapping[str, Any]) -> list[str]:
    """A host that was not given its quota when it was to be used makes a ratio worthless: say so."""
    short = [
        f"{what}: {host} was given {given:.1f} % of {found['quota'][host]:g}"
        for what, run in (
            *found["alone"].items(),
            *(item for runs in found["side_by_side"] for item in runs.items()),
            ("together", found["together"]),
        )
        for host, given in run["cpu"].items()
        if host in run["shares"] and given < 0.95 * found["quota"][host]
    ]
    return ["", "the machine was not quiet:", *short] if short else []


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="how long both together should take")
    parser.add_argument("--kill", choices=list(SHARES), default="m3ultra-1", help="the host that is killed half way")
    parser.add_argument(
        "--back", type=float, metavar="SECONDS", help="boot it again so long after, and start its daemon"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    options = parser.parse_args(arguments)
    found = measure(options)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
