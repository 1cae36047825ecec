"""The wheel that hosts get: built from this checkout, or made again from what is installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from realign_launcher.wheel import build_wheel, repack_installed

from realign_cluster.domain.errors import RealignError


def test_the_wheel_of_a_checkout_holds_daemon_and_launcher(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    (tmp_path / "again").mkdir()
    assert build_wheel(tmp_path / "again").digest == wheel.digest
    names = zipfile.ZipFile(tmp_path / wheel.name).namelist()
    assert {
        "realign_cluster/domain/hostfile.py",
        "realign_launcher/main.py",
        "realign_cluster/rpc/pb/node_pb2.py",
    } <= set(names)
    assert not [name for name in names if name.startswith(("launcher/", "tests/", "examples/"))]


def test_an_installed_package_becomes_a_wheel_again(tmp_path: Path) -> None:
    path = repack_installed(tmp_path, "stamina")
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, path],
        check=True,
    )
    found = subprocess.run(
        [sys.executable, "-c", "import stamina; print(stamina.__file__)"],
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(str(target))


def test_what_is_not_installed_or_only_linked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RealignError, match="not installed here"):
        repack_installed(tmp_path, "no-such-distribution")
