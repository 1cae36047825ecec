"""From the rows that a rank computes in a step to what goes through its model at once.

Rows are sorted by length and cut where least is padded; packed, several share one line. What comes
out is a function of the set of rows, the job and the step: line lengths are multiples of `pad_to`, so shapes are few.
Must not know ranks, shares or methods beyond whether rows are pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from realign_cluster.domain.integer_hash import hash_integers, hash_words
from realign_cluster.domain.training import TrainJob
from realign_cluster.training.examples import Examples
from realign_cluster.training.parallel.base import MicroBatch

PADDING = 0  # a token that every model has; nothing attends to it and nothing is learned of it
OVERHEAD_TOKENS = 128  # what one more micro-batch costs: weights read again, its graph, gradients added up

Keys = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBatch:
    """`rows[i]` is the row of sequence i or, of a preference method, of the pair of sequences 2i and 2i + 1."""

    rows: tuple[int, ...]
    batch: MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """Rows that stay together. Each of `lines` is the sequences that lie one after the other in one line."""

    rows: tuple[int, ...]
    lines: tuple[tuple[int, ...], ...]
    length: int  # tokens of the longest line


def micro_batches(
    examples: Examples,
    rows: Sequence[int],
    job: TrainJob,
    *,
    step: int | None = None,
    reference: npt.NDArray[np.float32] | None = None,
) -> list[RowBatch]:
    """`rows` in micro-batches of at most `job.micro_batch_tokens` padded tokens, or of one row that is longer alone.

    A row that occurs twice is computed twice; one from which nothing can be learned is left out. `step`: of the
    optimizer, for dropout; None: without dropout. `reference`: (all rows, 2) log-probabilities of chosen and rejected.
    """
    learned = [row for row in rows if examples.completion_tokens[row]]
    units = _packed(examples, learned, job) if job.packing else _alone(examples, learned)
    units.sort(key=lambda unit: (-unit.length, unit.rows))
    drops = job.adapter.dropout > 0 and job.fine_tune != "full"
    dropout = (job.seed, step) if drops and step is not None else None
    return [
        _batch(examples, units[start:end], _width(units[start], job), dropout, reference)
        for start, end in itertools.pairwise(_cuts(units, job))
    ]


def longest(batches: Sequence[RowBatch]) -> int:
    """Tokens, padding included, of the largest; at least 1."""
    return max((int(each.batch.tokens.size) for each in batches), default=1)


def _width(unit: _Unit, job: TrainJob) -> int:
    return -(-unit.length // job.pad_to) * job.pad_to


def _cuts(units: Sequence[_Unit], job: TrainJob) -> list[int]:
    """Where `units`, the longest first, are cut: from 0 to their number, with the least padded tokens and overhead."""
    count = len(units)
    costs, ends = [0] * (count + 1), [count] * (count + 1)  # of the best cut of units[start:]
    for start in range(count - 1, -1, -1):
        width = _width(units[start], job)
        lines = 0
        for end in range(start + 1, count + 1):
            lines += len(units[end - 1].lines)
            if lines * width > job.micro_batch_tokens and end > start + 1:
                break
            cost = lines * width + OVERHEAD_TOKENS + costs[end]
            if end == start + 1 or cost < costs[start]:
                costs[start], ends[start] = cost, end
    cuts = [0]
    while cuts[-1] < count:
        cuts.append(ends[cuts[-1]])
    return cuts


def _alone(examples: Examples, rows: Sequence[int]) -> list[_Unit]:
    """Every sequence in a line of its own."""
    return [
        _Unit(
            rows=(row,),
            lines=tuple((sequence,) for sequence in examples.sequences_of(row)),
            length=max(_read_tokens(examples, sequence) for sequence in examples.sequences_of(row)),
        )
        for row in rows
    ]


def _packed(examples: Examples, rows: Sequence[int], job: TrainJob) -> list[_Unit]:
    """First-fit decreasing: each row, the longest first, goes to the first line that has room for it."""
    order = sorted(rows, key=lambda row: (-int(examples.lengths[row]), row))
    if not order:
        return []
    capacity = max(min(job.max_tokens, job.micro_batch_tokens), int(examples.lengths[order[0]]))
    lines: list[list[int]] = []
    filled: list[int] = []
    for row in order:
        length = int(examples.lengths[row])
        at = next((at for at, used in enumerate(filled) if used + length <= capacity), len(lines))
        if at == len(lines):
            lines.append([])
            filled.append(0)
        lines[at].append(row)
        filled[at] += length
    return [
        _Unit(
            rows=tuple(line),
            lines=(tuple(sequence for row in line for sequence in examples.sequences_of(row)),),
            length=length,
        )
        for line, length in zip(lines, filled, strict=True)
    ]


def _read_tokens(examples: Examples, sequence: int) -> int:
    """The last token of a sequence is predicted, never read."""
    return int(examples.offsets[sequence + 1] - examples.offsets[sequence]) - 1


def _batch(
    examples: Examples,
    units: Sequence[_Unit],
    width: int,
    dropout: tuple[int, int] | None,
    reference: npt.NDArray[np.float32] | None,
) -> RowBatch:
    """`dropout`: (seed, step)."""
    lines = [line for unit in units for line in unit.lines]
    rows = tuple(row for unit in units for row in unit.rows)
    tokens = np.full((len(lines), width), PADDING, dtype=np.int32)
    segments = np.zeros((len(lines), width), dtype=np.int32)  # 0 is padding
    keys = np.zeros((len(lines), width), dtype=np.uint32)
    positions: list[Any] = []
    targets: list[Any] = []
    lengths: list[int] = []
    for number, line in enumerate(lines):
        begin = 0
        for place, sequence in enumerate(line, start=1):
            ids = examples.ids(sequence)
            end = begin + len(ids) - 1
            tokens[number, begin:end] = ids[:-1]
            segments[number, begin:end] = place
            if dropout is not None:
                keys[number, begin:end] = dropout_keys(*dropout, sequence, end - begin)
            spans = examples.spans_of(sequence)
            learned = np.concatenate([np.arange(first, last) for first, last in spans.tolist()])
            positions.append(learned - 1 + number * width + begin)
            targets.append(ids[learned])
            lengths.append(len(learned))
            begin = end
    packed = any(len(line) > 1 for line in lines)
    counts = np.array(lengths, dtype=np.int32)
    return RowBatch(
        rows=rows,
        batch=MicroBatch(
            tokens=mx.array(tokens),
            positions=mx.array(np.concatenate(positions).astype(np.int32)),
            targets=mx.array(np.concatenate(targets)),
            owners=mx.array(np.repeat(np.arange(len(counts), dtype=np.int32), counts)),
            lengths=mx.array(counts),
            sequences=len(counts),
            segments=mx.array(segments) if packed else None,
            keys=mx.array(keys) if dropout is not None else None,
            reference=mx.array(reference[list(rows)].reshape(-1)) if reference is not None else None,
        ),
    )


def dropout_keys(seed: int, step: int, sequence: int, tokens: int) -> Keys:
    """(tokens,) uint32: of where a token stands in which sequence in which step, and of nothing else."""
    base = np.uint64(hash_integers(seed, step, sequence))
    return (hash_words(np.arange(tokens, dtype=np.uint64) + base) >> np.uint64(32)).astype(np.uint32)
