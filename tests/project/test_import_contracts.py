"""The import contracts of pyproject.toml hold, and they would notice: each is broken on purpose in a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BREACHES = {
    "Imports run one way": ("realign_cluster/rpc/breach.py", "import realign_cluster.coordinator\n"),
    # Only through another module: the ban is on what gets imported in the end.
    "Only workers import MLX": ("realign_cluster/node/breach.py", "import realign_cluster.scoring.breach_of_mlx\n"),
    "Decisions are pure": ("realign_cluster/domain/breach.py", "import time\n"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "launcher")])}
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo", "--config", str(folder / "pyproject.toml")],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def copy_of_the_sources(folder: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "realign_cluster", folder / "realign_cluster", ignore=ignore)
    shutil.copytree(ROOT / "launcher", folder / "launcher", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_contracts_hold():
    checked = lint(ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_contract_notices_a_breach(tmp_path: Path):
    folder = copy_of_the_sources(tmp_path)
    for path, text in BREACHES.values():
        (folder / path).write_text(text)
    (folder / "realign_cluster/scoring/breach_of_mlx.py").write_text("import mlx.core\n")
    checked = lint(folder)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    for contract in BREACHES:
        assert f"{contract} BROKEN" in checked.stdout, checked.stdout
