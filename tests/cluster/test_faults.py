"""Real kills of real processes in the middle of a run: it completes, with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from realign_cluster.store.ledger_reader import AttemptRecord
from tests.cluster.conftest import Undisturbed
from tests.cluster.kit import (
    TINY_MODEL,
    CurateCluster,
    committed_units,
    ledger,
    output_bytes,
    summary,
    wait_until,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

SCORING = ("--model", str(TINY_MODEL), "--score", "loglik,ifd", "--reproducible", "--plain")


def given_to_another(run: Path, victim: str) -> list[tuple[AttemptRecord, AttemptRecord]]:
    """Attempts that ended on `victim` without a result, each with the one that committed the unit later."""
    reader = ledger(run)
    try:
        attempts = reader.attempts()
    finally:
        reader.close()
    committed = {attempt.unit: attempt for attempt in attempts if attempt.outcome == "committed"}
    return [
        (attempt, committed[attempt.unit])
        for attempt in attempts
        if attempt.node == victim and attempt.outcome not in ("committed", None) and attempt.unit in committed
    ]


def midway(run: Path, units: int = 4) -> None:
    wait_until(lambda: committed_units(run) >= units, 60, f"{units} committed units")


def finish(process: subprocess.Popen[str], timeout: float = 120) -> str:
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors
    return errors


def test_worker_killed(pair: CurateCluster, rows_file: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    expected = undisturbed.of(pair, rows_file, tmp_path / "calm", *SCORING)
    run = tmp_path / "run"
    process = pair.spawn(pair.command(rows_file, run, *SCORING))
    midway(run)
    [pid] = pair.daemons["alpha"].worker_pids()
    os.kill(pid, signal.SIGKILL)
    finish(process)
    assert output_bytes(run) == expected
    moved = given_to_another(run, "alpha")
    assert moved, "no lease was outstanding on the worker that was killed"
    assert any("worker" in (lost.outcome or "") for lost, _ in moved)
    assert any(taken.attempt > lost.attempt for lost, taken in moved)


def test_daemon_killed(pair: CurateCluster, long_rows_file: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    expected = undisturbed.of(pair, long_rows_file, tmp_path / "calm", *SCORING)
    run = tmp_path / "run"
    process = pair.spawn(pair.command(long_rows_file, run, *SCORING))
    midway(run)
    victim = pair.daemons["beta"]
    workers = victim.worker_pids()
    victim.kill()
    wait_until(lambda: not any(_alive(pid) for pid in workers), 10, "the end of the dead daemon's worker")
    finish(process)
    assert output_bytes(run) == expected
    moved = given_to_another(run, "beta")
    assert moved, "no lease was outstanding on the daemon that was killed"
    assert any("node lost" in (lost.outcome or "") for lost, _ in moved), "it was never given up"
    assert all(taken.node == "alpha" for _, taken in moved)


def test_daemon_killed_and_back_within_its_lease(
    pair: CurateCluster, rows_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Back before it is given up: it is greeted again, gets its leases again, and goes on."""
    expected = undisturbed.of(pair, rows_file, tmp_path / "calm", *SCORING)
    run = tmp_path / "run"
    process = pair.spawn(pair.command(rows_file, run, *SCORING))
    midway(run)
    pair.daemons["beta"].kill()
    pair.daemons["beta"].start()
    finish(process)
    assert output_bytes(run) == expected
    reader = ledger(run)
    try:
        assert all(attempt.outcome for attempt in reader.attempts())
    finally:
        reader.close()


def test_coordinator_killed(pair: CurateCluster, rows_file: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    expected = undisturbed.of(pair, rows_file, tmp_path / "calm", *SCORING)
    run = tmp_path / "run"
    command = pair.command(rows_file, run, *SCORING)
    for units in (3, 8):
        process = pair.spawn(command)
        midway(run, units)
        process.kill()
        process.communicate()
    done = pair.run(command)
    assert done.returncode == 0, done.stderr
    assert output_bytes(run) == expected
    found = summary(run)
    assert found["resumed"] == 2
    reader = ledger(run)
    try:
        attempts = reader.attempts()
    finally:
        reader.close()
    orphans = [attempt for attempt in attempts if attempt.outcome == "older epoch"]
    committed = {attempt.unit: attempt.epoch for attempt in attempts if attempt.outcome == "committed"}
    assert orphans, "no lease was outstanding when the coordinator was killed"
    assert all(committed[attempt.unit] > attempt.epoch for attempt in orphans)


@pytest.mark.soak
def test_worker_stopped(pair: CurateCluster, rows_file: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """SIGSTOP: alive, connected, and without progress. Only the watchdog sees it."""
    expected = undisturbed.of(pair, rows_file, tmp_path / "calm", *SCORING)
    run = tmp_path / "run"
    process = pair.spawn(pair.command(rows_file, run, *SCORING))
    midway(run)
    [pid] = pair.daemons["alpha"].worker_pids()
    os.kill(pid, signal.SIGSTOP)
    finish(process)
    assert output_bytes(run) == expected
    moved = given_to_another(run, "alpha")
    assert moved, "no lease was outstanding on the worker that was stopped"
    if _alive(pid):
        os.kill(pid, signal.SIGCONT)


@pytest.mark.soak
def test_node_leaves_and_another_joins(
    pair: CurateCluster, long_rows_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    expected = undisturbed.of(pair, long_rows_file, tmp_path / "calm", *SCORING)
    run = tmp_path / "run"
    pair.daemons["beta"].stop()
    process = pair.spawn([*pair.command(long_rows_file, run, *SCORING), "--min-nodes", "1"])
    midway(run, 1)
    pair.daemons["beta"].start()
    reader = ledger(run)
    try:
        wait_until(lambda: any(node.node == "beta" for node in reader.nodes_summary()), 60, "work done by who joined")
    finally:
        reader.close()
    pair.daemons["alpha"].stop()
    finish(process)
    assert output_bytes(run) == expected
    assert set(summary(run)["nodes"]) == {"alpha", "beta"}


@pytest.mark.soak
def test_interrupted_and_resumed(
    pair: CurateCluster, rows_file: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    expected = undisturbed.of(pair, rows_file, tmp_path / "calm", *SCORING)
    run = tmp_path / "run"
    command = pair.command(rows_file, run, *SCORING)
    process = pair.spawn(command)
    midway(run)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert summary(run)["state"] == "incomplete"
    assert "again" in errors
    done = pair.run(command)
    assert done.returncode == 0, done.stderr
    assert output_bytes(run) == expected


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z" if Path("/proc").exists() else True
