"""What a job takes, with the sum: of plans by the real planners."""

from __future__ import annotations

from dataclasses import replace

import pytest

from realign_cluster.domain.job import JUDGE_LABELS, Sampling
from realign_cluster.domain.plan_facts import WorkFacts
from realign_cluster.domain.planner import plan_scoring
from realign_cluster.domain.training import EvaluationSettings, TrainSettings
from realign_cluster.metrics.verifiers.fact_service import FactServiceSettings
from realign_cluster.workflows.job_costs import minutes_by_stage, minutes_per_item, scored, trained, unplanned
from realign_cluster.workflows.jobs import ArtifactId, Consult, ModelRef, Score, Train
from realign_cluster.workflows.rehearsal import Rehearsed
from tests.domain.test_train_planner import BOTH, FOUR_BITS, config, facts, plan, work

ROWS = ArtifactId("rows")
MODEL = ModelRef(path="model", hash="model")
JUDGING = Score(title="answers: judged", rows=ROWS, model=MODEL, kinds=("judge",), labels=JUDGE_LABELS)
DRAWING = Score(
    title="answers", rows=ROWS, model=MODEL, kinds=("generate",), sampling=Sampling(max_new_tokens=64, samples=4)
)
QWEN = config("qwen3-30b-a3b", **FOUR_BITS)
SETTINGS = TrainSettings(steps=100, global_batch=32, method="dpo", evaluation=EvaluationSettings(every=25))
TRAINING = Train(title="training", model=MODEL, data=ROWS, valid=ROWS, benchmarks={"sums": ROWS}, settings=SETTINGS)


def of(job: Score | Train | Consult, count: int) -> Rehearsed:
    return Rehearsed(stage="citation", job=job, rows=ROWS, count=count)


def test_a_judge_s_pass_is_pairs_times_tokens_over_the_speed_of_the_nodes() -> None:
    asked = WorkFacts(kinds=("judge",), rows=412, cost=412 * 180.0)
    found = plan_scoring(BOTH, facts(QWEN), asked)
    cost = scored(of(JUDGING, 412), JUDGING, found)
    assert cost.tokens == 74_160
    assert cost.minutes == pytest.approx(74_160 / found.cost_per_second / 60)
    assert cost.text == (
        "412 pairs of evidence and claim x 180 = 74,160 token equivalents, "
        f"at {found.cost_per_second:,.0f} a second over 2 nodes"
    )
    assert [line.partition(":")[0] for line in cost.memory] == ["m4max", "m3ultra"]


def test_a_training_is_steps_times_seconds_and_what_comes_before_them() -> None:
    found = plan(BOTH, QWEN, work(600, method="dpo"))
    cost = trained(of(TRAINING, 5_000), TRAINING, found)
    assert found.step_seconds is not None
    assert found.expected_seconds == pytest.approx(100 * found.step_seconds + found.reference_seconds)
    assert cost.minutes == pytest.approx(found.expected_seconds / 60)
    assert cost.text.startswith(f"100 steps x {found.step_seconds:.3g} s of 32 from 5,000 rows + ")
    assert f"{found.reference_seconds:.0f} s for the reference" in cost.text
    assert "besides, 4 times, validation and sums" in cost.text


def test_what_does_not_fit_is_said_with_its_sum_and_takes_no_minutes() -> None:
    large = config("deepseek-v3")
    asked = WorkFacts(kinds=("judge",), rows=412, cost=412 * 180.0)
    judged = scored(of(JUDGING, 412), JUDGING, plan_scoring(BOTH, facts(large), asked))
    training = trained(of(TRAINING, 5_000), TRAINING, plan(BOTH, large, work(600, method="dpo")))
    for cost in (judged, training):
        assert cost.text.startswith("cannot run; ")
        assert "671.0 billion parameters x 16 bits = 1342.1 GB" in cost.text
        assert cost.minutes is None


def test_what_no_cluster_was_asked_of_is_counted() -> None:
    assert unplanned(of(DRAWING, 1)).text == "1 prompt (4 answers of up to 64 tokens each)"
    assert unplanned(of(JUDGING, 1_200)).text == "1,200 pairs of evidence and claim"
    service = FactServiceSettings(url="http://127.0.0.1:9", version="1", pairs_per_request=16)
    consulting = Consult(title="consulting", pairs=ROWS, service=service)
    assert unplanned(of(consulting, 33)).text.startswith("33 pairs in 3 requests of 16: ")


def test_minutes_add_up_by_stage_and_to_those_of_one_more_answer() -> None:
    asked = WorkFacts(kinds=("generate",), rows=100, cost=100 * 60.0)
    drawn = scored(of(DRAWING, 100), DRAWING, plan_scoring(BOTH, facts(QWEN), asked))
    assert drawn.minutes is not None
    costs = [unplanned(of(JUDGING, 3)), drawn, replace(drawn, stage="evaluation"), drawn]
    assert minutes_by_stage(costs) == pytest.approx({"citation": 2 * drawn.minutes, "evaluation": drawn.minutes})
    assert minutes_per_item(costs) == pytest.approx(drawn.minutes / 100)
    assert minutes_per_item([unplanned(of(DRAWING, 3))]) is None
