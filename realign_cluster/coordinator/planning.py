"""From what nodes, model folder and calibration store say to a plan: the I/O around `domain.planner`.

Reads config.json and the store, converts protocol messages into facts. Decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from realign_cluster.coordinator.cluster import Cluster, NodeLink
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.domain.job import NO_MODEL, ModelSpec
from realign_cluster.domain.memory import ModelFacts, model_facts, no_model
from realign_cluster.domain.plan import LeftOut, Plan
from realign_cluster.domain.plan_facts import NodeFacts, StaleCalibration, WorkFacts
from realign_cluster.domain.planner import plan_scoring
from realign_cluster.domain.prior import DeviceFacts
from realign_cluster.domain.report import Calibration
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.store.calibrations import CalibrationKey, Calibrations, versions_text
from realign_cluster.store.model_files import describe_model, read_config, resolve_model, weights_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSpeeds:
    """By node name: what the store holds for a model and task, split by whether it may be trusted."""

    fresh: Mapping[str, Calibration]
    stale: Mapping[str, StaleCalibration]


def open_calibrations(home: ClusterHome) -> Calibrations:
    return Calibrations(home.folder / "calibrations.sqlite")


def calibration_key(info: common.NodeInfo, model_hash: str, task: str) -> CalibrationKey:
    """Versions that change speed: MLX and mlx-lm, as the node has them."""
    versions = versions_text({"mlx": info.versions.mlx, "mlx-lm": info.versions.mlx_lm})
    return CalibrationKey(node_id=info.node_id, model_hash=model_hash, task=task, versions=versions)


def known_speeds(
    store: Calibrations, nodes: Iterable[tuple[str, common.NodeInfo]], *, model_hash: str, task: str, now: datetime
) -> KnownSpeeds:
    """`now` has a time zone. The calibrations carry the speed as corrected by runs."""
    fresh: dict[str, Calibration] = {}
    stale: dict[str, StaleCalibration] = {}
    for name, info in nodes:
        found = store.find(calibration_key(info, model_hash, task), now=now)
        if found is None:
            continue
        if found.stale:
            stale[name] = StaleCalibration(calibration=found.current, reason=found.stale)
        else:
            fresh[name] = found.current
    return KnownSpeeds(fresh=fresh, stale=stale)


def node_facts(link: NodeLink, cluster: Cluster) -> NodeFacts:
    """What a node's Describe and CheckHealth say, with the hostfile's limit and RDMA devices."""
    device, health = link.info.device, link.health
    host = None
    if cluster.hostfile is not None:
        host = next((host for host in cluster.hostfile.hosts if host.name == link.name), None)
    available = int(health.memory_available_bytes + health.worker_rss_bytes)  # a worker of before makes room
    return NodeFacts(
        name=link.name,
        node_id=link.info.node_id,
        device=device_facts(device, cores=host.cores if host is not None else None),
        memory_bytes=int(device.memory_bytes),
        working_set_bytes=int(device.working_set_bytes),
        available_bytes=available or None,
        memory_limit_bytes=link.address.memory_limit_bytes,
        rdma=host is not None and any(host.rdma),
        thermal=health.thermal_pressure or "unknown",
    )


def device_facts(device: common.Device, *, cores: int | None = None) -> DeviceFacts:
    """`cores` is the hostfile's share of the machine for this node's worker."""
    backend: Literal["metal", "cpu", "cuda"] = "cpu"
    if device.backend == "metal":
        backend = "metal"
    elif device.backend == "cuda":
        backend = "cuda"
    return DeviceFacts(
        chip=device.chip,
        backend=backend,
        gpu_cores=int(device.gpu_cores),
        cpu_cores=min(cores, int(device.cpu_cores)) if cores is not None else int(device.cpu_cores),
        blas=device.blas,
    )


def facts_of_model(spec: ModelSpec, folder: Path | None) -> ModelFacts:
    """Raises UsageError for a folder without a readable config.json."""
    if folder is None or spec.name == NO_MODEL:
        return no_model()
    return model_facts(read_config(folder), weights_bytes(spec.files), name=spec.name, model_hash=spec.hash)


def open_model(model: str) -> tuple[ModelSpec, ModelSource | None]:
    """What `--model` names, by content, and where to send it from; no source for "none". Raises UsageError."""
    if model == NO_MODEL:
        return ModelSpec(name=NO_MODEL, hash=NO_MODEL), None
    spec = describe_model(model)
    return spec, ModelSource(folder=resolve_model(model), spec=spec)


def plan_for(cluster: Cluster, model: ModelFacts, work: WorkFacts, known: KnownSpeeds) -> Plan:
    """The plan over the nodes that answered; the missing ones are left out by name, with the reason."""
    missing: Sequence[LeftOut] = [LeftOut(name=node.name, reason=node.reason) for node in cluster.missing]
    facts = [node_facts(link, cluster) for link in cluster.nodes]
    return plan_scoring(facts, model, work, known.fresh, stale=known.stale, left_out=missing)
