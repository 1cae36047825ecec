"""A pipeline as a way to train: what each block weighs and takes, and the uneven split that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from realign_cluster.domain.memory import PROCESS_BYTES, gib
from realign_cluster.domain.pipeline_schedule import expected_step, in_flight
from realign_cluster.domain.pipeline_split import Part, Refusal, StageNode, split_layers
from realign_cluster.domain.plan_facts import NodeFacts
from realign_cluster.domain.train_candidates import Candidate, Facts, Out, joined_nodes, unread_config
from realign_cluster.domain.train_links import Network
from realign_cluster.domain.train_memory import RankPart, TrainNeed, train_need
from realign_cluster.domain.train_phases import LOGIT_COPIES_BACKWARD
from realign_cluster.domain.train_shapes import compute_bytes, trained
from realign_cluster.domain.train_speed import update_seconds


def pipeline(facts: Facts, nodes: Sequence[NodeFacts]) -> Candidate | Out:
    """Consecutive blocks on each node, as many as it holds and as keep the slowest stage short. The better of two
    orders: memory falling or rising along the stages (the first one holds most micro-batches, the last one logits).
    """
    joined = joined_nodes("pipeline", facts, nodes)
    if isinstance(joined, Out):
        return joined
    if facts.model.architecture is None:
        return unread_config("pipeline", nodes)
    falling = sorted(nodes, key=lambda node: -facts.limits[node.name].bytes)
    found = [_Stages(facts, order, joined).candidate() for order in (falling, falling[::-1])]
    fitting = [way for way in found if isinstance(way, Candidate)]
    return min(fitting, key=lambda way: way.step_seconds) if fitting else found[0]


class _Stages:
    """One order of nodes."""

    def __init__(self, facts: Facts, nodes: Sequence[NodeFacts], joined: Network) -> None:
        self._facts = facts
        self._nodes = tuple(nodes)
        self._network = joined
        rows = float(facts.work.settings.global_batch)
        self._batch = facts.work.micro_batch(rows)
        self._count = facts.work.micro_batches(rows)
        self._trained = trained(facts.model, facts.work.settings)

    def candidate(self) -> Candidate | Out:
        facts, work = self._facts, self._facts.work
        blocks = self._trained.blocks
        lowest = self._trained.lowest
        parts = [self._part(0)] * lowest + [self._part(lowest)] * (blocks - lowest)
        nodes = [self._stage_node(node) for node in self._nodes]
        split = split_layers(parts, nodes, embedding=self._embedding(), head=self._head(), micro_batches=self._count)
        if isinstance(split, Refusal):
            return Out(parallel="pipeline", nodes=self._nodes, reason=split.text)
        size = self._batch.tokens * facts.model.architecture.hidden if facts.model.architecture is not None else 0
        size *= compute_bytes(facts.model, work.settings)
        backward_from = next(stage for stage, (_, end) in enumerate(split.ranges) if end > self._trained.lowest)
        seconds = [self._stage_seconds(stage, held) for stage, held in enumerate(split.ranges)]
        step = expected_step(
            seconds,
            self._count,
            backward_from=backward_from,
            transfer_seconds=self._network.send_seconds(size),
        )
        ideal = expected_step(seconds, self._count, backward_from=backward_from)
        return Candidate(
            parallel="pipeline",
            nodes=self._nodes,
            shares=tuple((end - start) / blocks for start, end in split.ranges),
            needs=tuple(self._need(stage, held) for stage, held in enumerate(split.ranges)),
            computes=tuple(each * self._count for each in seconds),
            compute_seconds=ideal.seconds,
            update_seconds=max(
                update_seconds(node, self._trained_in(held))
                for node, held in zip(self._nodes, split.ranges, strict=True)
            ),
            communication_seconds=step.seconds - ideal.seconds,
            communication_bytes=2 * size * self._count * (len(self._nodes) - 1),
            network=self._network,
            blocks=split.ranges,
            note=f"{self._count} micro-batches a step, {ideal.bubble:.0%} of all nodes' time spent waiting; "
            f"{gib(size)} of activations sent per micro-batch and link",
        )

    def _need(self, stage: int, held: tuple[int, int]) -> TrainNeed:
        flying = in_flight(stage, stages=len(self._nodes), micro_batches=self._count)
        return self._need_of(self._nodes[stage], held, in_flight=flying)

    def _need_of(self, node: NodeFacts, held: tuple[int, int], in_flight: int = 1) -> TrainNeed:
        part = RankPart(parallel="pipeline", ranks=len(self._nodes), blocks=held, in_flight=in_flight)
        facts = self._facts
        batch = replace(self._batch, several=self._count > in_flight)
        return train_need(facts.model, facts.work.settings, batch, part, backend=node.device.backend)

    def _trained_in(self, held: tuple[int, int]) -> int:
        blocks = max(0, held[1] - max(held[0], self._trained.lowest))
        return blocks * self._trained.per_block + self._trained.ends // len(self._nodes)

    # --- what a block, the embedding and the head weigh and take; the first node stands for the others' backend ---

    def _part(self, block: int) -> Part:
        need = self._need_of(self._nodes[0], (block, block + 1))
        worth = self._facts.passes
        stays = _stays(need)
        if block == 0:
            stays -= self._embedding().bytes
        if block == self._trained.blocks - 1:
            stays -= _stays(self._need_of(self._nodes[0], (block + 1, block + 1)))
        return Part(
            bytes=stays,
            seconds=self._seconds(
                (1 - self._head_fraction) / worth.blocks,
                worth.trained_block if block >= worth.lowest else worth.frozen_block,
            ),
            kept_bytes=need.held.kept,
        )

    def _embedding(self) -> Part:
        return Part(bytes=_stays(self._need_of(self._nodes[0], (0, 0))), seconds=0.0)

    def _head(self) -> Part:
        end = self._trained.blocks
        need = self._need_of(self._nodes[0], (end, end))
        logits = need.held.stage_logits + round(need.held.logits * LOGIT_COPIES_BACKWARD)
        return Part(bytes=_stays(need) + logits, seconds=self._seconds(self._head_fraction, self._facts.passes.ends))

    @property
    def _working(self) -> int:
        """Activations that blocks use beside those that are kept, and hidden states on their way."""
        last, every = self._trained.blocks, len(self._nodes)
        held = self._need_of(self._nodes[0], (last - 1, last), in_flight=min(every, self._count)).held
        again = held.recomputed if self._facts.work.settings.grad_checkpoint else 0
        return max(held.working, again) + held.handed

    @property
    def _head_fraction(self) -> float:
        """Of a forward pass."""
        shape, active = self._facts.model.architecture, self._facts.model.parameters.active
        return shape.vocabulary * shape.hidden / active if shape is not None and active else 0.0

    def _seconds(self, fraction: float, worth: float) -> float:
        """Of one micro-batch on a node of speed 1."""
        return self._facts.work.step_cost / self._count * fraction * worth

    def _stage_seconds(self, stage: int, held: tuple[int, int]) -> float:
        worth, blocks = self._facts.passes, range(*held)
        passes = sum(worth.trained_block if block >= worth.lowest else worth.frozen_block for block in blocks)
        cost = self._seconds((1 - self._head_fraction) / worth.blocks, passes)
        if stage == len(self._nodes) - 1:
            cost += self._seconds(self._head_fraction, worth.ends)
        return cost / self._facts.speed(self._nodes[stage])

    def _stage_node(self, node: NodeFacts) -> StageNode:
        limit = self._facts.limits[node.name].bytes - PROCESS_BYTES - self._working
        return StageNode(name=node.name, limit_bytes=limit, speed=self._facts.speed(node))


def _stays(need: TrainNeed) -> int:
    """All but activations, logits and the process, as if backward pass and update came together."""
    return need.steady - need.process + need.held.gradients + max(need.held.sums, need.update)
