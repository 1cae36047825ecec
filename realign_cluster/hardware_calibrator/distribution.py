"""Who would do how much of a task, how fast, and why: on nodes as they answer, or on machines that are described."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from realign_cluster.coordinator.cluster_plan import plan_on_cluster
from realign_cluster.coordinator.estimate import estimate
from realign_cluster.coordinator.planning import facts_of_model, open_model
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Chat, Fields
from realign_cluster.domain.memory import GIB
from realign_cluster.domain.plan import NodePlan, Plan
from realign_cluster.domain.plan_facts import NodeFacts
from realign_cluster.domain.planner import plan_scoring
from realign_cluster.domain.prior import DeviceFacts
from realign_cluster.hardware_calibrator.figures import Figure, task_request


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
    request = task_request(model, data, score, fields, chat=chat, max_tokens=max_tokens)
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
