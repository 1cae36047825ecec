"""How a model will be trained, where, and why: `plan_training` turns facts of nodes, model and work into a TrainPlan.

Weighs every way that is open (`domain.train_candidates`) by the expected time of a step and takes the shortest; a way
with more that can fail has to gain something by it. Takes measurements where there are some, priors where there are
none. No clock, no node, no file: the same facts give the same plan, and a plan for fewer nodes is this function on
fewer nodes. Refuses by saying so (`refusal`, `fix`), never by raising.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from realign_cluster.domain.memory import MemoryLimit, ModelFacts, gib
from realign_cluster.domain.plan import LeftOut
from realign_cluster.domain.plan_facts import NodeFacts, StaleCalibration
from realign_cluster.domain.planner import node_limit
from realign_cluster.domain.report import Calibration
from realign_cluster.domain.train_candidates import Candidate, Facts, Out, alone, replicas, sharded, tensor
from realign_cluster.domain.train_links import AskedBackend
from realign_cluster.domain.train_plan import Alternative, TrainNodePlan, TrainPlan
from realign_cluster.domain.train_reasons import alternative_text, cautions, reasons
from realign_cluster.domain.train_refusal import refuse
from realign_cluster.domain.train_shapes import trained
from realign_cluster.domain.train_speed import forward_speeds
from realign_cluster.domain.train_stages import pipeline
from realign_cluster.domain.train_work import LinkFacts, TrainWork
from realign_cluster.domain.training import ParallelMode

AskedParallel = ParallelMode | Literal["auto"]
Way = Callable[[Facts, Sequence[NodeFacts]], Candidate | Out]

# What a way has to gain in step time over a simpler one: more ranks can fail, and parts of a model need each other.
HANDICAP: Mapping[ParallelMode, float] = {
    "single": 0.0,
    "data": 0.03,
    "pipeline": 0.06,
    "tensor": 0.06,
    "sharded": 0.09,
}
TOGETHER: Mapping[ParallelMode, Way] = {"data": replicas, "tensor": tensor, "pipeline": pipeline, "sharded": sharded}
HEADROOM = 0.05  # of a node's memory, for what the arithmetic leaves out: it is checked to 15 %, mostly errs upwards
IN_PARTS = ("tensor", "pipeline", "sharded")


def plan_training(
    nodes: Sequence[NodeFacts],
    model: ModelFacts,
    work: TrainWork,
    *,
    config: Mapping[str, Any],
    training: Mapping[str, Calibration] | None = None,
    forward: Mapping[str, Calibration] | None = None,
    stale: Mapping[str, StaleCalibration] | None = None,
    links: Sequence[LinkFacts] = (),
    parallel: AskedParallel = "auto",
    backend: AskedBackend = "auto",
    left_out: Sequence[LeftOut] = (),
) -> TrainPlan:
    """`config` is the model's config.json. Calibrations are by node name, all in token equivalents of a forward pass a
    second: `training` of this very task, `forward` of scoring with this model, `stale` of either. `left_out` are nodes
    that the caller already set aside, with the reason.
    """
    facts = Facts(
        model=model,
        config=config,
        work=work,
        speeds=forward_speeds(nodes, model, work, training or {}, forward or {}, stale or {}),
        limits={node.name: _with_headroom(node_limit(node)) for node in nodes},
        links=links,
        backend=backend,
    )
    ways = all_ways(facts, nodes, parallel)
    chosen = _best(ways)
    if chosen is None or facts.quantised_full:

        def explore(changed: Facts, asked: AskedParallel) -> Candidate | None:
            return _best(all_ways(changed, nodes, asked))

        return refuse(facts, nodes, ways, parallel, tuple(left_out), explore)
    return _plan(facts, nodes, chosen, ways, tuple(left_out), asked=parallel)


def _best(ways: Sequence[Candidate | Out]) -> Candidate | None:
    """The way that is taken of these."""
    fitting = [way for way in ways if isinstance(way, Candidate)]
    return min(fitting, key=lambda way: (way.step_seconds * (1 + HANDICAP[way.parallel]), len(way.nodes)), default=None)


def _with_headroom(limit: MemoryLimit) -> MemoryLimit:
    return MemoryLimit(bytes=round(limit.bytes * (1 - HEADROOM)), source=f"{limit.source}, less {HEADROOM:.0%}")


def all_ways(facts: Facts, nodes: Sequence[NodeFacts], parallel: AskedParallel) -> list[Candidate | Out]:
    """Each node alone, and of each other way the best over more and more nodes. A way that was asked for is tried with
    as many nodes as it works with; replicas of one node that is left are that node alone.
    """
    if not nodes:
        return []
    if parallel == "data" and len(nodes) == 1:
        parallel = "single"
    ways: list[Candidate | Out] = []
    if parallel in ("auto", "single"):
        ways += [alone(facts, node) for node in nodes]
    for name, way in TOGETHER.items():
        if parallel in ("auto", name):
            ways.append(_best_group(way, facts, _in_order(name, facts, nodes), most=parallel == name))
    return ways


def _in_order(parallel: ParallelMode, facts: Facts, nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    """Those first that a smaller group would be made of: the fast ones, or where the model is in parts the large."""
    if parallel in IN_PARTS:
        return sorted(nodes, key=lambda node: (-facts.limits[node.name].bytes, -facts.speed(node), node.name))
    return sorted(nodes, key=lambda node: (-facts.speed(node), node.name))


def _best_group(way: Way, facts: Facts, nodes: Sequence[NodeFacts], *, most: bool) -> Candidate | Out:
    """Of the first two, three, ... of `nodes`: the fastest group, with `most` the largest that works."""
    found = [way(facts, nodes[:count]) for count in range(2, len(nodes) + 1)] or [way(facts, nodes)]
    fitting = [group for group in found if isinstance(group, Candidate)]
    if not fitting:
        return found[-1]
    return fitting[-1] if most else min(fitting, key=lambda group: group.step_seconds)


def _plan(
    facts: Facts,
    nodes: Sequence[NodeFacts],
    chosen: Candidate,
    ways: Sequence[Candidate | Out],
    left_out: tuple[LeftOut, ...],
    *,
    asked: AskedParallel,
) -> TrainPlan:
    work, model, settings = facts.work, facts.model, facts.work.settings
    reference = 0.0
    if settings.needs_reference:
        shared = sum(facts.speed(node) for node in chosen.nodes) if chosen.parallel in ("data", "sharded") else 0.0
        whole = chosen.compute_seconds / (work.step_cost * facts.passes.whole)  # seconds of one forward pass's unit
        reference = work.rows * work.row_cost * (1 / shared if shared else whole)
    unused = [node for node in nodes if node not in chosen.nodes]
    return TrainPlan(
        approach=chosen.parallel,
        backend=chosen.network.backend if chosen.network is not None else "ring",
        model=model.name,
        model_hash=model.model_hash,
        dtype=model.dtype,
        parameters=model.parameters.total,
        weights_bytes=model.weights_bytes,
        method=settings.method,
        fine_tune=settings.fine_tune,
        trained_parameters=trained(model, settings).total,
        steps=settings.steps,
        global_batch=settings.global_batch,
        rows=work.rows,
        step_tokens=work.step_tokens,
        nodes=tuple(_node_plan(facts, chosen, rank) for rank in range(len(chosen.nodes))),
        left_out=(*left_out, *(LeftOut(name=node.name, reason=_why_unused(node, chosen, ways)) for node in unused)),
        step_seconds=chosen.step_seconds,
        compute_seconds=chosen.compute_seconds,
        communication_seconds=chosen.communication_seconds,
        communication_text=_communication(chosen),
        update_seconds=chosen.update_seconds,
        reference_seconds=reference,
        expected_seconds=settings.steps * chosen.step_seconds + reference,
        alternatives=tuple(_alternative(way, chosen) for way in ways if way is not chosen),
        why=reasons(facts, chosen, ways, asked),
        cautions=cautions(facts, chosen),
    )


def _node_plan(facts: Facts, chosen: Candidate, rank: int) -> TrainNodePlan:
    node, need = chosen.nodes[rank], chosen.needs[rank]
    speed, limit = facts.speeds[node.name], facts.limits[node.name]
    left = limit.bytes - need.total
    return TrainNodePlan(
        name=node.name,
        node_id=node.node_id,
        chip=node.device.chip,
        device=node.device.backend,
        share=chosen.shares[rank],
        blocks=chosen.blocks[rank] if chosen.blocks else None,
        tokens_per_second=speed.cost_per_second * facts.work.step_tokens / facts.work.step_cost / facts.passes.whole,
        cost_per_second=speed.cost_per_second,
        source=speed.source,
        source_text=speed.text,
        measured_cost_per_second=speed.cost_per_second if speed.source == "measured" else None,
        prior_cost_per_second=speed.prior.cost_per_second,
        prior_text=speed.prior.source,
        compute_seconds=chosen.computes[rank],
        memory=f"{need.text()}; holds {gib(limit.bytes)} ({limit.source}): {gib(left)} left",
        memory_needed_bytes=need.total,
        memory_limit_bytes=limit.bytes,
        thermal=node.thermal,
    )


def _communication(chosen: Candidate) -> str:
    if chosen.network is None:
        return ""
    return f"{chosen.note}; {chosen.network.source}"


def _alternative(way: Candidate | Out, chosen: Candidate) -> Alternative:
    return Alternative(
        parallel=way.parallel,
        nodes=tuple(node.name for node in way.nodes),
        step_seconds=way.step_seconds if isinstance(way, Candidate) else None,
        text=alternative_text(way, chosen),
    )


def _why_unused(node: NodeFacts, chosen: Candidate, ways: Sequence[Candidate | Out]) -> str:
    """What the best way with this node would take, or why there is none."""
    others = [way for way in ways if node in way.nodes]
    fitting = [way for way in others if isinstance(way, Candidate)]
    if fitting:
        best = min(fitting, key=lambda way: way.step_seconds)
        closed = [alternative_text(way, chosen) for way in others if isinstance(way, Out) and way.parallel == "data"]
        return "; ".join([f"not needed: {alternative_text(best, chosen)}", *closed])
    outs = [way.reason for way in others if isinstance(way, Out)]
    return outs[0] if outs else "not needed"
