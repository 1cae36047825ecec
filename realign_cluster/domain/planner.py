"""What will run where, and why: `plan_scoring` turns facts of nodes, model and work into a Plan.

Takes measurements where there are some, priors (`domain.prior`) where there are none, and prints both. One copy of the
model per node, each node its own batches, shares in proportion to speed. No clock, no node, no file: the same facts
give the same plan. A Plan refuses by saying so (`refusal`, `fix`), never by raising.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from realign_cluster.domain.memory import (
    Fit,
    MemoryLimit,
    ModelFacts,
    NodeMemory,
    gib,
    judge_fit,
    memory_limit,
    memory_need,
    ways_to_fit,
    weights_text,
)
from realign_cluster.domain.plan import Approach, LeftOut, NodePlan, Plan, SpeedSource
from realign_cluster.domain.plan_facts import NodeFacts, NodeSpeed, StaleCalibration, WorkFacts
from realign_cluster.domain.plan_reasons import reasons
from realign_cluster.domain.prior import PriorSpeed, choose_machine, prior_speed
from realign_cluster.domain.report import Calibration


def plan_scoring(
    nodes: Sequence[NodeFacts],
    model: ModelFacts,
    work: WorkFacts,
    calibrations: Mapping[str, Calibration] | None = None,
    *,
    stale: Mapping[str, StaleCalibration] | None = None,
    left_out: Sequence[LeftOut] = (),
) -> Plan:
    """`calibrations` and `stale` are by node name, for this model and task; `left_out` are nodes that the caller
    already set aside (unreachable, version skew), with the reason.
    """
    known = dict(calibrations or {})
    fits = {node.name: _fit(node, model, work) for node in nodes}
    able = [node for node in nodes if fits[node.name].fits]
    too_small = [LeftOut(name=node.name, reason=fits[node.name].text) for node in nodes if not fits[node.name].fits]
    out = (*left_out, *too_small)
    if not able:
        return _without_nodes(nodes, model, work, out)
    speeds = node_speeds(able, model, work, known, stale or {})
    total = sum(speed.cost_per_second for speed in speeds.values())
    planned = tuple(
        _node_plan(node, fits[node.name], speeds[node.name], total, work, known.get(node.name)) for node in able
    )
    fastest = max(planned, key=lambda node: node.cost_per_second)
    slowest = min(planned, key=lambda node: node.cost_per_second)
    return Plan(
        approach="separate",
        model=model.name,
        model_hash=model.model_hash,
        dtype=model.dtype,
        parameters=model.parameters.total,
        weights_bytes=model.weights_bytes,
        kinds=work.kinds,
        rows=work.rows,
        cost=work.cost,
        nodes=planned,
        left_out=out,
        cost_per_second=total,
        rows_per_second=work.rows_at(total),
        expected_seconds=work.cost / total,
        fastest_alone=fastest.name,
        fastest_alone_seconds=work.cost / fastest.cost_per_second,
        equal_split_seconds=work.cost / len(planned) / slowest.cost_per_second,
        why=reasons(able, planned, model, work, out),
    )


def node_speeds(
    nodes: Sequence[NodeFacts],
    model: ModelFacts,
    work: WorkFacts,
    calibrations: Mapping[str, Calibration],
    stale: Mapping[str, StaleCalibration],
) -> dict[str, NodeSpeed]:
    """Measured, else stale, else prior; priors are scaled by what measured nodes of the same backend did against
    theirs.
    """
    batch = work.batch_tokens or 2048
    priors = {node.name: prior_speed(node.device, model, batch_tokens=batch, kinds=work.kinds) for node in nodes}
    speeds: dict[str, NodeSpeed] = {}
    for node in nodes:
        prior = priors[node.name]
        source: SpeedSource = "prior"
        found, old = calibrations.get(node.name), stale.get(node.name)
        if found is not None and found.cost_per_second > 0:
            source, speed = "measured", found.cost_per_second
            text = f"measured {found.measured_at} ({found.mode}, spread {found.spread:.1%})"
        elif old is not None and old.calibration.cost_per_second > 0:
            source, speed = "stale", old.calibration.cost_per_second
            text = f"measured {old.calibration.measured_at}, but {old.reason}: a guess until it is measured again"
        else:
            scale, scaled_by = _scale(node, nodes, priors, calibrations)
            speed, text = prior.cost_per_second * scale, f"prior: {prior.source}"
            if scaled_by:
                text += f"; x {scale:.3g}, what {', '.join(scaled_by)} measured against the prior"
        speeds[node.name] = NodeSpeed(cost_per_second=speed, source=source, text=text, prior=prior)
    return speeds


def _scale(
    node: NodeFacts,
    nodes: Sequence[NodeFacts],
    priors: Mapping[str, PriorSpeed],
    calibrations: Mapping[str, Calibration],
) -> tuple[float, list[str]]:
    """Geometric mean of measured over prior on nodes with the same backend: corrects what the prior has wrong for
    all of them.
    """
    alike = [
        other.name
        for other in nodes
        if other.device.backend == node.device.backend
        and other.name in calibrations
        and calibrations[other.name].cost_per_second > 0
    ]
    if not alike:
        return 1.0, []
    logs = [math.log(calibrations[name].cost_per_second / priors[name].cost_per_second) for name in alike]
    return math.exp(sum(logs) / len(logs)), alike


def _fit(node: NodeFacts, model: ModelFacts, work: WorkFacts) -> Fit:
    return judge_fit(model, _limit(node), longest_row_tokens=work.longest_row_tokens, backend=node.device.backend)


def _limit(node: NodeFacts) -> MemoryLimit:
    return memory_limit(
        backend=node.device.backend,
        memory_bytes=node.memory_bytes,
        working_set_bytes=node.working_set_bytes,
        available_bytes=node.available_bytes,
        hostfile_limit_bytes=node.memory_limit_bytes,
    )


def _node_plan(
    node: NodeFacts, fit: Fit, speed: NodeSpeed, total: float, work: WorkFacts, calibration: Calibration | None
) -> NodePlan:
    batch_tokens, batch_source = _batch(fit, speed, work, calibration)
    return NodePlan(
        name=node.name,
        node_id=node.node_id,
        chip=node.device.chip,
        backend=node.device.backend,
        share=speed.cost_per_second / total,
        cost_per_second=speed.cost_per_second,
        rows_per_second=work.rows_at(speed.cost_per_second),
        source=speed.source,
        source_text=speed.text,
        measured_cost_per_second=speed.cost_per_second if speed.source == "measured" else None,
        prior_cost_per_second=speed.prior.cost_per_second,
        prior_text=speed.prior.source,
        batch_tokens=batch_tokens,
        batch_source=batch_source,
        best_batch=dict(calibration.best_batch) if calibration is not None else {},
        memory=fit.text,
        memory_needed_bytes=fit.need.total,
        memory_limit_bytes=fit.limit.bytes,
        thermal=node.thermal,
    )


def _batch(fit: Fit, speed: NodeSpeed, work: WorkFacts, calibration: Calibration | None) -> tuple[int, str]:
    """Tokens per batch and where the number comes from, never more than memory holds."""
    if work.batch_tokens is not None:
        wanted, source = work.batch_tokens, "asked for"
    elif calibration is not None and calibration.batch_tokens is not None:
        wanted, source = calibration.batch_tokens, "measured to be the fastest"
    else:
        rows = speed.prior.best_batch
        wanted = max(rows * work.median_row_tokens, work.longest_row_tokens)
        source = f"prior: {rows} rows of {work.median_row_tokens} tokens, and at least the longest row"
    if wanted > fit.batch_tokens:
        return fit.batch_tokens, f"limited by memory; {source} was {wanted}"
    return wanted, source


def _without_nodes(nodes: Sequence[NodeFacts], model: ModelFacts, work: WorkFacts, out: tuple[LeftOut, ...]) -> Plan:
    """No node holds a copy: either all together could (sharded, which scoring does not do), or not even they."""
    approach: Approach = "refused"
    refusal = "no node can take part"
    fix = "start them with `realign-launch --hostfile FILE up` and look at the reasons of those left out"
    why: tuple[str, ...] = ()
    if nodes:
        limits = [_limit(node) for node in nodes]
        memories = [
            NodeMemory(name=node.name, backend=node.device.backend, memory_bytes=node.memory_bytes, limit=limit)
            for node, limit in zip(nodes, limits, strict=True)
        ]
        needed = memory_need(model, work.longest_row_tokens, backend=nodes[0].device.backend).total
        held = sum(limit.bytes for limit in limits)
        ram = " + ".join(f"{node.memory_bytes / 2**30:.0f}" for node in nodes)
        names = ", ".join(node.name for node in nodes)
        refusal = f"{model.name} needs {gib(needed)} ({weights_text(model)}) and fits on none of {names}"
        if needed <= held:
            approach = "sharded"
            means = sharding_backend(nodes, work.backend)
            refusal += f"; it would have to be sharded over {ram} GiB with {means}, and scoring does not shard"
        else:
            refusal += f": {ram} GiB of memory hold {gib(held)} together, {gib(needed - held)} too little even sharded"
        ways = ways_to_fit(model, memories, longest_row_tokens=work.longest_row_tokens)
        fix = "; or ".join(ways) if ways else "use a smaller model"
        why = (choose_machine(model, needed), *ways)
    return Plan(
        approach=approach,
        model=model.name,
        model_hash=model.model_hash,
        dtype=model.dtype,
        parameters=model.parameters.total,
        weights_bytes=model.weights_bytes,
        kinds=work.kinds,
        rows=work.rows,
        cost=work.cost,
        left_out=out,
        why=why,
        refusal=refusal,
        fix=fix,
    )


def sharding_backend(nodes: Sequence[NodeFacts], backend: str) -> str:
    """What would join the nodes into one model."""
    if backend in ("jaccl", "jaccl-ring"):
        return f"{backend} (RDMA over Thunderbolt 5)"
    if backend == "any" and len(nodes) > 1 and all(node.rdma for node in nodes):
        return "jaccl (RDMA over Thunderbolt 5: the hostfile names its devices)"
    if backend in ("mpi", "nccl"):
        return backend
    return "ring (TCP)"
