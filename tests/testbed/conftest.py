"""Brings a test bed of its own up for the session and takes it down.

Without root, or without the bed, these tests skip with the reason; in CI as root a skip is a failure.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.bed import Bed, testbed_script

HOSTS = ("m4max1", "m3ultra1")
TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "sshd": "openssh-server", "ssh": "openssh-client"}


def why_not() -> str:
    """Why the bed cannot be used here; empty when it can."""
    if sys.platform != "linux":
        return "the test bed needs Linux"
    if os.geteuid() != 0:
        return "the test bed needs root"
    if testbed_script() is None:
        return "there is no test bed: set REALIGN_TESTBED to its folder"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [
        f"{tool} (apt-get install {package})" for tool, package in TOOLS.items() if not shutil.which(tool, path=path)
    ]
    return f"the test bed needs {', '.join(lacking)}" if lacking else ""


def skip_or_fail(reason: str) -> None:
    if os.environ.get("CI") == "true" and sys.platform == "linux" and os.geteuid() == 0:
        pytest.fail(f"in CI as root these tests must run: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def bed_of_session() -> Iterator[Bed]:
    if reason := why_not():
        skip_or_fail(reason)
    script = testbed_script()
    assert script is not None
    name = f"realign{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        state = Path(folder) / "bed"
        bed = Bed(script=script, name=name, state=state, hosts=HOSTS)
        # One home for the coordinator's tests: on its own disk, which `make_whole` empties.
        bed.env = {"HOME": str(bed.data), "REALIGN_HOME": str(bed.data / ".realign")}
        try:
            bed.verb("up", "--hosts", ",".join(HOSTS), "--disk", "256")
        except AssertionError as problem:
            skip_or_fail(f"the test bed does not come up: {problem}")
        try:
            yield bed
        finally:
            bed.close()


@pytest.fixture
def bed(bed_of_session: Bed) -> Bed:
    """The session's bed, whole and empty."""
    bed_of_session.make_whole()
    return bed_of_session
