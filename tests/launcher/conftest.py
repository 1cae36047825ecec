"""A home of its own for each test; whatever daemon a test leaves behind is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.station import Station


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Station]:
    home = tmp_path / "home"
    home.mkdir()
    station = Station(home)
    yield station
    for pid in station.daemons().values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
