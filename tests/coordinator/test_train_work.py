"""What a step of some data takes, before any rank has read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from realign_cluster.coordinator.train_work import MARKS_PER_MESSAGE, SAMPLE_ROWS, estimate_work
from realign_cluster.domain.training import TrainSettings
from tests.cluster.kit import TINY_MODEL, write_rows

MARKS = 2 * MARKS_PER_MESSAGE  # of a prompt and its completion


def tokens(text: str) -> int:
    encoding = Tokenizer.from_file(str(TINY_MODEL / "tokenizer.json")).encode(text, add_special_tokens=False)
    return len(encoding.ids)


def work_of(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    write_rows(folder / "train.jsonl", rows)
    return estimate_work(folder, len(rows), TINY_MODEL, TrainSettings(steps=1, global_batch=4, **settings))


def test_lengths_are_the_tokenizers(tmp_path: Path) -> None:
    rows = [{"prompt": "Why is that?", "completion": "It is. " * count} for count in (1, 3, 8)]
    sizes = [(tokens(row["prompt"]), tokens(row["completion"])) for row in rows]
    work = work_of(tmp_path, rows)
    assert work.longest_tokens == sum(sizes[2]) + MARKS
    assert work.sequence_tokens == pytest.approx(sum(map(sum, sizes)) / 3 + MARKS)
    learned = sum(answer + MARKS_PER_MESSAGE for _, answer in sizes)
    assert work.target_fraction == pytest.approx(learned / (sum(map(sum, sizes)) + 3 * MARKS))
    assert work_of(tmp_path, rows, mask_prompt=False).target_fraction == 1.0
    assert work.estimated_from == ""


def test_the_longest_row_counts_wherever_it_stands(tmp_path: Path) -> None:
    short = {"prompt": "Why?", "completion": "It is."}
    long = {"prompt": "Why?", "completion": "magnets pull, " * 250}
    rows = [short] * (SAMPLE_ROWS + 40) + [long] + [short] * 10
    work = work_of(tmp_path, rows, max_tokens=4096)
    assert work.longest_tokens == tokens(long["prompt"]) + tokens(long["completion"]) + MARKS
    assert work.sequence_tokens == tokens(short["prompt"]) + tokens(short["completion"]) + MARKS
    assert work.estimated_from == "the first 512 rows and the longest"
    assert work.too_long == 0
    cut = work_of(tmp_path, rows, max_tokens=100)
    assert (cut.longest_tokens, cut.too_long) == (100, 1)


def test_a_pair_is_two_sequences(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "chosen": "It is. " * 9, "rejected": "No."}
    work = work_of(tmp_path, [row], method="dpo")
    sizes = [tokens(row["prompt"]) + tokens(row[side]) + MARKS for side in ("chosen", "rejected")]
    assert (work.longest_tokens, work.sequence_tokens) == (max(sizes), sum(sizes) / 2)
