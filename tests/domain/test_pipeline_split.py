"""The split of blocks over nodes against every split there is; the step's time against the formula for equal stages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.memory import GIB
from realign_cluster.domain.pipeline_split import Part, Refusal, Split, StageNode, split_layers

NOTHING = Part(bytes=0, seconds=0.0)
parts = st.builds(Part, bytes=st.integers(0, 20), seconds=st.integers(0, 8).map(float), kept_bytes=st.integers(0, 3))
node_lists = st.lists(
    st.builds(
        StageNode, name=st.just("node"), limit_bytes=st.integers(1, 90), speed=st.sampled_from([0.5, 1.0, 2.0, 4.0])
    ),
    min_size=1,
    max_size=4,
)


def every_split(blocks: int, nodes: int) -> list[list[tuple[int, int]]]:
    cuts = itertools.combinations(range(1, blocks), nodes - 1)
    return [list(itertools.pairwise((0, *cut, blocks))) for cut in cuts]


def stage_of(
    blocks: Sequence[Part], held: tuple[int, int], stage: int, nodes: int, ends: tuple[Part, Part], micro_batches: int
) -> tuple[float, int]:
    """(seconds at speed 1, bytes), by adding up."""
    mine = list(blocks[held[0] : held[1]])
    mine += [ends[0]] if stage == 0 else []
    mine += [ends[1]] if stage == nodes - 1 else []
    kept = min(micro_batches, nodes - stage)
    return sum(part.seconds for part in mine), sum(part.bytes + kept * part.kept_bytes for part in mine)


@given(st.lists(parts, min_size=1, max_size=8), node_lists, parts, parts, st.integers(1, 6))
def test_no_other_split_is_faster(
    blocks: list[Part], nodes: list[StageNode], embedding: Part, head: Part, micro_batches: int
) -> None:
    found = split_layers(blocks, nodes, embedding=embedding, head=head, micro_batches=micro_batches)
    best = (math.inf, math.inf)
    for ranges in every_split(len(blocks), len(nodes)):
        stages = [
            stage_of(blocks, held, stage, len(nodes), (embedding, head), micro_batches)
            for stage, held in enumerate(ranges)
        ]
        if all(size <= node.limit_bytes for (_, size), node in zip(stages, nodes, strict=True)):
            seconds = [time / node.speed for (time, _), node in zip(stages, nodes, strict=True)]
            best = min(best, (max(seconds), sum(seconds)))
    if best[0] == math.inf:
        assert isinstance(found, Refusal)
        return
    assert isinstance(found, Split)
    assert (max(found.stage_seconds), sum(found.stage_seconds)) == best
    assert [end - start > 0 for start, end in found.ranges] == [True] * len(nodes)
    assert found.ranges[0][0] == 0
    assert found.ranges[-1][1] == len(blocks)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(found.ranges))
    for stage, held in enumerate(found.ranges):
        size = stage_of(blocks, held, stage, len(nodes), (embedding, head), micro_batches)[1]
        assert found.stage_bytes[stage] == size <= nodes[stage].limit_bytes


def test_a_large_node_takes_what_a_small_one_cannot_hold() -> None:
    """405B in 4 bits, 126 blocks on 128 GB and 512 GB: memory decides, though the smaller node is the faster."""
    blocks = [Part(bytes=round(1.8 * 10**9), seconds=0.1, kept_bytes=10**7)] * 126
    ends = Part(bytes=2 * 10**9, seconds=0.02)
    nodes = [
        StageNode(name="m4max", limit_bytes=96 * 10**9, speed=2.0),
        StageNode(name="m3ultra", limit_bytes=384 * 10**9, speed=1.0),
    ]
    found = split_layers(blocks, nodes, embedding=ends, head=ends, micro_batches=8)
    assert isinstance(found, Split)
    (start, end), (_, last) = found.ranges
    assert (start, end, last) == (0, (96 - 2) * 1000 // (1800 + 20), 126)
    assert found.step.seconds == pytest.approx(8 * found.stage_seconds[1] + found.stage_seconds[0], rel=0.02)


def test_refusals_show_the_sum() -> None:
    blocks = [Part(bytes=10 * GIB, seconds=1.0)] * 8
    small = [StageNode(name="a", limit_bytes=25 * GIB), StageNode(name="b", limit_bytes=40 * GIB)]
    found = split_layers(blocks, small, embedding=Part(bytes=2 * GIB, seconds=0.0), head=NOTHING, micro_batches=4)
    assert found == Refusal(
        text="blocks 80.0 GiB + embedding and head 2.0 GiB = 82.0 GiB; 2 nodes hold 65.0 GiB: 17.0 GiB short"
    )
    coarse = [StageNode(name="a", limit_bytes=45 * GIB), StageNode(name="b", limit_bytes=39 * GIB)]
    found = split_layers(blocks, coarse, embedding=Part(bytes=2 * GIB, seconds=0.0), head=NOTHING, micro_batches=4)
    assert found == Refusal(
        text="a holds 45.0 GiB: blocks 0 to 3 take 42.0 GiB, with block 4 it would be 52.0 GiB; "
        "b holds 39.0 GiB: blocks 4 to 6 take 30.0 GiB, with block 7 it would be 40.0 GiB; 1 of 8 blocks find no place"
    )
    found = split_layers(blocks[:1], coarse, embedding=NOTHING, head=NOTHING, micro_batches=4)
    assert found == Refusal(text="1 blocks are fewer than 2 nodes: some would hold none")
