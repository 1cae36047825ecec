"""Rows in micro-batches: everything is learned once, however rows are split, padded or packed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_model

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.shares import assign
from realign_cluster.domain.training import AdapterSettings, Method, TrainJob
from realign_cluster.training.examples import Examples
from realign_cluster.training.forward import Forward
from realign_cluster.training.micro_batches import RowBatch, dropout_keys, micro_batches
from tests.fixtures.models import TINY_MODEL

SPEC = ModelSpec(name="none", hash="none")
Sequenced = tuple[list[int], list[tuple[int, int]]]  # token ids, spans


def examples_of(sequences: Sequence[Sequenced], per_row: int = 1) -> Examples:
    sizes = [len(ids) for ids, _ in sequences]
    learned = np.array([sum(end - start for start, end in spans) for _, spans in sequences]).reshape(-1, per_row)
    some = (learned > 0).all(axis=1)
    return Examples(
        sequences_per_row=per_row,
        tokens=np.array([token for ids, _ in sequences for token in ids], dtype=np.int32),
        offsets=np.cumsum([0, *sizes], dtype=np.int64),
        spans=np.array([span for _, spans in sequences for span in spans], dtype=np.int32).reshape(-1, 2),
        span_offsets=np.cumsum([0, *(len(spans) for _, spans in sequences)], dtype=np.int64),
        prompt_tokens=np.ones(len(some), dtype=np.int32),
        lengths=((np.array(sizes).reshape(-1, per_row) - 1).sum(axis=1) * some).astype(np.int32),
        completion_tokens=(learned[:, 0] * some).astype(np.int32),
        truncated_rows=0,
        empty_rows=int((~some).sum()),
    )


@st.composite
def sequenced(draw: st.DrawFn, longest: int) -> Sequenced:
    """Tokens are numbered through 1, 2, ... from a random one, so that each knows the one before it."""
    size = draw(st.integers(2, longest))
    first = draw(st.integers(1, 1000))
    bounds = sorted(draw(st.sets(st.integers(1, size), min_size=0, max_size=6)))
    spans = list(zip(bounds[0::2], bounds[1::2], strict=False))
    return list(range(first, first + size)), spans


@st.composite
def some_examples(draw: st.DrawFn, longest: int = 60) -> Examples:
    per_row = draw(st.sampled_from([1, 2]))
    rows = draw(st.lists(st.tuples(*[sequenced(longest)] * per_row), min_size=1, max_size=14))
    return examples_of([each for row in rows for each in row], per_row)


def job_of(examples: Examples, **options: Any) -> TrainJob:
    method: Method = "dpo" if examples.sequences_per_row == 2 else "sft"
    settings = {"max_tokens": 64, "micro_batch_tokens": 128, "pad_to": 8} | options
    return TrainJob(method=method, model=SPEC, data=SPEC, steps=1, global_batch=1, **settings)


Place = tuple[int, int, int]  # sequence, position in it, token


def learned_of(examples: Examples, batches: Sequence[RowBatch]) -> Counter[Place]:
    """What a model would learn from `batches`, after seeing that each target stands right after its own context."""
    found: Counter[Place] = Counter()
    for each in batches:
        batch = each.batch
        tokens, width = np.array(batch.tokens), batch.tokens.shape[1]
        sequences = [sequence for row in each.rows for sequence in examples.sequences_of(row)]
        assert batch.sequences == len(sequences) == len(batch.lengths.tolist())
        begins: dict[int, int] = {}
        owners, positions = np.array(batch.owners), np.array(batch.positions)
        assert np.all(np.diff(positions) > 0)
        for owner, position, target in zip(owners.tolist(), positions.tolist(), batch.targets.tolist(), strict=True):
            sequence = sequences[owner]
            ids = examples.ids(sequence)
            at = int(np.flatnonzero(ids == target)[0])  # ids of a sequence are all different
            line, column = divmod(position, width)
            begin = begins.setdefault(owner, position - at + 1)
            assert begin == position - at + 1
            assert np.array_equal(tokens[line, column - at + 1 : column + 1], ids[:at])
            if batch.segments is not None:
                segment = np.array(batch.segments)[line]
                own = np.flatnonzero(segment == segment[column])
                assert (own[0], own[-1]) == (begin - line * width, begin - line * width + len(ids) - 2)
            else:
                assert column == at - 1
            found[sequence, at, target] += 1
        counts = np.bincount(owners, minlength=len(sequences))
        assert counts.tolist() == batch.lengths.tolist()
    return found


def expected(examples: Examples, rows: Sequence[int]) -> Counter[Place]:
    places: Counter[Place] = Counter()
    for row in rows:
        sequences = examples.sequences_of(row)
        if all(len(examples.spans_of(sequence)) for sequence in sequences):
            for sequence in sequences:
                for start, end in examples.spans_of(sequence).tolist():
                    for at in range(start, end):
                        places[sequence, at, int(examples.ids(sequence)[at])] += 1
    return places


@settings(max_examples=150, deadline=None)
@given(examples=some_examples(), data=st.data(), packing=st.booleans(), pad_to=st.sampled_from([1, 8, 32]))
def test_every_completion_token_of_every_row_is_a_target_exactly_once(examples, data, packing, pad_to):
    rows = data.draw(st.lists(st.integers(0, examples.rows - 1), max_size=20))
    job = job_of(examples, packing=packing, pad_to=pad_to, micro_batch_tokens=data.draw(st.integers(1, 300)))
    batches = micro_batches(examples, rows, job)
    assert learned_of(examples, batches) == expected(examples, rows)
    for each in batches:
        assert each.batch.tokens.shape[1] % pad_to == 0
        assert len(each.batch.targets.tolist())
        units = 1 if packing else examples.sequences_per_row
        assert each.batch.tokens.size <= job.micro_batch_tokens or each.batch.tokens.shape[0] == units
        assert each.batch.keys is None
        assert each.batch.reference is None


@settings(max_examples=60, deadline=None)
@given(examples=some_examples(), shares=st.lists(st.floats(0.05, 1), min_size=1, max_size=4), packing=st.booleans())
def test_ranks_together_learn_what_one_rank_would(examples, shares, packing):
    rows = list(range(examples.rows))
    costs = examples.lengths.tolist()
    found: Counter[Place] = Counter()
    for own in assign(costs, shares):
        found += learned_of(examples, micro_batches(examples, own, job_of(examples, packing=packing)))
    assert found == expected(examples, rows)


def keys_of(examples: Examples, batches: Sequence[RowBatch]) -> dict[int, tuple[int, ...]]:
    """By sequence, the key of every token that the model reads."""
    found = {}
    for each in batches:
        batch = each.batch
        assert batch.keys is not None
        keys, segments = np.array(batch.keys), batch.segments
        sequences = iter([sequence for row in each.rows for sequence in examples.sequences_of(row)])
        for line in range(keys.shape[0]):
            count = 1 if segments is None else int(np.array(segments)[line].max())
            begin = 0
            for sequence in itertools.islice(sequences, count):
                end = begin + len(examples.ids(sequence)) - 1
                found[sequence] = tuple(keys[line, begin:end].tolist())
                begin = end
            assert not keys[line, begin:].any()
    return found


@settings(max_examples=60, deadline=None)
@given(examples=some_examples(), data=st.data())
def test_dropout_keys_know_seed_step_row_and_position_and_nothing_else(examples, data):
    job = job_of(examples, adapter=AdapterSettings(dropout=0.1), seed=7)
    rows = [row for row in range(examples.rows) if examples.completion_tokens[row]]
    plain = keys_of(examples, micro_batches(examples, rows, job, step=3))
    changes = {"packing": data.draw(st.booleans()), "pad_to": 16, "micro_batch_tokens": data.draw(st.integers(1, 500))}
    cut = data.draw(st.integers(0, len(rows)))
    elsewhere: dict[int, tuple[int, ...]] = {}
    for part in (rows[cut:], rows[:cut]):
        elsewhere |= keys_of(examples, micro_batches(examples, part, job.model_copy(update=changes), step=3))
    assert elsewhere == plain
    every = [key for keys in plain.values() for key in keys]
    assert len(set(every)) >= len(every) - 1  # 32 bits: hardly ever twice
    for other, step in ((job, 4), (job.model_copy(update={"seed": 8}), 3)):
        others = keys_of(examples, micro_batches(examples, rows, other, step=step)).values()
        assert len(set(every) & {key for keys in others for key in keys}) <= 1


def test_dropout_keys_are_the_same_everywhere() -> None:
    assert dropout_keys(0, 0, 0, 3).tolist() == [556823690, 1770912681, 1334000965]
    assert dropout_keys(-1, 5, 2**40, 2).tolist() == [86125822, 33742925]


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"adapter": AdapterSettings(dropout=0.1)}, None),  # evaluation
        ({"adapter": AdapterSettings(dropout=0.0)}, 3),
        ({"adapter": AdapterSettings(dropout=0.1), "fine_tune": "full"}, 3),
    ],
)
def test_no_keys_without_dropout(options: dict[str, Any], step: int | None) -> None:
    examples = examples_of([([1, 2, 3], [(1, 3)])])
    (each,) = micro_batches(examples, [0], job_of(examples, **options), step=step)
    assert each.batch.keys is None


@settings(max_examples=60, deadline=None)
@given(examples=some_examples(), packing=st.booleans())
def test_chosen_and_rejected_lie_together_with_their_reference(examples, packing):
    reference = np.arange(2 * examples.rows, dtype=np.float32).reshape(-1, 2)
    if examples.sequences_per_row == 1:
        return
    for each in micro_batches(examples, range(examples.rows), job_of(examples, packing=packing), reference=reference):
        assert each.batch.reference is not None
        assert each.batch.sequences == 2 * len(each.rows)
        assert each.batch.reference.tolist() == [2 * row + side for row in each.rows for side in (0, 1)]


def test_what_a_batch_looks_like() -> None:
    examples = examples_of([([5, 6, 7], [(1, 3)]), ([1, 2, 3, 4, 5, 6], [(2, 4), (5, 6)]), ([9, 8], [])])
    (each,) = micro_batches(examples, [0, 1, 2], job_of(examples))
    batch = each.batch
    assert each.rows == (1, 0)  # the longest first; nothing of row 2 is learned
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [5, 6, 0, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [1, 2, 4, 8, 9]
    assert batch.targets.tolist() == [3, 4, 6, 6, 7]
    assert batch.owners.tolist() == [0, 0, 0, 1, 1]
    assert (batch.lengths.tolist(), batch.sequences, batch.segments) == ([3, 2], 2, None)
    assert {array.dtype for array in (batch.tokens, batch.positions, batch.targets, batch.owners, batch.lengths)} == {
        mx.int32
    }
    (packed,) = micro_batches(examples, [0, 1, 2], job_of(examples, packing=True))
    assert packed.batch.tokens.tolist() == [[1, 2, 3, 4, 5, 5, 6, 0]]
    assert packed.batch.segments is not None
    assert packed.batch.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 0]]
    assert packed.batch.positions.tolist() == [1, 2, 4, 5, 6]


def test_no_rows_give_no_batches() -> None:
    examples = examples_of([([1, 2], [(1, 2)]), ([1, 2], [])])
    for packing in (False, True):
        assert micro_batches(examples, [], job_of(examples, packing=packing)) == []
        assert micro_batches(examples, [1], job_of(examples, packing=packing)) == []


def random_examples(rows: int, longest: int, seed: int = 0, vocabulary: int = 2048) -> Examples:
    random = np.random.default_rng(seed)
    sizes = np.clip(random.lognormal(np.log(longest / 5), 0.8, rows), 3, longest).astype(int).tolist()
    return examples_of([(random.integers(2, vocabulary, size).tolist(), [(max(1, size // 3), size)]) for size in sizes])


def test_little_is_padded_and_shapes_are_few() -> None:
    examples = random_examples(3000, 1000)
    job = job_of(examples, max_tokens=1024, micro_batch_tokens=4096, pad_to=32)
    widths, read, padded, packed = set(), 0, 0, 0
    for at in range(0, 3000, 64):
        rows = range(at, min(at + 64, 3000))
        read += int(examples.lengths[rows.start : rows.stop].sum())
        plain = micro_batches(examples, rows, job)
        widths |= {each.batch.tokens.shape[1] for each in plain}
        padded += sum(each.batch.tokens.size for each in plain)
        packed += sum(
            each.batch.tokens.size for each in micro_batches(examples, rows, job.model_copy(update={"packing": True}))
        )
    assert len(widths) <= 32
    assert read / padded > 0.9
    assert read / packed > 0.95


def test_packed_and_padded_rows_have_the_log_probabilities_that_they_have_alone() -> None:
    model, _ = load_model(TINY_MODEL)
    forward = Forward(model)
    examples = random_examples(9, 90)
    rows = list(range(9))

    def sums(batches: Sequence[RowBatch]) -> npt.NDArray[np.float32]:
        found = np.zeros(9, dtype=np.float32)
        for each in batches:
            values = forward.log_probabilities(each.batch)
            found[list(each.rows)] = np.array(mx.zeros(each.batch.sequences).at[each.batch.owners].add(values))
        return found

    alone = []
    for row in rows:
        ids = mx.array(examples.ids(row))[None]
        logits = model(ids[:, :-1])[0].astype(mx.float32)
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        ((start, end),) = examples.spans_of(row).tolist()
        alone.append(float(mx.take_along_axis(log_p, ids[0, 1:, None], axis=-1)[start - 1 : end - 1].sum().item()))
    for options in ({}, {"packing": True}, {"pad_to": 64, "micro_batch_tokens": 2000}):
        batches = micro_batches(examples, rows, job_of(examples, max_tokens=128, **options))
        assert sums(batches) == pytest.approx(alone, rel=1e-5)
