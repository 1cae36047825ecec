"""training_metrics and hardware_calibrator on real daemons: the same figures as from one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.domain.errors import NodesMissing
from realign_cluster.training_metrics import calculate_ifd_score
from tests.cluster.kit import TINY_MODEL, CurateCluster, summary
from tests.training_metrics.documented import ROOT, run_examples

pytestmark = pytest.mark.cluster
CARDS = ROOT / "examples" / "data" / "cards-held-out.jsonl"


@pytest.fixture
def at_home(pair: CurateCluster, monkeypatch: pytest.MonkeyPatch) -> CurateCluster:
    monkeypatch.setenv("REALIGN_HOME", str(pair.realign_home))
    return pair


def test_ifd_by_the_cluster_is_that_of_one_worker(at_home: CurateCluster, tmp_path: Path) -> None:
    out = tmp_path / "ifd"
    found = calculate_ifd_score(
        CARDS, TINY_MODEL, response_field="completion", hostfile=at_home.hostfile("alpha", "beta"), out=out
    )
    alone = calculate_ifd_score(CARDS, TINY_MODEL, response_field="completion")
    assert [row.where for row in found.rows] == [row.where for row in alone.rows]
    assert found.values == pytest.approx(alone.values, abs=1e-4)
    where, _, nodes = found.computed_by.partition(": ")
    assert where == "on the cluster of hosts-alpha-beta.json"
    assert sum(int(node.split()[1]) for node in nodes.split(", ")) == 48
    assert summary(out / "run")["rows"] == {"in": 48, "kept": 48, "dropped": 0, "failed": 0}
    again = calculate_ifd_score(
        CARDS, TINY_MODEL, response_field="completion", hostfile=at_home.hostfile("alpha", "beta"), out=out
    )
    assert again == found
    assert summary(out / "run")["resumed"] == 0  # it was complete: nothing was scored again


def test_nodes_that_are_not_there(at_home: CurateCluster, tmp_path: Path) -> None:
    hosts = at_home.hostfile("alpha", "beta").read_text().replace('"beta"', '"gamma"')
    (tmp_path / "missing.json").write_text(hosts)
    with pytest.raises(NodesMissing, match="gamma"):
        calculate_ifd_score(CARDS, TINY_MODEL, response_field="completion", hostfile=tmp_path / "missing.json")


def test_the_examples_of_the_hardware_calibrator(
    at_home: CurateCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "hosts.json").write_text(at_home.hostfile("alpha", "beta").read_text())
    monkeypatch.chdir(tmp_path)
    count, differed = run_examples("hardware_calibrator.md")
    assert not differed, differed
    assert count > 15
