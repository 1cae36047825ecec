"""What a training is planned from: what earlier runs measured, unless it has to be the same again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from realign_cluster.coordinator.cluster import Cluster, MissingNode, NodeLink
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.train_planning import Planner, may_come_back
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.training import TrainSettings
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.versions import local_versions
from realign_cluster.store.model_files import describe_model
from realign_cluster.store.training_data import prepare_training_data

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY, ROWS = EXAMPLES / "tiny-model", EXAMPLES / "data" / "instructions.jsonl"


def cluster_at(folder: Path) -> Cluster:
    links = []
    for name in ("alpha", "beta"):
        device = common.Device(chip="A CPU", backend="cpu", cpu_cores=1, memory_bytes=8 << 30, blas="openblas")
        versions = common.Versions(mlx="0.32.4", mlx_lm="0.32.2")
        info = common.NodeInfo(node_id=f"n-{name}", name=name, device=device, versions=versions)
        health = common.Health(memory_total_bytes=8 << 30, memory_available_bytes=6 << 30)
        address = SimpleNamespace(name=name, address="127.0.0.1:1", memory_limit_bytes=None)
        links.append(NodeLink(address=cast(Any, address), info=info, health=health))
    return Cluster(nodes=tuple(links), missing=(), home=ClusterHome(folder / "home"), hostfile=None)


def planner_for(folder: Path, cluster: Cluster, **settings: Any) -> Planner:
    chosen = TrainSettings(steps=10, global_batch=8, **settings)
    request = TrainRequest(data=(str(ROWS),), model=str(TINY), out=folder / "run", settings=chosen, parallel="data")
    prepared = prepare_training_data([ROWS], [], "sft", folder / "data")
    spec = describe_model(TINY)
    run = SimpleNamespace(
        job=request.job(spec, prepared.spec),
        model=SimpleNamespace(folder=TINY),
        data=SimpleNamespace(folder=prepared.folder),
        prepared=prepared,
    )
    return Planner(cluster, cast(Any, run), request, now=datetime.now(UTC))


def test_shares_begin_with_what_earlier_runs_measured(tmp_path: Path) -> None:
    cluster = cluster_at(tmp_path)
    planner = planner_for(tmp_path, cluster)
    first = planner.first()
    assert first.shares() == {"alpha": 0.5, "beta": 0.5}
    planner.learn({"alpha": (3000.0, 100.0), "beta": (1000.0, 100.0)})
    again = planner_for(tmp_path, cluster).first()
    assert again.shares()["alpha"] == pytest.approx(0.75)
    assert {node.source for node in again.nodes} == {"measured"}


def test_a_reproducible_run_is_planned_from_the_machines_alone(tmp_path: Path) -> None:
    cluster = cluster_at(tmp_path)
    planner = planner_for(tmp_path, cluster, reproducible=True)
    planner.first()
    planner.learn({"alpha": (3000.0, 100.0), "beta": (1000.0, 100.0)})
    again = planner_for(tmp_path, cluster, reproducible=True).first()
    assert again.shares() == {"alpha": 0.5, "beta": 0.5}


def late(folder: Path) -> tuple[Planner, common.NodeInfo]:
    """A planner of alpha, and what beta will say of itself."""
    cluster = cluster_at(folder)
    alpha, beta = cluster.nodes
    missing = MissingNode(name=beta.name, reason="it does not answer", address=beta.address)
    planner = planner_for(folder, replace(cluster, nodes=(alpha,), missing=(missing,)))
    return planner, beta.info


def test_a_node_that_was_missing_is_planned_with_once_it_is_there(tmp_path: Path) -> None:
    planner, info = late(tmp_path)
    assert planner.first().world().nodes == ("alpha",)
    info.versions.CopyFrom(local_versions())
    planner.welcome(NodeName("alpha"), info)  # it was never missing
    planner.welcome(NodeName("beta"), info)
    world = planner.again((NodeName("alpha"), NodeName("beta")))
    assert not isinstance(world, str)
    assert (world.parallel, world.nodes) == ("data", ("alpha", "beta"))


def test_the_speed_of_a_late_node_is_learned_as_that_of_the_others(tmp_path: Path) -> None:
    planner, info = late(tmp_path)
    planner.first()
    cluster = cluster_at(tmp_path)
    for node in (info, *(link.info for link in cluster.nodes)):
        node.versions.CopyFrom(local_versions())
    planner.welcome(NodeName("beta"), info)
    planner.learn({"beta": (3000.0, 100.0), "gamma": (9000.0, 100.0)})  # gamma is nowhere: nothing is known of it
    half = {node.name: node.source for node in planner_for(tmp_path, cluster).first().nodes}
    assert half == {"alpha": "prior", "beta": "measured"}
    planner.learn({"alpha": (1000.0, 100.0)})
    again = planner_for(tmp_path, cluster).first()
    assert again.shares()["beta"] == pytest.approx(0.75)
    assert again.nodes[again.world().nodes.index("beta")].tokens_per_second == pytest.approx(3000.0)


def test_only_a_node_that_is_dialled_may_come_back(tmp_path: Path) -> None:
    cluster = cluster_at(tmp_path)
    alpha, beta = cluster.nodes
    away = MissingNode(name=beta.name, reason="it does not answer", address=beta.address)
    assert may_come_back(replace(cluster, nodes=(alpha,), missing=(away,)), ("alpha", "beta"))
    assert not may_come_back(replace(cluster, nodes=(alpha,), missing=(away,)), ("alpha",))
    skewed = replace(away, reason="it has another version", address=None)
    assert not may_come_back(replace(cluster, nodes=(alpha,), missing=(skewed,)), ("alpha", "beta"))
    assert not may_come_back(replace(cluster, nodes=(alpha,)), ("alpha", "beta"))  # not in the hostfile any more


def test_a_late_node_of_other_versions_is_left_out(tmp_path: Path) -> None:
    planner, info = late(tmp_path)
    info.versions.CopyFrom(local_versions())
    info.versions.mlx = "0.1.0"
    planner.welcome(NodeName("beta"), info)
    world = planner.again((NodeName("alpha"), NodeName("beta")))
    assert not isinstance(world, str)
    assert world.nodes == ("alpha",)


def test_fewer_nodes_are_planned_anew(tmp_path: Path) -> None:
    planner = planner_for(tmp_path, cluster_at(tmp_path))
    world = planner.again(cast(Any, ("beta",)))
    assert not isinstance(world, str)
    assert (world.parallel, world.nodes, world.shares) == ("single", ("beta",), (1.0,))
