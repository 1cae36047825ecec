"""How fast machines are for a model and a task, and who should do how much of it: measured where it can be.

`calibrate` measures the nodes of a cluster, or this machine; `workload_distribution` plans on what was measured, and on
priors where nothing was. Every figure says which of the two it is, and why. docs/hardware_calibrator.md shows both at
work. Nothing here imports MLX.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from realign_cluster.coordinator.calibrate import Measured, calibrate_cluster, judge_reports, samples_for
from realign_cluster.coordinator.cluster_plan import plan_on_cluster
from realign_cluster.coordinator.estimate import estimate
from realign_cluster.coordinator.planning import device_facts, facts_of_model, open_model
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.samples import make_canaries
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Chat, Fields
from realign_cluster.domain.memory import GIB, ModelFacts
from realign_cluster.domain.plan import NodePlan, Plan
from realign_cluster.domain.plan_facts import NodeFacts
from realign_cluster.domain.planner import plan_scoring
from realign_cluster.domain.prior import DeviceFacts, prior_speed
from realign_cluster.domain.report import Calibration
from realign_cluster.node.local_scoring import score_here
from realign_cluster.node.probe import full_device
from realign_cluster.store.calibrations import StoredLink, task_of

THIS_MACHINE: Final = "this machine"
Source = Literal["measured", "stale", "prior"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with its unit, whether it was measured or is a prior, and on what grounds."""

    value: float
    unit: str
    source: Source
    why: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One that is not there (yet): what to plan for. `gpu_cores` 0: the chip's larger variant."""

    name: str
    chip: str
    memory_gib: float
    gpu_cores: int = 0
    backend: Literal["metal", "cpu", "cuda"] = "metal"
    cpu_cores: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """What one node gets. `share` is a fraction of the cost, from 0 to 1."""

    name: str
    chip: str
    share: float
    cost_per_second: Figure
    prior: Figure
    rows_per_second: float
    batch_tokens: int
    batch_why: str
    memory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadDistribution:
    """`why`: the grounds of the whole plan, what is contradictory in the priors among them. `refusal` and `fix` are
    empty unless it would not run. Everything else is in `plan`.
    """

    nodes: tuple[NodeShare, ...]
    rows: int
    expected_seconds: float | None
    equal_split_seconds: float | None
    fastest_alone_seconds: float | None
    why: tuple[str, ...]
    left_out: Mapping[str, str]
    refusal: str
    fix: str
    plan: Plan

    def shares(self) -> dict[str, float]:
        return {node.name: node.share for node in self.nodes}


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
    request = _request(model, data, score, fields, chat=chat, max_tokens=max_tokens)
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


def workload_distribution(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    score: Sequence[str] = ("loglik",),
    fields: Fields | None = None,
    chat: Chat = "auto",
    max_tokens: int = 2048,
    hostfile: str | Path | None = None,
    discover: bool = False,
    min_nodes: int | None = None,
    machines: Sequence[Machine] = (),
) -> WorkloadDistribution:
    """Who would score how much of `data`, how fast, and why, as `realign plan` says it: on the nodes of a cluster, by
    what was measured of them; or on `machines` that are only described, by priors.

    Does not raise for work that fits nowhere: `refusal` has the arithmetic. Raises UsageError, NodesMissing.
    """
    request = _request(model, data, score, fields, chat=chat, max_tokens=max_tokens)
    if machines:
        if hostfile is not None or discover:
            raise UsageError("machines and a cluster are two plans", "ask for one after the other")
        plan = _plan_for_machines(request, machines)
    else:
        plan, _ = asyncio.run(
            plan_on_cluster(
                request,
                Path(hostfile) if hostfile is not None else None,
                discover=discover,
                min_nodes=min_nodes,
                allow_skew=frozenset(),
            )
        )
    return WorkloadDistribution(
        nodes=tuple(_node_share(node) for node in plan.nodes),
        rows=plan.rows,
        expected_seconds=plan.expected_seconds,
        equal_split_seconds=plan.equal_split_seconds,
        fastest_alone_seconds=plan.fastest_alone_seconds,
        why=plan.why,
        left_out={each.name: each.reason for each in plan.left_out},
        refusal=plan.refusal,
        fix=plan.fix,
        plan=plan,
    )


def _request(
    model: str | Path,
    data: Sequence[str | Path],
    score: Sequence[str],
    fields: Fields | None,
    *,
    chat: Chat,
    max_tokens: int,
) -> CurateRequest:
    return CurateRequest(
        inputs=tuple(map(str, data)),
        out=Path("-"),
        model=str(model),
        kinds=tuple(score),
        fields=fields or Fields(),
        chat=chat,
        max_tokens=max_tokens,
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


def _plan_for_machines(request: CurateRequest, machines: Sequence[Machine]) -> Plan:
    spec, source = open_model(request.model)
    folder = source.folder if source is not None else None
    nodes = [
        NodeFacts(
            name=machine.name,
            device=DeviceFacts(
                chip=machine.chip, backend=machine.backend, gpu_cores=machine.gpu_cores, cpu_cores=machine.cpu_cores
            ),
            memory_bytes=round(machine.memory_gib * GIB),
        )
        for machine in machines
    ]
    return plan_scoring(nodes, facts_of_model(spec, folder), estimate(request, folder).work(request))


def _node_share(node: NodePlan) -> NodeShare:
    return NodeShare(
        name=node.name,
        chip=node.chip,
        share=node.share,
        cost_per_second=Figure(value=node.cost_per_second, unit="tokens/s", source=node.source, why=node.source_text),
        prior=Figure(value=node.prior_cost_per_second, unit="tokens/s", source="prior", why=node.prior_text),
        rows_per_second=node.rows_per_second,
        batch_tokens=node.batch_tokens,
        batch_why=node.batch_source,
        memory=node.memory,
    )
