"""What `make setup` stands on: finding a Python, and saying what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash") or "/bin/bash"


def find_python(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, str(ROOT / ".ci" / "find-python"), *arguments],
        env={"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def python_that(folder: Path, name: str, *, works: bool) -> Path:
    """A python3 of its own on the path: this one, or one that is too old for anything."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n' if works else "#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    return path


def test_python3_is_taken_when_it_will_do(tmp_path: Path):
    python = python_that(tmp_path, "python3", works=True)
    found = find_python(str(tmp_path))
    assert (found.returncode, found.stdout.strip()) == (0, str(python))


def test_one_that_will_not_do_is_passed_over(tmp_path: Path):
    python_that(tmp_path, "python3", works=False)
    python = python_that(tmp_path, "python3.12", works=True)
    assert find_python(str(tmp_path)).stdout.strip() == str(python)


def test_none_is_said_with_what_to_do(tmp_path: Path):
    found = find_python(str(tmp_path))
    assert found.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13" in found.stderr
    assert "fix: macOS: brew install python" in found.stderr


def test_the_one_that_was_named_or_none(tmp_path: Path):
    python_that(tmp_path, "python3", works=True)
    named = python_that(tmp_path, "mine", works=False)
    found = find_python(str(tmp_path), str(named))
    assert found.returncode == 1
    assert f"{named} is not a Python 3.11 to 3.13" in found.stderr
