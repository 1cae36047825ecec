"""What a rank puts into its environment before MLX makes a group, and what it says when there can be none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from realign_cluster.domain.training import Backend
from realign_cluster.domain.world import Go, RankSpec, RdmaLinks, WorldPlan
from realign_cluster.sharding.group import NoBackend, WorldMismatch
from realign_cluster.training.join import join

LINKS = RdmaLinks(devices=(((), ("rdma_en2",)), (("rdma_en3",), ())))
GO = Go(generation=4, addresses=("192.0.2.1:5001", "192.0.2.2:5002"))
INHERITED = ("JACCL_IBV_DEVICES", "JACCL_COORDINATOR", "JACCL_RANK", "JACCL_RING", "MLX_JACCL_RING")
SET = ("MLX_RANK", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR")


def second_rank(rdma: RdmaLinks | None) -> RankSpec:
    world = WorldPlan(parallel="tensor", backend="jaccl", nodes=("a", "b"), shares=(1.0, 0.0), rdma=rdma)
    return RankSpec(generation=4, rank=1, world=world)


@pytest.mark.parametrize("ring", [False, True])
def test_jaccl_is_told_by_the_plan_alone(ring: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*INHERITED, *SET):  # of a daemon that was started under mlx.launch, say
        monkeypatch.setenv(name, "inherited")
    with pytest.raises((NoBackend, RuntimeError)):  # these devices are nowhere
        join(second_rank(LINKS.model_copy(update={"ring": ring})), GO, tmp_path, pytest.fail)
    assert json.loads(Path(os.environ["MLX_IBV_DEVICES"]).read_text()) == [[None, "rdma_en2"], ["rdma_en3", None]]
    assert Path(os.environ["MLX_IBV_DEVICES"]).parent == tmp_path
    assert os.environ["MLX_JACCL_COORDINATOR"] == "192.0.2.1:5001"
    assert os.environ["MLX_RANK"] == "1"
    assert {name for name in INHERITED if name in os.environ} == ({"MLX_JACCL_RING"} if ring else set())


def test_a_plan_without_devices_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorldMismatch, match="names no devices"):
        join(second_rank(None), GO, tmp_path, pytest.fail)


@pytest.mark.parametrize("backend", ["ring", "jaccl"])
@pytest.mark.parametrize("addresses", [GO.addresses[:1], (*GO.addresses, "192.0.2.3:5003")])
def test_another_number_of_ranks_is_refused_before_anybody_waits(
    backend: Backend, addresses: tuple[str, ...], tmp_path: Path
) -> None:
    spec = second_rank(LINKS)
    spec = spec.model_copy(update={"world": spec.world.model_copy(update={"backend": backend})})
    with pytest.raises(WorldMismatch, match=f"the plan has 2 ranks, the addresses are those of {len(addresses)}"):
        join(spec, GO.model_copy(update={"addresses": addresses}), tmp_path, pytest.fail)
    assert not list(tmp_path.iterdir())
