"""The ways to train a model on some nodes: what each would take, or why it is out.

One function per way. Each answers with numbers for one step, or with a reason that holds the arithmetic; which way is
taken is `domain.train_planner`'s to decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from realign_cluster.domain.divisibility import check_divisible
from realign_cluster.domain.memory import MemoryLimit, ModelFacts, gib
from realign_cluster.domain.plan_facts import NodeFacts, NodeSpeed
from realign_cluster.domain.shares import assign
from realign_cluster.domain.train_links import AskedBackend, Network, NoNetwork, network
from realign_cluster.domain.train_memory import RankPart, TrainNeed, train_need
from realign_cluster.domain.train_shapes import FLOAT32_BYTES, compute_bytes, trained, weight_bits
from realign_cluster.domain.train_speed import Passes, passes, update_seconds
from realign_cluster.domain.train_work import LinkFacts, TrainWork
from realign_cluster.domain.training import ParallelMode

SUMS_PER_BLOCK = 4  # tensor: after attention and after the MLP, forward and backward


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What all ways are judged by. `speeds` and `limits` by node name; `config` is the model's config.json."""

    model: ModelFacts
    config: Mapping[str, Any]
    work: TrainWork
    speeds: Mapping[str, NodeSpeed]
    limits: Mapping[str, MemoryLimit]
    links: Sequence[LinkFacts] = ()
    backend: AskedBackend = "auto"

    @property
    def passes(self) -> Passes:
        return passes(self.model, self.work.settings)

    @property
    def trained_parameters(self) -> int:
        return trained(self.model, self.work.settings).total

    @property
    def quantised_full(self) -> bool:
        """Quantised weights have no gradients."""
        return self.work.settings.fine_tune == "full" and self.model.dtype.endswith("-bit")

    def speed(self, node: NodeFacts) -> float:
        """Token equivalents of a forward pass per second."""
        return self.speeds[node.name].cost_per_second

    def need(self, node: NodeFacts, rows: float, part: RankPart) -> TrainNeed:
        batch = self.work.micro_batch(rows)
        return train_need(self.model, self.work.settings, batch, part, backend=node.device.backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way that fits. Per node in rank order: `shares`, `blocks` (pipeline), `needs`, `computes` (seconds of a step).
    `compute_seconds` is until the last one is through, waiting for each other in a pipeline included.
    """

    parallel: ParallelMode
    nodes: tuple[NodeFacts, ...]
    shares: tuple[float, ...]
    needs: tuple[TrainNeed, ...]
    computes: tuple[float, ...]
    compute_seconds: float
    update_seconds: float
    communication_seconds: float = 0.0
    communication_bytes: float = 0.0
    network: Network | None = None
    blocks: tuple[tuple[int, int], ...] = ()
    note: str = ""

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds + self.update_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """A way that is not open, and what would open it where that is known."""

    parallel: ParallelMode
    nodes: tuple[NodeFacts, ...]
    reason: str
    fix: str = ""


def alone(facts: Facts, node: NodeFacts) -> Candidate | Out:
    """The whole model and all rows on one node."""
    rows = float(facts.work.settings.global_batch)
    need = facts.need(node, rows, RankPart())
    if short := _short(facts, node, need):
        return Out(parallel="single", nodes=(node,), reason=short)
    seconds = facts.work.step_cost * facts.passes.whole / facts.speed(node)
    return Candidate(
        parallel="single",
        nodes=(node,),
        shares=(1.0,),
        needs=(need,),
        computes=(seconds,),
        compute_seconds=seconds,
        update_seconds=update_seconds(node, facts.trained_parameters),
    )


def replicas(facts: Facts, nodes: Sequence[NodeFacts]) -> Candidate | Out:
    """A copy on each node; rows in proportion to speed, gradients summed over the network."""
    joined = joined_nodes("data", facts, nodes)
    if isinstance(joined, Out):
        return joined
    shares = _by_speed(facts, nodes)
    rows = _rows(facts, shares)
    if none := _without_rows("data", facts, nodes, rows):
        return none
    needs = [facts.need(node, count, RankPart(parallel="data")) for node, count in zip(nodes, rows, strict=True)]
    for node, need in zip(nodes, needs, strict=True):
        if (missing := need.total - facts.limits[node.name].bytes) > 0:
            reason = f"a copy needs {gib(need.total)}, {node.name} is {gib(missing)} short of that"
            return Out(parallel="data", nodes=tuple(nodes), reason=reason)
    cost = facts.work.row_cost * facts.passes.whole
    computes = tuple(count * cost / facts.speed(node) for node, count in zip(nodes, rows, strict=True))
    size = facts.trained_parameters * FLOAT32_BYTES
    return Candidate(
        parallel="data",
        nodes=tuple(nodes),
        shares=shares,
        needs=tuple(needs),
        computes=computes,
        compute_seconds=max(computes),
        update_seconds=max(update_seconds(node, facts.trained_parameters) for node in nodes),
        communication_seconds=joined.sum_seconds(size),
        communication_bytes=size,
        network=joined,
        note=f"{gib(size)} of gradients are summed after each step",
    )


def tensor(facts: Facts, nodes: Sequence[NodeFacts]) -> Candidate | Out:
    """Every layer cut into equal parts: all nodes wait for the slowest, and exchange activations in every block."""
    joined = joined_nodes("tensor", facts, nodes)
    if isinstance(joined, Out):
        return joined
    count, work = len(nodes), facts.work
    if in_the_way := check_divisible(facts.config, count):
        return Out(parallel="tensor", nodes=tuple(nodes), reason="; ".join(in_the_way))
    rows = float(work.settings.global_batch)
    part = RankPart(parallel="tensor", ranks=count)
    needs = [facts.need(node, rows, part) for node in nodes]
    if short := _first_short("tensor", facts, nodes, needs):
        return short
    each = work.step_cost * facts.passes.whole / count
    computes = tuple(each / facts.speed(node) for node in nodes)
    assert facts.model.architecture is not None  # check_divisible knows its type
    worth = facts.passes
    again = 2 if work.settings.grad_checkpoint else 0
    sums = worth.lowest * 2 + (worth.blocks - worth.lowest) * (SUMS_PER_BLOCK + again)
    micro_batches = work.micro_batches(rows)
    size = work.step_tokens / micro_batches * facts.model.architecture.hidden
    size *= compute_bytes(facts.model, work.settings)
    return Candidate(
        parallel="tensor",
        nodes=tuple(nodes),
        shares=(1 / count,) * count,
        needs=tuple(needs),
        computes=computes,
        compute_seconds=max(computes),
        update_seconds=max(update_seconds(node, facts.trained_parameters // count) for node in nodes),
        communication_seconds=joined.sum_seconds(size, times=sums * micro_batches),
        communication_bytes=size * sums * micro_batches,
        network=joined,
        note=f"{sums * micro_batches} sums of {gib(size)} of activations in each step, and all wait for the slowest",
    )


def sharded(facts: Facts, nodes: Sequence[NodeFacts]) -> Candidate | Out:
    """Each node holds an equal part of every weight and gathers the rest block by block, forward and backward."""
    joined = joined_nodes("sharded", facts, nodes)
    if isinstance(joined, Out):
        return joined
    if facts.model.architecture is None:
        return unread_config("sharded", nodes)
    work, count = facts.work, len(nodes)
    shares = _by_speed(facts, nodes)
    rows = _rows(facts, shares)
    if none := _without_rows("sharded", facts, nodes, rows):
        return none
    part = RankPart(parallel="sharded", ranks=count)
    needs = [facts.need(node, number, part) for node, number in zip(nodes, rows, strict=True)]
    if short := _first_short("sharded", facts, nodes, needs):
        return short
    again = 0.0 if work.settings.grad_checkpoint else 1.0  # blocks are always computed again
    cost = work.row_cost * (facts.passes.whole + again)
    computes = tuple(number * cost / facts.speed(node) for node, number in zip(nodes, rows, strict=True))
    turns = max(work.micro_batches(number) for number in rows)
    weights = facts.model.parameters.total * weight_bits(facts.model, work.settings) / 8
    gradients = facts.trained_parameters * FLOAT32_BYTES
    gathers = joined.gather_seconds(weights / facts.passes.blocks, times=2 * facts.passes.blocks)
    return Candidate(
        parallel="sharded",
        nodes=tuple(nodes),
        shares=shares,
        needs=tuple(needs),
        computes=computes,
        compute_seconds=max(computes),
        update_seconds=max(update_seconds(node, facts.trained_parameters // count) for node in nodes),
        communication_seconds=turns * (gathers + joined.sum_seconds(gradients)),
        communication_bytes=turns * (2 * weights + gradients),
        network=joined,
        note=f"all weights ({gib(weights)}) are gathered twice for each of {turns} micro-batches",
    )


def joined_nodes(parallel: ParallelMode, facts: Facts, nodes: Sequence[NodeFacts]) -> Network | Out:
    if len(nodes) < 2:
        return Out(parallel=parallel, nodes=tuple(nodes), reason="it takes two nodes", fix="--parallel single")
    found = network(nodes, facts.links, facts.backend)
    if isinstance(found, NoNetwork):
        return Out(parallel=parallel, nodes=tuple(nodes), reason=found.reason, fix=found.fix)
    return found


def _by_speed(facts: Facts, nodes: Sequence[NodeFacts]) -> tuple[float, ...]:
    total = sum(facts.speed(node) for node in nodes)
    return tuple(facts.speed(node) / total for node in nodes)


def _rows(facts: Facts, shares: tuple[float, ...]) -> list[int]:
    """Rows of a step for each rank, as the run will share them out, were they of one length."""
    return [len(own) for own in assign([1.0] * facts.work.settings.global_batch, shares)]


def _without_rows(parallel: ParallelMode, facts: Facts, nodes: Sequence[NodeFacts], rows: Sequence[int]) -> Out | None:
    idle = [node.name for node, count in zip(nodes, rows, strict=True) if count == 0]
    if not idle:
        return None
    batch = facts.work.settings.global_batch
    if batch < len(nodes):
        reason = f"a global batch of {batch} rows is smaller than {len(nodes)} ranks"
    else:
        reason = f"of {batch} rows a step none would be left for {', '.join(idle)}, in proportion to speed"
    return Out(parallel=parallel, nodes=tuple(nodes), reason=reason, fix=f"--global-batch {max(8, 4 * len(nodes))}")


def _first_short(
    parallel: ParallelMode, facts: Facts, nodes: Sequence[NodeFacts], needs: Sequence[TrainNeed]
) -> Out | None:
    for node, need in zip(nodes, needs, strict=True):
        if short := _short(facts, node, need):
            return Out(parallel=parallel, nodes=tuple(nodes), reason=short)
    return None


def _short(facts: Facts, node: NodeFacts, need: TrainNeed) -> str:
    """The arithmetic if it does not fit, nothing if it does."""
    limit = facts.limits[node.name]
    if need.total <= limit.bytes:
        return ""
    return (
        f"{node.name}: {need.text()}; holds {gib(limit.bytes)} ({limit.source}): {gib(need.total - limit.bytes)} short"
    )


def unread_config(parallel: ParallelMode, nodes: Sequence[NodeFacts]) -> Out:
    return Out(parallel=parallel, nodes=tuple(nodes), reason="its config.json does not say what its blocks are made of")
