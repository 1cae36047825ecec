"""Both workflows whole, really trained, as `make demo-workflow` runs them: two nodes, all seven stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("workflow", ["source-attribution", "antihallucination"])
def test_every_gate_passes_and_is_judged_alike_by_the_independent_script(workflow: str, tmp_path: Path) -> None:
    """The script's exit status says whether both judgements agree; a demo may end in a FAIL, this one should not."""
    demo = [sys.executable, str(EXAMPLES / "workflow_demo.py"), workflow, "--out", str(tmp_path / "demo")]
    environment = os.environ | {"REALIGN_HOME": str(tmp_path / "home")}
    done = subprocess.run(demo, capture_output=True, text=True, env=environment, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "DIFFERS" not in done.stdout
    summary = json.loads((tmp_path / "demo" / "run" / "summary.json").read_bytes())
    assert (summary["state"], summary["passed"]) == ("complete", True)
    assert len({each["stage"] for each in summary["stages"]}) == 7
