"""How much memory the coordinator takes at a million rows: the most that `realign curate` holds, from start to exit.

    python benchmarks/coordinator_memory.py [--rows 1000000] [--folder DIR]

Rows and results have the sizes of instruction data scored by loglik and ifd; the model is examples/tiny-model, so that
units are cut by its tokens. Two real daemons over mTLS; their workers load the model, are admitted by their canaries,
and then answer each row with made numbers at once, since only the coordinator is measured.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import psutil

ROOT = Path(__file__).resolve().parents[1]
MODULE = "benchmarks.coordinator_memory"
SAMPLE_SECONDS = 0.1
NODES = ("alpha", "beta")
PHASES = ((".writing", "writing"), ("ledger.sqlite", "scanning, scoring"))  # by what the run folder holds
LIMIT_MB = 500


def write_rows(path: Path, rows: int) -> int:
    """Prompts of about 100 bytes and responses of 100 to 1,100; returns the bytes of all."""
    draw = random.Random(1)
    words = [b"cluster", b"of", b"the", b"unequal", b"scores", b"a", b"measured", b"answer", b"in", b"ledger", b"row"]
    text = b" ".join(draw.choices(words, k=20_000))
    with path.open("wb", buffering=1 << 20) as file:
        for at in range(rows):
            begin, length = draw.randrange(100_000), draw.randrange(100, 1_100)
            question, answer = text[begin : begin + 90], text[begin + 90 : begin + 90 + length]
            file.write(b'{"id": %d, "prompt": "%b", "response": "%b"}\n' % (at, question, answer))
    return path.stat().st_size


class MadeScores:
    """A session of the real kind whose every answer is made up."""

    def __init__(self, real: Any) -> None:
        self.report = real.report
        self._draw = random.Random(2)

    def prepare(self, rows: bytes, count: int, row_ids: bytes = b"") -> Any:
        from realign_cluster.scoring.session import Prepared

        return Prepared(count=count, content=rows)

    def compute(self, prepared: Any, progress: Any) -> Any:
        from realign_cluster.scoring.session import Result

        progress()
        payload = b"\n".join(self._line() for _ in range(prepared.count))
        return Result(payload=payload, tokens=prepared.count * 100, shape=f"{prepared.count}x128")

    def _line(self) -> bytes:
        mean, alone = -4 * self._draw.random(), 5 * self._draw.random()
        tokens = self._draw.randrange(20, 300)
        scores = {
            "loglik": {"sum": mean * tokens, "mean": mean, "tokens": tokens, "truncated": False},
            "ifd": {
                "value": -mean / alone, "nll_conditioned": -mean, "nll_alone": alone, "tokens": tokens,
                "truncated": False,
            },
        }  # fmt: skip
        return orjson.dumps(scores)


def be_worker() -> int:
    from realign_cluster.scoring import worker

    real = worker.open_session  # type: ignore[attr-defined]
    worker.open_session = lambda *arguments, **options: MadeScores(real(*arguments, **options))  # type: ignore[attr-defined]
    return worker.main()


def be_daemon() -> None:
    from realign_cluster.cli import realignd
    from realign_cluster.node import workplace

    workplace.SCORING_MODULE = MODULE  # type: ignore[attr-defined]
    realignd.main()


def peak_of(command: Sequence[str], environment: dict[str, str], run: Path, log: Path) -> dict[str, int]:
    """Most bytes resident in each phase of the command, sampled every SAMPLE_SECONDS."""
    most: dict[str, int] = {}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            try:
                resident = watched.memory_info().rss
            except psutil.Error:
                break
            phase = "report" if (run / "output").exists() else "start"
            if phase == "start":
                phase = next((name for file_name, name in PHASES if (run / file_name).exists()), "start")
            most[phase] = max(most.get(phase, 0), resident)
        process.wait()
    if process.returncode != 0:
        raise SystemExit(log.read_text()[-3000:])
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make input and run (default: a temporary folder)")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.cluster.kit import TINY_MODEL, CurateCluster, summary

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, ExitStack() as closing:
        folder = Path(name)
        size = write_rows(folder / "rows.jsonl", arguments.rows)
        cluster = CurateCluster(folder)
        closing.callback(cluster.close)
        for node in NODES:
            cluster.start(node, cores=1, module=MODULE, environment={"PYTHONPATH": str(ROOT)})
        out = folder / "run"
        command = cluster.command(
            folder / "rows.jsonl", out, "--model", str(TINY_MODEL), "--score", "loglik,ifd", "--plain"
        )
        started = time.monotonic()
        most = peak_of(command, cluster.environment, out, folder / "coordinator.log")
        seconds = time.monotonic() - started
        rows = summary(out)["rows"]
        ledger = (out / "ledger.sqlite").stat().st_size
        written = sum(path.stat().st_size for path in (out / "output").iterdir())
        assert rows["kept"] == arguments.rows, rows
    print(
        f"{arguments.rows:,} rows of {size / arguments.rows:.0f} bytes; {size / 1e6:,.0f} MB in,"
        f" {written / 1e6:,.0f} MB out, ledger {ledger / 1e6:,.0f} MB; {seconds:.0f} s"
    )
    for phase, resident in most.items():
        print(f"  {phase:18} {resident / 1e6:6,.0f} MB")
    print(f"coordinator's most resident memory: {max(most.values()) / 1e6:,.0f} MB (expected: below {LIMIT_MB})")


if __name__ == "__main__":
    if "--read-fd" in sys.argv:
        sys.exit(be_worker())
    if sys.argv[1:2] == ["run"]:
        be_daemon()
    else:
        main()
