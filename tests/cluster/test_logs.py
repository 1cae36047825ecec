"""A worker's output reaches whoever asks the coordinator's side for it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import made_rows
from tests.cluster.kit import TINY_MODEL, CurateCluster, wait_until, write_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


def logs(cluster: CurateCluster, *arguments: str) -> list[str]:
    hosts = str(cluster.hostfile("alpha", "beta"))
    return [sys.executable, "-m", "realign_cluster.cli.main", "logs", *arguments, "--hostfile", hosts]


def test_logs_of_worker_and_daemon(pair: CurateCluster, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", made_rows(20))
    command = pair.command(rows, tmp_path / "run", "--model", str(TINY_MODEL), "--score", "loglik")
    done = pair.run(command)
    assert done.returncode == 0, done.stderr
    assert "--- worker" in pair.run(logs(pair, "alpha")).stdout
    assert '"event": "serving"' in pair.run(logs(pair, "alpha", "--stream", "daemon")).stdout
    wrong = pair.run(logs(pair, "alfa"))
    assert wrong.returncode == 2
    assert "did you mean 'alpha'" in wrong.stderr


def test_logs_are_followed(pair: CurateCluster, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            logs(pair, "beta", "--stream", "daemon", "--follow"),
            stdout=out,
            stderr=subprocess.PIPE,
            env=pair.environment,
        )
        try:
            read = (tmp_path / "out").read_text
            wait_until(lambda: '"event": "serving"' in read(), 20, "the log so far")
            rows = write_rows(tmp_path / "rows.jsonl", made_rows(5))
            pair.run(pair.command(rows, tmp_path / "run", "--model", "none", "--score", "noop"))
            wait_until(lambda: '"event": "session"' in read(), 20, "what came later")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert process.returncode == 130
