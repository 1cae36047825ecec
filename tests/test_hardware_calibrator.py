"""Workload distribution of machines that are only described: by priors, each with its grounds. (What is measured, and
clusters: tests/cluster/test_metrics_on_cluster.py.)
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.prior import CONTRADICTION
from realign_cluster.hardware_calibrator import Machine, workload_distribution
from tests.fixtures.models import TINY_MODEL

MAX = Machine(name="max", chip="Apple M4 Max", memory_gib=128)
ULTRA = Machine(name="ultra", chip="Apple M3 Ultra", memory_gib=512)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path / "home"))
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Question {at}?", "response": "word " * 40}) + "\n" for at in range(90))
    )
    return path


def test_the_users_pair_is_shared_by_the_users_figures(rows: Path) -> None:
    found = workload_distribution(TINY_MODEL, [rows], machines=[MAX, ULTRA])
    assert found.shares() == {"max": pytest.approx(3.86 / 4.62), "ultra": pytest.approx(0.76 / 4.62)}
    assert {node.cost_per_second.source for node in found.nodes} == {"prior"}
    assert all(node.cost_per_second.value == node.prior.value for node in found.nodes)
    assert "the user's figures for Apple M3 Ultra" in found.nodes[1].prior.why
    assert CONTRADICTION in found.why
    assert found.rows == 90
    assert found.expected_seconds is not None
    assert found.equal_split_seconds is not None
    assert found.expected_seconds < found.equal_split_seconds
    assert (found.refusal, found.left_out) == ("", {})


def test_other_chips_and_fewer_cores_have_their_own_grounds(rows: Path) -> None:
    small = Machine(name="small", chip="Apple M4 Max", memory_gib=36, gpu_cores=32)
    box = Machine(name="box", chip="a CPU", memory_gib=64, backend="cpu", cpu_cores=8)
    found = {node.name: node for node in workload_distribution(TINY_MODEL, [rows], machines=[MAX, small, box]).nodes}
    assert found["small"].cost_per_second.value < found["max"].cost_per_second.value
    assert "scaled from 40 to 32 GPU cores" in found["small"].prior.why
    assert "8 CPU cores x 30 GFLOPS" in found["box"].prior.why
    assert sum(node.share for node in found.values()) == pytest.approx(1)


def test_what_fits_nowhere_is_refused_with_the_arithmetic(rows: Path) -> None:
    found = workload_distribution(TINY_MODEL, [rows], machines=[Machine(name="tiny", chip="Apple M1", memory_gib=0.2)])
    assert "fits on none of tiny" in found.refusal
    assert "tiny" in found.left_out
    assert found.nodes == ()


def test_two_plans_at_once_are_refused(rows: Path) -> None:
    with pytest.raises(UsageError, match="two plans"):
        workload_distribution(TINY_MODEL, [rows], machines=[MAX], hostfile="hosts.json")
    with pytest.raises(UsageError, match="no cluster was named"):
        workload_distribution(TINY_MODEL, [rows])
    with pytest.raises(UsageError, match="there is no kind 'ifdd'"):
        workload_distribution(TINY_MODEL, [rows], score=["ifdd"], machines=[MAX])
