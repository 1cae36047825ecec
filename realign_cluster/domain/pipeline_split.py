"""Which consecutive blocks each node of a pipeline holds: the slowest stage as fast as memory allows, or the sum that
does not work out.

Pure. What a block weighs and takes is the caller's to know; the order of the nodes is the order of the stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from realign_cluster.domain.memory import gib
from realign_cluster.domain.pipeline_schedule import StepEstimate, expected_step, in_flight

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A block, the embedding, or the norm and head. `bytes` stay (weights, gradients, optimizer); `kept_bytes` are
    activations of one micro-batch, held until its backward pass. `seconds` of forward and backward pass of one
    micro-batch on a node of speed 1.
    """

    bytes: int
    seconds: float
    kept_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNode:
    """`limit_bytes` is what a stage may occupy, whatever else the process needs already taken off."""

    name: str
    limit_bytes: int
    speed: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """`ranges` are half-open block ranges in the order of the nodes."""

    ranges: Ranges
    stage_seconds: tuple[float, ...]
    stage_bytes: tuple[int, ...]
    step: StepEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`text` says what is needed, what is there and what is missing."""

    text: str


def split_layers(
    blocks: Sequence[Part], nodes: Sequence[StageNode], *, embedding: Part, head: Part, micro_batches: int
) -> Split | Refusal:
    """Every node gets at least one block, the first also the embedding, the last the head. Of all splits within the
    limits: the least time of the slowest stage, and among those the least sum over stages.
    """
    if len(blocks) < len(nodes):
        return Refusal(text=f"{len(blocks)} blocks are fewer than {len(nodes)} nodes: some would hold none")
    stages = _Stages(blocks, nodes, embedding, head, micro_batches)
    slowest = _best(stages, math.inf, max)
    if slowest is None:
        return Refusal(text=_missing(stages))
    bound = max(stages.seconds(stage, *held) for stage, held in enumerate(slowest))
    ranges = _best(stages, bound, lambda one, other: one + other)
    assert ranges is not None
    seconds = tuple(stages.seconds(stage, *held) for stage, held in enumerate(ranges))
    return Split(
        ranges=ranges,
        stage_seconds=seconds,
        stage_bytes=tuple(stages.bytes(stage, *held) for stage, held in enumerate(ranges)),
        step=expected_step(seconds, micro_batches),
    )


class _Stages:
    """What a stage with blocks [start, end) takes, by prefix sums."""

    def __init__(
        self, blocks: Sequence[Part], nodes: Sequence[StageNode], embedding: Part, head: Part, micro_batches: int
    ) -> None:
        self.nodes = nodes
        self.count = len(blocks)
        self._extra = {0: [embedding], len(nodes) - 1: [head]} if len(nodes) > 1 else {0: [embedding, head]}
        self._held = [in_flight(stage, stages=len(nodes), micro_batches=micro_batches) for stage in range(len(nodes))]
        self.ends = embedding.bytes + head.bytes
        self.stays = sum(block.bytes for block in blocks) + self.ends
        self._bytes, self._kept, self._seconds = [0], [0], [0.0]
        for block in blocks:
            self._bytes.append(self._bytes[-1] + block.bytes)
            self._kept.append(self._kept[-1] + block.kept_bytes)
            self._seconds.append(self._seconds[-1] + block.seconds)

    def seconds(self, stage: int, start: int, end: int) -> float:
        extra = sum(part.seconds for part in self._extra.get(stage, []))
        return (self._seconds[end] - self._seconds[start] + extra) / self.nodes[stage].speed

    def bytes(self, stage: int, start: int, end: int) -> int:
        extra = self._extra.get(stage, [])
        stays = self._bytes[end] - self._bytes[start] + sum(part.bytes for part in extra)
        kept = self._kept[end] - self._kept[start] + sum(part.kept_bytes for part in extra)
        return stays + kept * self._held[stage]

    def fits(self, stage: int, start: int, end: int) -> bool:
        return self.bytes(stage, start, end) <= self.nodes[stage].limit_bytes


def _best(stages: _Stages, bound: float, join: Callable[[float, float], float]) -> Ranges | None:
    """Dynamic programming over (stages, blocks given out): the least `join` of stage times, none above `bound`."""
    count, last = stages.count, len(stages.nodes)
    least: list[dict[int, float]] = [{0: 0.0}]
    start_of: list[dict[int, int]] = [{}]
    for stage in range(last):
        reached: dict[int, float] = {}
        starts: dict[int, int] = {}
        for start, so_far in least[-1].items():
            for end in range(start + 1, count - (last - stage - 1) + 1):
                seconds = stages.seconds(stage, start, end)
                if seconds > bound or not stages.fits(stage, start, end):
                    break  # more blocks only take more
                value = join(so_far, seconds)
                if value < reached.get(end, math.inf):
                    reached[end], starts[end] = value, start
        least.append(reached)
        start_of.append(starts)
    if count not in least[-1]:
        return None
    ranges: list[tuple[int, int]] = []
    end = count
    for stage in range(last, 0, -1):
        start = start_of[stage][end]
        ranges.append((start, end))
        end = start
    return tuple(reversed(ranges))


def _missing(stages: _Stages) -> str:
    """Why nothing fits: the whole sum, or blocks given out in order, to each node as many as it holds."""
    held = sum(node.limit_bytes for node in stages.nodes)
    if stages.stays > held:
        parts = f"blocks {gib(stages.stays - stages.ends)} + embedding and head {gib(stages.ends)}"
        there = f"{len(stages.nodes)} nodes hold {gib(held)}: {gib(stages.stays - held)} short"
        return f"{parts} = {gib(stages.stays)}; {there}"
    last = len(stages.nodes) - 1
    lines: list[str] = []
    start = 0
    for stage, node in enumerate(stages.nodes):
        most = stages.count - (last - stage)  # the others need a block each
        end = start
        while end < most and stages.fits(stage, start, end + 1):
            end += 1
        taken = f"blocks {start} to {end - 1} take {gib(stages.bytes(stage, start, end))}, " if end > start else ""
        more = f"with block {end} it would be {gib(stages.bytes(stage, start, end + 1))}" if end < most else ""
        lines.append(f"{node.name} holds {gib(node.limit_bytes)}: {taken}{more}".rstrip(", "))
        if end == start:
            break
        start = end
    lines.append(f"{stages.count - start} of {stages.count} blocks find no place")
    return "; ".join(lines)
