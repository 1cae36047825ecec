"""Measures the nodes of a cluster, or this machine, for a model and a task."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from realign_cluster.coordinator.calibrate import Measured, calibrate_cluster, judge_reports, samples_for
from realign_cluster.coordinator.planning import device_facts, facts_of_model, open_model
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.samples import make_canaries
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Chat, Fields
from realign_cluster.domain.memory import ModelFacts
from realign_cluster.domain.prior import DeviceFacts, prior_speed
from realign_cluster.domain.report import Calibration
from realign_cluster.hardware_calibrator.figures import Figure, task_request
from realign_cluster.node.local_scoring import score_here
from realign_cluster.node.probe import full_device
from realign_cluster.store.calibrations import StoredLink, task_of

THIS_MACHINE: Final = "this machine"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCalibration:
    """One node. Speeds are in token equivalents (the cost of a row) and rows a second. `prior`: what was believed
    before. GFLOPS by dtype and memory bandwidth are measured in full mode only, and are None or empty otherwise.
    """

    name: str
    chip: str
    cost_per_second: Figure
    rows_per_second: Figure
    prior: Figure
    matrix_gflops: Mapping[str, float]
    memory_gigabytes_per_second: float | None
    best_batch: Mapping[int, int]  # length in tokens -> rows
    batch_tokens: int | None
    headroom_bytes: int | None
    spread: float  # (max - min) / median over the repeats

    @property
    def ratio_to_prior(self) -> float:
        return self.cost_per_second.value / self.prior.value


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareCalibration:
    """`refused`: nodes that compute wrongly, with the reason. `kept`: whether plans and runs use it from now on."""

    model: str
    model_hash: str
    task: str
    mode: Literal["quick", "full"]
    nodes: tuple[NodeCalibration, ...]
    refused: Mapping[str, str]
    links: tuple[StoredLink, ...]
    warnings: tuple[str, ...]
    kept: bool

    def shares(self) -> dict[str, float]:
        """Of the work, by measured speed."""
        total = sum(node.cost_per_second.value for node in self.nodes)
        return {node.name: node.cost_per_second.value / total for node in self.nodes} if total else {}


def calibrate(
    model: str | Path,
    data: Sequence[str | Path] = (),
    *,
    score: Sequence[str] = ("loglik",),
    fields: Fields | None = None,
    chat: Chat = "auto",
    max_tokens: int = 2048,
    mode: Literal["quick", "full"] = "quick",
    hostfile: str | Path | None = None,
    discover: bool = False,
    min_nodes: int | None = None,
) -> HardwareCalibration:
    """Measures every node of `hostfile` (or of those that discovery finds) and keeps it for plans and runs, as `realign
    calibrate` does; with neither, this machine, and keeps nothing.

    On made rows as long as those of `data`, or of many lengths. "full" adds matrix products, memory bandwidth, the
    batch table and the links, and takes minutes. Raises UsageError, NodesMissing.
    """
    request = task_request(model, data, score, fields, chat=chat, max_tokens=max_tokens)
    if hostfile is None and not discover:
        measured = asyncio.run(_measure_here(request, mode))
    else:
        measured = asyncio.run(
            calibrate_cluster(
                request,
                Path(hostfile) if hostfile is not None else None,
                discover=discover,
                min_nodes=min_nodes,
                allow_skew=frozenset(),
                mode=mode,
                progress=lambda node, what, fraction: None,
            )
        )
    spec, source = open_model(request.model)
    facts = facts_of_model(spec, source.folder if source is not None else None)
    return HardwareCalibration(
        model=measured.model.name,
        model_hash=measured.model.hash,
        task=measured.task,
        mode=mode,
        nodes=tuple(
            _node_calibration(name, measured.devices[name], found, facts, request.kinds)
            for name, found in measured.calibrations.items()
        ),
        refused=measured.refused,
        links=measured.links,
        warnings=measured.warnings + measured.link_errors,
        kept=hostfile is not None or discover,
    )


async def _measure_here(request: CurateRequest, mode: Literal["quick", "full"]) -> Measured:
    spec, source = open_model(request.model)
    if source is None:
        raise UsageError("this machine is measured with a model", "name a model folder or hub id")
    job = request.job(spec, canaries=make_canaries(request.kinds, request.fields))
    with tempfile.TemporaryDirectory() as folder:
        device = device_facts(await full_device(Path(folder) / "device.json"))
    cores = os.cpu_count() or 1
    samples = samples_for(request, source)
    report = (await score_here(job, source.folder, [], cores=cores, measure=mode, samples=samples)).report
    trusted, refused = judge_reports({THIS_MACHINE: report}, canaries=len(job.canaries))
    return Measured(
        task=task_of(job),
        model=spec,
        calibrations={name: each.calibration for name, each in trusted.items() if each.calibration is not None},
        reports={THIS_MACHINE: report},
        refused=refused,
        devices={THIS_MACHINE: device},
        links=(),
        link_errors=(),
        warnings=(),
    )


def _node_calibration(
    name: str, device: DeviceFacts, found: Calibration, model: ModelFacts, kinds: Sequence[str]
) -> NodeCalibration:
    prior = prior_speed(device, model, kinds=kinds)
    why = f"measured {found.measured_at} ({found.mode}, {found.seconds:.1f} s, spread {found.spread:.1%})"
    return NodeCalibration(
        name=name,
        chip=device.chip,
        cost_per_second=Figure(value=found.cost_per_second, unit="tokens/s", source="measured", why=why),
        rows_per_second=Figure(value=found.rows_per_second, unit="rows/s", source="measured", why=why),
        prior=Figure(value=prior.cost_per_second, unit="tokens/s", source="prior", why=prior.source),
        matrix_gflops=dict(found.matmul_gflops),
        memory_gigabytes_per_second=found.memory_gigabytes_per_second,
        best_batch={int(length): batch for length, batch in found.best_batch.items()},
        batch_tokens=found.batch_tokens,
        headroom_bytes=found.headroom_bytes,
        spread=found.spread,
    )
