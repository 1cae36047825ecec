"""The child of a launch: its exit status is ours, signals reach it, and it is waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from realign_launcher.child import run_child

from tests.launcher.station import wait_for

CHILD = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "said").write_text(signal.Signals(number).name)
    sys.exit(130)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


async def test_its_exit_status_is_ours() -> None:
    assert await run_child([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert await run_child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_are_passed_on_and_the_child_is_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    child = asyncio.create_task(run_child([sys.executable, "-c", CHILD, str(tmp_path)]))
    async with asyncio.timeout(20):
        await asyncio.to_thread(wait_for, tmp_path / "ready")
        os.kill(os.getpid(), number)
        assert await child == 130
    assert (tmp_path / "said").read_text() == number.name
