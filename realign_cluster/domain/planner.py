"""What will run where, and why: `plan_scoring` turns facts of nodes, model and work into a Plan.

Takes measurements where there are some, priors (`domain.prior`) where there are none, and prints both. One copy of the
model per node, each node its own batches, shares in proportion to speed; where no node holds a copy, or it is asked
for, one copy over a group of nodes that count as one. No clock, no node, no file: the same facts give the same plan. A
Plan refuses by saying so (`refusal`, `fix`), never by raising.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from realign_cluster.domain.group_plan import Candidate, Found, find_group
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
from realign_cluster.domain.plan import Approach, GroupMember, GroupPlan, LeftOut, NodePlan, Plan, SpeedSource
from realign_cluster.domain.plan_facts import NodeFacts, NodeSpeed, StaleCalibration, WorkFacts
from realign_cluster.domain.plan_reasons import group_reasons, reasons
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
    if work.sharding in ("pipeline", "tensor") and work.whole_model_only:
        return _refused_group((work.whole_model_only,), model, work, left_out)
    if work.sharding in ("pipeline", "tensor"):
        asked = _sharded(nodes, model, work, left_out)
        return asked if isinstance(asked, Plan) else _refused_group(asked, model, work, left_out)
    known = dict(calibrations or {})
    fits = {node.name: _fit(node, model, work) for node in nodes}
    able = [node for node in nodes if fits[node.name].fits]
    too_small = [LeftOut(name=node.name, reason=fits[node.name].text) for node in nodes if not fits[node.name].fits]
    out = (*left_out, *too_small)
    if not able:
        group: Plan | tuple[str, ...] = ("--shard none",)
        if work.whole_model_only:
            group = (work.whole_model_only,)
        elif work.sharding == "auto":
            group = _sharded(nodes, model, work, left_out)
        return group if isinstance(group, Plan) else _without_nodes(nodes, model, work, out, group)
    speeds = node_speeds(able, model, work, known, stale or {})
    total = sum(speed.cost_per_second for speed in speeds.values())
    planned = tuple(
        _node_plan(node, fits[node.name], speeds[node.name], total, work, known.get(node.name)) for node in able
    )
    fastest = max(planned, key=lambda node: node.cost_per_second)
    slowest = min(planned, key=lambda node: node.cost_per_second)
    return _plan(
        "separate",
        model,
        work,
        nodes=planned,
        left_out=out,
        cost_per_second=total,
        fastest_alone=fastest.name,
        fastest_alone_seconds=work.cost / fastest.cost_per_second,
        equal_split_seconds=work.cost / len(planned) / slowest.cost_per_second,
        why=reasons(able, planned, model, work, out),
    )


def _plan(approach: Approach, model: ModelFacts, work: WorkFacts, *, cost_per_second: float = 0.0, **more: Any) -> Plan:
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
        cost_per_second=cost_per_second,
        rows_per_second=work.rows_at(cost_per_second),
        expected_seconds=work.cost / cost_per_second if cost_per_second else None,
        **more,
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
    return judge_fit(
        model,
        node_limit(node),
        longest_row_tokens=work.longest_row_tokens,
        backend=node.device.backend,
        beside_bytes=work.beside_bytes,
    )


def node_limit(node: NodeFacts) -> MemoryLimit:
    """What one model may occupy there."""
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


def _sharded(
    nodes: Sequence[NodeFacts], model: ModelFacts, work: WorkFacts, left_out: Sequence[LeftOut]
) -> Plan | tuple[str, ...]:
    """One group, which is its leader to the rest of the plan; or what is in the way of one."""
    batch = work.batch_tokens or 2048
    priors = {node.name: prior_speed(node.device, model, batch_tokens=batch, kinds=work.kinds) for node in nodes}
    facts = {node.name: node for node in nodes}
    candidates = [
        Candidate(
            name=node.name,
            backend=node.device.backend,
            limit=node_limit(node),
            cost_per_second=priors[node.name].cost_per_second,
        )
        for node in nodes
    ]
    found = find_group(candidates, model, work.sharding, longest_row_tokens=work.longest_row_tokens)
    if not isinstance(found, Found):
        return found
    blocks: Sequence[tuple[int, int] | None] = found.layers or [None] * len(found.nodes)
    group = GroupPlan(
        parallel=found.parallel,
        members=tuple(
            GroupMember(
                name=node.name,
                node_id=facts[node.name].node_id,
                blocks=held,
                memory=fit.text,
                memory_needed_bytes=fit.need.total,
                memory_limit_bytes=fit.limit.bytes,
            )
            for node, held, fit in zip(found.nodes, blocks, found.fits, strict=True)
        ),
        batch_tokens=found.batch_tokens,
    )
    prior = replace(priors[group.leader], cost_per_second=found.cost_per_second, source=found.speed_text)
    speed = NodeSpeed(cost_per_second=prior.cost_per_second, source="prior", text=f"prior: {prior.source}", prior=prior)
    fit = replace(found.fits[-1], batch_tokens=found.batch_tokens)
    node = _node_plan(facts[group.leader], fit, speed, speed.cost_per_second, work, None)
    spared = [node.name for node in nodes if node.name not in [member.name for member in group.members]]
    out = (*left_out, *(LeftOut(name=name, reason="the group holds the model without it") for name in spared))
    means = sharding_backend(work.backend)
    return _plan(
        "sharded",
        model,
        work,
        nodes=(node,),
        group=group,
        left_out=out,
        cost_per_second=node.cost_per_second,
        why=group_reasons(group, model, work, means),
    )


def _refused_group(reasons: Sequence[str], model: ModelFacts, work: WorkFacts, left_out: Sequence[LeftOut]) -> Plan:
    return _plan(
        "refused",
        model,
        work,
        left_out=tuple(left_out),
        refusal=f"{model.name} cannot be sharded as asked: {'; '.join(reasons)}",
        fix="--shard auto shards where it has to and where it can",
    )


def _without_nodes(
    nodes: Sequence[NodeFacts],
    model: ModelFacts,
    work: WorkFacts,
    out: tuple[LeftOut, ...],
    no_group: Sequence[str],
) -> Plan:
    """No node holds a copy, nor do all together, or they may not."""
    refusal = "no node can take part"
    fix = "start them with `realign-launch --hostfile FILE up` and look at the reasons of those left out"
    why: tuple[str, ...] = ()
    if nodes:
        limits = [node_limit(node) for node in nodes]
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
            refusal += f"; {ram} GiB hold {gib(held)} together, but it is not sharded: {'; '.join(no_group)}"
        else:
            refusal += f": {ram} GiB of memory hold {gib(held)} together, {gib(needed - held)} too little even sharded"
        ways = ways_to_fit(model, memories, longest_row_tokens=work.longest_row_tokens)
        if work.sharding == "none":
            ways = ("--shard auto shares it out over several nodes, if they hold it together", *ways)
        fix = "; or ".join(ways) if ways else "use a smaller model"
        why = (choose_machine(model, needed), *ways)
    return _plan("refused", model, work, left_out=out, why=why, refusal=refusal, fix=fix)


def sharding_backend(backend: str) -> str:
    """What joins the nodes into one model: RDMA where the hostfile asks for it, otherwise TCP, over which a group is
    sure to come back after a failure.
    """
    return f"{backend} (RDMA over Thunderbolt 5)" if backend in ("jaccl", "jaccl-ring") else "ring (TCP)"
