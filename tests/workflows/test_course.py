"""The way through the stages: what follows from PASS, FAIL and INSUFFICIENT, and what people can decide about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from realign_cluster.domain.judge_error import VerifierLabels
from realign_cluster.workflows.course import Decisions, Ended, Judged
from realign_cluster.workflows.stage import Context, Counted, Outcome, StageGate
from tests.workflows.made import at_least, config, drive, share, stage, workflow


def good(context: Context) -> Outcome:
    return Outcome(model=context.state.model, measurements={"accuracy": share("accuracy", 100, 0)})


def bad(context: Context) -> Outcome:
    return Outcome(model=context.state.model, measurements={"accuracy": share("accuracy", 50, 50)})


def unclear(context: Context) -> Outcome:
    return Outcome(model=context.state.model, measurements={"accuracy": share("accuracy", 19, 1)})


def bad_at_first(context: Context) -> Outcome:
    return bad(context) if context.attempt == 0 else good(context)


def turns(events: list[object]) -> list[tuple[int, int, str]]:
    return [(each.stage.number, each.attempt, each.turn) for each in events if isinstance(each, Ended)]


def test_every_gate_passed() -> None:
    end, events, jobs = drive(workflow(stage(1, good, at_least()), stage(2, good, at_least())))
    assert (end.state, end.passed, end.from_stage) == ("complete", True, "stage2")
    assert turns(events) == [(1, 0, "pass"), (2, 0, "pass")]
    assert len(jobs) == 2


def test_a_failed_gate_gets_its_remedy_and_another_seed() -> None:
    end, events, jobs = drive(workflow(stage(1, bad_at_first, at_least())))
    assert end.passed
    assert turns(events) == [(1, 0, "remedy"), (1, 1, "pass")]
    assert jobs[0].settings.seed != jobs[1].settings.seed  # type: ignore[union-attr]


def test_when_no_attempt_is_left_the_best_feasible_model_remains() -> None:
    end, events, _ = drive(workflow(stage(1, good, at_least()), stage(2, bad, at_least())))
    assert (end.state, end.passed, end.from_stage) == ("failed", False, "stage1")
    assert end.model.artifact == "model 1"
    assert turns(events) == [(1, 0, "pass"), (2, 0, "remedy"), (2, 1, "roll back")]


def test_a_workflow_that_fails_at_once_falls_back_to_the_model_it_began_with() -> None:
    end, _, _ = drive(workflow(stage(1, bad, at_least())))
    assert (end.from_stage, end.model.path) == ("", "base")


def test_insufficient_stops_a_strict_run_and_never_trains() -> None:
    end, events, jobs = drive(workflow(stage(1, unclear, at_least()), stage(2, good, at_least())))
    assert (end.state, end.passed) == ("incomplete", False)
    assert turns(events) == [(1, 0, "stop")]
    assert len(jobs) == 1


def test_insufficient_is_gone_on_from_and_said_in_a_permissive_run() -> None:
    made = workflow(stage(1, unclear, at_least()), stage(2, good, at_least()))
    end, events, _ = drive(made, config(mode="permissive"))
    assert (end.state, end.passed) == ("complete", False)
    assert end.went_on == ("stage1, accuracy",)
    assert turns(events) == [(1, 0, "go on"), (2, 0, "pass")]


def test_what_a_person_overrode_is_not_gone_on_from_without_a_decision() -> None:
    two = (at_least(name="accuracy"), at_least(name="other"))

    def both(context: Context) -> Outcome:
        return Outcome(measurements={name: share(name, 19, 1) for name in ("accuracy", "other")})

    one = Decisions(overridden=frozenset({("stage1", "accuracy")}))
    end, _, _ = drive(workflow(stage(1, both, *two)), config(mode="permissive"), one)
    assert end.went_on == ("stage1, other",)
    assert end.reason == "gone on without: stage1, other"


def test_a_failed_gate_is_not_gone_on_from_in_a_permissive_run() -> None:
    end, _, _ = drive(workflow(stage(1, bad, at_least())), config(mode="permissive"))
    assert end.state == "failed"


def test_a_guard_that_cannot_decide_stops_nothing_but_its_failure_counts() -> None:
    end, _, _ = drive(workflow(stage(1, unclear, at_least(guard=True))))
    assert (end.passed, end.reason) == (True, "every gate passed")
    end, events, _ = drive(workflow(stage(1, bad, at_least(guard=True))))
    assert end.state == "failed"
    assert [turn for *_, turn in turns(events)] == ["remedy", "roll back"]


def test_a_person_can_override_one_gate_and_no_other() -> None:
    two = (at_least(name="accuracy"), at_least(name="other"))

    def both(context: Context) -> Outcome:
        return Outcome(measurements={name: share(name, 50, 50) for name in ("accuracy", "other")})

    one = Decisions(overridden=frozenset({("stage1", "accuracy")}))
    assert drive(workflow(stage(1, both, *two)), decisions=one)[0].state == "failed"
    all_of_them = Decisions(overridden=frozenset({("stage1", "accuracy"), ("stage1", "other")}))
    end, events, _ = drive(workflow(stage(1, both, *two)), decisions=all_of_them)
    assert end.passed
    judged = [each for each in events if isinstance(each, Judged)]
    assert [each.verdict.outcome for each in judged] == ["FAIL", "FAIL"]
    assert end.reason == "every gate passed or was overridden: stage1, accuracy, stage1, other"
    assert [each.reason for each in events if isinstance(each, Ended)] == [
        "every gate passed or was overridden: accuracy, other"
    ]
    assert all(each.overridden for each in judged)


def test_a_remedy_that_goes_back_does_the_earlier_stage_again() -> None:
    def measured_by_the_second(context: Context) -> Outcome:
        again = context.state.model.artifact != "model 1"
        return Outcome(measurements={"accuracy": share("accuracy", 100, 0) if again else share("accuracy", 50, 50)})

    made = workflow(stage(1, good, at_least()), stage(2, measured_by_the_second, at_least(), goes_back_to="stage1"))
    end, events, jobs = drive(made)
    assert end.passed
    assert turns(events) == [(1, 0, "pass"), (2, 0, "remedy"), (1, 1, "pass"), (2, 1, "pass")]
    assert len(jobs) == 2


def test_alpha_is_divided_by_the_attempts_that_a_stage_has() -> None:
    """29 of 29 shows 0.90 to 5 %, and not to the 2.5 % that each of two attempts has."""

    def just(context: Context) -> Outcome:
        return Outcome(measurements={"accuracy": share("accuracy", 29, 0)})

    assert drive(workflow(stage(1, just, at_least(), repeats=False)))[0].passed
    assert not drive(workflow(stage(1, just, at_least())))[0].passed


def test_what_failed_to_train_is_not_judged() -> None:
    end, events, _ = drive(workflow(stage(1, lambda _: Outcome(failed="loss is NaN"), at_least())))
    assert not [each for each in events if isinstance(each, Judged)]
    assert (end.state, "loss is NaN" in end.reason) == ("failed", True)


def test_a_user_s_threshold_goes_before_the_workflow_s() -> None:
    asked = config(gates={"stage1": {"accuracy": 0.3}})
    assert drive(workflow(stage(1, bad, at_least())), asked)[0].passed


@pytest.mark.parametrize(("value", "state"), [(0.5, "complete"), (0.7, "failed"), (None, "incomplete")])
def test_counts_are_compared_as_they_are(value: float | None, state: str) -> None:
    gate = StageGate(name="share", title="share", rule=Counted(fact="share", direction="at most", threshold=0.6))
    end, _, _ = drive(workflow(stage(1, lambda _: Outcome(facts={"share": value}), gate, repeats=False)))
    assert end.state == state


def test_what_was_taken_back_is_done_anew_with_other_seeds() -> None:
    made = workflow(stage(1, good, at_least()), stage(2, good, at_least()))
    _, _, before = drive(made)
    _, _, after = drive(made, decisions=Decisions(taken_back={"stage2": 1}))
    seeds = [[job.settings.seed for job in jobs] for jobs in (before, after)]  # type: ignore[union-attr]
    assert seeds[0][0] == seeds[1][0]
    assert seeds[0][1] != seeds[1][1]


def test_a_model_that_a_later_stage_found_wanting_is_not_fallen_back_to() -> None:
    """Stage 2 trains nothing: its FAIL is of the model of stage 1, and the one before that remains."""

    def measured(context: Context) -> Outcome:
        return Outcome(measurements={"accuracy": share("accuracy", 50, 50)})

    end, _, _ = drive(workflow(stage(1, good, at_least()), stage(2, measured, at_least(), repeats=False)))
    assert (end.state, end.from_stage, end.model.path) == ("failed", "", "base")


def test_going_back_is_bounded_by_the_attempts_of_both_stages() -> None:
    """Stage 1 passes at its second attempt; stage 2 sends back to it no more, for alpha was divided by two."""

    def measured(context: Context) -> Outcome:
        return Outcome(measurements={"accuracy": share("accuracy", 50, 50)})

    made = workflow(stage(1, bad_at_first, at_least()), stage(2, measured, at_least(), goes_back_to="stage1"))
    end, events, jobs = drive(made)
    assert end.state == "failed"
    assert turns(events) == [(1, 0, "remedy"), (1, 1, "pass"), (2, 0, "roll back")]
    assert len(jobs) == 2


def test_a_stage_that_was_taken_back_begins_with_its_first_remedy_again() -> None:
    seen: list[int] = []

    def measured(context: Context) -> Outcome:
        seen.append(context.attempt)
        return good(context)

    drive(workflow(stage(1, measured, at_least())), decisions=Decisions(taken_back={"stage1": 2}))
    assert seen == [0]


@pytest.mark.parametrize(("right", "outcome"), [(200, "PASS"), (150, "FAIL"), (40, "INSUFFICIENT")])
def test_a_verifier_s_errors_are_in_the_bounds_of_what_it_reported(right: int, outcome: str) -> None:
    """All of 300 answers are said to be right. By a verifier that says so of everything it hardly means anything."""
    labels = VerifierLabels(
        verifier="v", true_positives=200, false_negatives=0, true_negatives=right, false_positives=200 - right
    )

    def measured(context: Context) -> Outcome:
        said = share("accuracy", 300, 0) if outcome != "FAIL" else share("accuracy", 255, 45)
        return Outcome(measurements={"accuracy": replace(said, verifier="v")}, labels=labels)

    _, events, _ = drive(workflow(stage(1, measured, at_least(), repeats=False)))
    [judged] = [each for each in events if isinstance(each, Judged)]
    assert judged.verdict.outcome == outcome
