"""Both workflows whole, really trained, as `make demo-workflow` runs them: two nodes, all seven stages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from realign_cluster.coordinator.workflow_history import WorkflowHistory, read_workflow_history
from tests.launcher.station import free_ports
from tests.workflows.answering import NAME, digests

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("workflow", ["source-attribution", "antihallucination"])
def test_every_gate_passes_and_is_judged_alike_by_the_independent_script(workflow: str, tmp_path: Path) -> None:
    """The script's exit status says whether both judgements agree; a demo may end in a FAIL, this one should not."""
    hosts = json.loads((EXAMPLES.parent / "hostfiles" / "local.json").read_bytes())
    for host, port in zip(hosts["hosts"], free_ports(len(hosts["hosts"])), strict=True):
        host["realign"] |= {"port": port, "state": str(tmp_path / host["realign"]["name"])}
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps(hosts))
    demo = [sys.executable, str(EXAMPLES / "workflow_demo.py"), workflow]
    demo += ["--hostfile", str(hostfile), "--out", str(tmp_path / "demo")]
    environment = os.environ | {"REALIGN_HOME": str(tmp_path / "home")}
    done = subprocess.run(demo, capture_output=True, text=True, env=environment, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "DIFFERS" not in done.stdout
    summary = json.loads((tmp_path / "demo" / "run" / "summary.json").read_bytes())
    assert (summary["state"], summary["passed"]) == ("complete", True)
    assert len({each["stage"] for each in summary["stages"]}) == 7
    history = read_workflow_history(tmp_path / "demo" / "run")
    rounds = next(each for each in history.attempts if each.name == "iteration").facts["rounds"]
    assert len(rounds) >= 2
    assert all(each["gaps"] and each["training"]["steps"]["done"] for each in rounds)
    assert_nothing_is_trained_on_of_who_is_judged_on(history, tmp_path / "demo" / "made" / "data")


def assert_nothing_is_trained_on_of_who_is_judged_on(history: WorkflowHistory, data: Path) -> None:
    """By the hashes of words: of everything that a training of this run read, as it read it."""
    held_out = [digests(set(NAME.findall((data / f"{name}.jsonl").read_text()))) for name in ("items", "sealed")]
    assert all(len(names) > 50 for names in held_out)
    assert len(history.trainings) >= 5
    for training in history.trainings:
        roles = training.request["inputs_by_role"]
        for role in {"data", "valid"} & set(roles):
            path = history.path_of(roles[role])
            assert path, role
            words = digests(set(re.findall(r"[a-z]+", (history.folder / path).read_text())))
            assert len(words) > 50
            assert not words & (held_out[0] | held_out[1]), training.request["title"]
