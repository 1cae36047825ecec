"""Reference log-probabilities are found again by model and row, wherever the row stands, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import TrainJob
from realign_cluster.store.reference_cache import ReferenceCache, reference_key, row_digests

MODEL, DATA = ModelSpec(name="m", hash="ab" * 16), ModelSpec(name="d", hash="cd" * 16)
JOB = TrainJob(model=MODEL, data=DATA, method="dpo", steps=1, global_batch=1)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReferenceCache]:
    found = ReferenceCache(tmp_path / "home" / "references.sqlite")
    yield found
    found.close()


def test_rows_are_found_in_another_order_and_another_dataset(tmp_path: Path, cache: ReferenceCache) -> None:
    (tmp_path / "train.jsonl").write_text('{"a":1}\n{"a":2}\n{"a":3}\n')
    (tmp_path / "valid.jsonl").write_text('{"a":4}\n')
    key = reference_key(JOB)
    cache.add(key, row_digests(tmp_path), {0: (-1.0, -2.0), 2: (-3.0, -4.0), 3: (-5.0, -6.0)})
    assert cache.find(key, row_digests(tmp_path)) == [(0, -1.0, -2.0), (2, -3.0, -4.0), (3, -5.0, -6.0)]
    (tmp_path / "train.jsonl").write_text('{"a":4}\n{"a":2}\n')
    (tmp_path / "valid.jsonl").unlink()
    assert cache.find(key, row_digests(tmp_path)) == [(0, -5.0, -6.0)]


def test_the_first_values_stay(tmp_path: Path, cache: ReferenceCache) -> None:
    (tmp_path / "train.jsonl").write_text('{"a":1}\n{"a":2}\n')
    cache.add("key", row_digests(tmp_path), {0: (-1.0, -2.0)})
    cache.add("key", row_digests(tmp_path), {0: (-1.5, -2.5), 1: (-3.0, -4.0)})
    assert cache.find("key", row_digests(tmp_path)) == [(0, -1.0, -2.0), (1, -3.0, -4.0)]


@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelSpec(name="m", hash="ef" * 16)},
        {"max_tokens": 99},
        {"truncate": "left"},
        {"dtype": "bfloat16"},
        {"chat": "plain"},
        {"version": 2},
    ],
)
def test_what_changes_a_value_changes_its_key(change: dict[str, object]) -> None:
    assert reference_key(JOB.model_copy(update=change)) != reference_key(JOB)


def test_what_does_not_change_a_value_keeps_its_key() -> None:
    other = JOB.model_copy(update={"method": "ipo", "seed": 3, "data": MODEL, "steps": 9, "global_batch": 4})
    assert reference_key(other) == reference_key(JOB)
