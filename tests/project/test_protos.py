"""The committed code under realign_cluster/rpc/pb is what proto/ says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = Path("realign_cluster/rpc/pb")


def test_generated_code_is_current(tmp_path: Path):
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "proto").glob("*.proto"))
    assert sources
    where = [f"-I{PACKAGE}=proto", *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python"))]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *where, *sources], cwd=ROOT, check=True)
    made = {path.name: path.read_text() for path in (tmp_path / PACKAGE).iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / PACKAGE).glob("*_pb2*")}
    assert committed.keys() == made.keys()
    stale = [name for name in made if made[name] != committed[name]]
    assert not stale, f"make protos, then commit: {stale}"
