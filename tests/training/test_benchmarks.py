"""Benchmarks beside a training: the right numbers, equal on all ranks, before training and while it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.rank_report import Evaluated
from realign_cluster.store.benchmark_data import prepared_benchmarks
from realign_cluster.training.benchmarks import judged
from tests.training.rank_driver import ROOT, Crew, prepared_job, replicas, single

INSTRUCTIONS = ROOT / "examples" / "data" / "instructions.jsonl"


def test_accuracy_counts_the_highest_and_no_tie() -> None:
    items, correct = np.array([0, 0, 1, 1, 2, 2]), np.array([True, False, False, True, True, False])
    sums = np.array([-1.0, -2.0, -1.0, -3.0, -2.0, -2.0])
    assert judged(sums, np.ones(6, dtype=np.int32), items, correct) == pytest.approx(1 / 3)


def test_without_choices_it_is_nats_per_token() -> None:
    sums, tokens = np.array([-1.0, -5.0]), np.array([1, 3], dtype=np.int32)
    assert judged(sums, tokens, np.array([0, 1]), np.array([True, True])) == 1.5


def test_questions_that_are_none_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text('{"prompt": "p", "answer": "a"}\n\n{"prompt": 3, "answer": "a"}\nnot json\n')
    with pytest.raises(UsageError) as caught:
        prepared_benchmarks([str(path)])
    assert "quiz.jsonl:3: prompt: is a number" in str(caught.value)
    assert "quiz.jsonl:4: " in str(caught.value)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="has no rows"):
        prepared_benchmarks([str(tmp_path / "empty.jsonl")])


def test_they_are_measured_before_and_during_training_alike_on_any_ranks(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in INSTRUCTIONS.read_text().splitlines()[:40]]
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(
        "".join(
            json.dumps({"prompt": row["prompt"], "choices": [row["response"], "No answer is known."], "answer": 0})
            + "\n"
            for row in rows[:12]
        )
    )
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"prompt": r["prompt"], "answer": r["response"]}) + "\n" for r in rows[:5]))
    beside = prepared_benchmarks([str(quiz), str(plain)])
    job = prepared_job(
        tmp_path, INSTRUCTIONS, beside=beside, steps=2, global_batch=8, optimizer={"learning_rate": 1e-3}
    )
    found = []
    for world in (single(), replicas(60, 40)):
        with Crew(tmp_path / world.parallel, job, world, data=tmp_path / "data") as crew:
            crew.go()
            crew.finish()
            said = [[(each.step, each.metrics) for each in rank.all(Evaluated)] for rank in crew.ranks]
        assert all(each == said[0] for each in said)
        found.append(said[0])
    assert [step for step, _ in found[0]] == [0, 2]
    for (_, one), (_, other) in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    before, after = found[0][0][1], found[0][1][1]
    assert before["benchmark/quiz"] > 0.5
    assert after["benchmark/plain"] < before["benchmark/plain"]
