"""kill -9 at random instants of a real run, again and again, until it completes: nothing acknowledged is lost,
nothing is done twice.
"""

import contextlib
import gzip
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from realign_cluster.store.ledger import Ledger
from realign_cluster.store.output import OutputOptions, write_outputs
from tests.store.kit import Run, made_rows, read_parts, write_jsonl

SCRIPT = Path(__file__).with_name("crashing_run.py")
ROOT = Path(__file__).parents[2]


def start(folder, source):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(source)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )


def sitting(folder, source, lines=None, seconds=0.0):
    """One start of the run, killed `seconds` after its `lines`-th line, or left to complete: every line it said."""
    process = start(folder, source)
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if len(said) == lines:
                time.sleep(seconds)  # so that the kill falls anywhere within a transaction
                break
        else:
            assert process.wait() == 0
    finally:
        process.kill()
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
    # a line that is cut was acknowledged to nobody
    return b"".join(said).decode().splitlines() + [line.decode() for line in rest.split(b"\n")[:-1]]


def killed_after(folder, source, seconds):
    """One start of the run, killed after `seconds` wherever it is then."""
    process = start(folder, source)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=seconds)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_instants_it_ends_as_if_undisturbed(tmp_path, seed):
    source = write_jsonl(tmp_path / "data.jsonl", made_rows(6000))
    with Run(tmp_path / "undisturbed", [source]) as run:
        run.scan(unit_rows=8)
        run.score_all()
        write_outputs(run.ledger, run.sources, run.folder, OutputOptions(part_rows=1000))

    rng = random.Random(seed)
    folder = tmp_path / "run"
    acknowledged: set[int] = set()
    kills = 0
    complete = False
    while not complete:
        said = sitting(folder, source, rng.randint(2, 90) if kills < 8 else None, rng.uniform(0, 0.004))
        complete = "complete" in said
        now = {int(unit) for line in said if line[:1].isdigit() for unit in line.split()}
        assert not acknowledged & now, "a unit was acknowledged twice"
        acknowledged |= now
        kills += not complete
        if (folder / "ledger.sqlite").exists():
            with Ledger.open(folder / "ledger.sqlite") as ledger:
                committed = {unit for (unit,) in ledger._query("SELECT unit_id FROM result")}
                assert acknowledged <= committed
                assert ledger._query("PRAGMA integrity_check") == [("ok",)]
    assert kills >= 3
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        assert ledger.counters().pending_units == 0
        attempts = ledger.attempts()
        assert sum(record.outcome == "committed" for record in attempts) == ledger.counters().units
        assert all(record.outcome in ("committed", "older epoch") for record in attempts)
    for name in ("output", "dropped", "failed"):
        parts = {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        assert parts == {path.name: path.read_bytes() for path in (tmp_path / "undisturbed" / name).iterdir()}
    assert [row["id"] for row in read_parts(folder / "output")] == list(range(6000))


def test_a_kill_while_the_input_is_unpacked_or_scanned_costs_nothing(tmp_path):
    plain = write_jsonl(tmp_path / "plain.jsonl", made_rows(12_000))
    source = tmp_path / "data.jsonl.gz"
    source.write_bytes(gzip.compress(plain.read_bytes()))
    folder = tmp_path / "run"
    rng = random.Random(11)
    for _ in range(4):
        killed_after(folder, source, rng.uniform(0.3, 0.7))
        copies = list((folder / "input-cache").glob("*.jsonl")) if folder.exists() else []
        assert all(copy.read_bytes() == plain.read_bytes() for copy in copies)
    assert sitting(folder, source)[-1] == "complete"
    assert len(read_parts(folder / "output")) == 12_000
