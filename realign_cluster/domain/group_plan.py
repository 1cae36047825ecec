"""Which nodes hold a scoring model together, and how it is cut between them: the arithmetic, or why it cannot be.

A pipeline has consecutive blocks on each node, as many as it has memory for and as keep its slowest stage short;
batches follow one another through it, so its speed is that of the slowest stage. Tensor parallelism cuts every block
evenly. Pure: limits and speeds are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from realign_cluster.domain.divisibility import check_divisible
from realign_cluster.domain.group import Sharding, share_of
from realign_cluster.domain.memory import Fit, MemoryLimit, ModelFacts, Share, judge_fit, memory_need
from realign_cluster.domain.pipeline_split import Part, Ranges, Refusal, StageNode, split_layers
from realign_cluster.domain.world import WorldPlan

NOTHING = Share(weights=0.0, cache=0.0, head=False)  # what is needed all the same: the process, activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that could take part. `cost_per_second` is its speed with the whole model, were it there."""

    name: str
    backend: str
    limit: MemoryLimit
    cost_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A group, in rank order. `fits` are of each rank's share; `speed_text` says where the speed comes from."""

    parallel: Literal["pipeline", "tensor"]
    nodes: tuple[Candidate, ...]
    layers: Ranges
    fits: tuple[Fit, ...]
    cost_per_second: float
    speed_text: str

    @property
    def batch_tokens(self) -> int:
        """The largest batch that fits on every rank."""
        return min(fit.batch_tokens for fit in self.fits)


def find_group(
    candidates: Sequence[Candidate], model: ModelFacts, sharding: Sharding, *, longest_row_tokens: int
) -> Found | tuple[str, ...]:
    """As asked over all candidates; "auto" takes the fewest and largest nodes that hold the model. Without a group,
    what is in the way.
    """
    if len(candidates) < 2:
        return (f"a group has at least 2 nodes, here is {len(candidates)}",)
    if model.architecture is None:
        return (f"the config of {model.name} does not say how large its blocks are",)
    reasons: list[str] = []
    for nodes in _choices(candidates, sharding):
        for parallel, cut in (("pipeline", _pipeline), ("tensor", _tensor)):
            if sharding in ("auto", parallel):
                found = cut(nodes, model, longest_row_tokens)
                if isinstance(found, Found):
                    return found
                reasons.append(f"{parallel} over {', '.join(node.name for node in nodes)}: {found}")
    return tuple(reasons)


def _choices(candidates: Sequence[Candidate], sharding: Sharding) -> Iterator[list[Candidate]]:
    if sharding != "auto":
        yield list(candidates)
        return
    by_size = sorted(candidates, key=lambda node: -node.limit.bytes)
    for count in range(2, len(candidates) + 1):
        yield [node for node in candidates if node in by_size[:count]]


def _pipeline(nodes: Sequence[Candidate], model: ModelFacts, longest: int) -> Found | str:
    shape = model.architecture
    assert shape is not None
    matrix = shape.vocabulary * shape.hidden
    end = matrix / model.parameters.total
    block = max(0.0, 1 - end * (1 if shape.tied else 2)) / shape.layers
    head_seconds = matrix * shape.layers / (model.parameters.active - matrix)  # where a block's are 1

    def need(node: Candidate, share: Share) -> int:
        return memory_need(model, longest, backend=node.backend, share=share).total

    def part(share: Share, seconds: float) -> Part:
        return Part(bytes=need(nodes[0], share) - need(nodes[0], NOTHING), seconds=seconds)

    split = split_layers(
        [part(Share(weights=block, cache=1 / shape.layers, head=False), 1.0)] * shape.layers,
        [
            StageNode(name=node.name, limit_bytes=node.limit.bytes - need(node, NOTHING), speed=node.cost_per_second)
            for node in nodes
        ],
        embedding=part(Share(weights=end, cache=0.0, head=False), 0.0),
        head=part(Share(weights=end, cache=0.0, head=True), head_seconds),
        micro_batches=1,
    )
    if isinstance(split, Refusal):
        return split.text
    seconds, slowest = max(zip(split.stage_seconds, nodes, strict=True), key=lambda pair: pair[0])
    speed = (shape.layers + head_seconds) / seconds
    text = f"as fast as its slowest stage, {slowest.name}'s, with the next batch on its way; links are not counted"
    return _found("pipeline", nodes, model, longest, split.ranges, speed, text)


def _tensor(nodes: Sequence[Candidate], model: ModelFacts, longest: int) -> Found | str:
    if faults := check_divisible(model.config, len(nodes)):
        return "; ".join(faults)
    slowest = min(nodes, key=lambda node: node.cost_per_second)
    text = (
        f"{len(nodes)} times its slowest node, {slowest.name}; the sums over all nodes in every block are not counted"
    )
    return _found("tensor", nodes, model, longest, (), slowest.cost_per_second * len(nodes), text)


def _found(
    parallel: Literal["pipeline", "tensor"],
    nodes: Sequence[Candidate],
    model: ModelFacts,
    longest: int,
    layers: Ranges,
    cost_per_second: float,
    speed_text: str,
) -> Found | str:
    world = shape_of(parallel, [node.name for node in nodes], layers)
    fits = tuple(
        judge_fit(
            model, node.limit, longest_row_tokens=longest, backend=node.backend, share=share_of(model, world, rank)
        )
        for rank, node in enumerate(nodes)
    )
    short = [f"{node.name}: {fit.text}" for node, fit in zip(nodes, fits, strict=True) if not fit.fits]
    if short:
        return "; ".join(short)
    return Found(
        parallel=parallel,
        nodes=tuple(nodes),
        layers=layers,
        fits=fits,
        cost_per_second=cost_per_second,
        speed_text=speed_text,
    )


def shape_of(parallel: Literal["pipeline", "tensor"], names: Sequence[str], layers: Ranges) -> WorldPlan:
    """The world of a group as far as memory is concerned; how its ranks are joined is the coordinator's to add."""
    return WorldPlan(parallel=parallel, nodes=tuple(names), shares=(1 / len(names),) * len(names), layers=layers)
