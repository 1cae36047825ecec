"""What a ledger tells of a training: which steps count, what was lost, what ended a generation, what going on took."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from realign_cluster.coordinator.train_generations import COORDINATOR_GONE, takeover
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.recovery_policy import RecoveryPolicy

from .made_training import STEP_SECONDS, WALL, MadeTraining, loss_of, part


@pytest.fixture
def run(tmp_path: Path) -> MadeTraining:
    made = MadeTraining(tmp_path / "run", steps=40)
    made.ready("ab")
    made.goes()
    return made


def kill_a_rank(run: MadeTraining) -> None:
    """b's, a quarter of a second after the last step; a's dies of it half a second later."""
    run.now += 0.25
    run.exits("b")
    run.now += 0.5
    run.obeys("a")


def test_a_run_without_trouble_is_one_generation_and_loses_nothing(run: MadeTraining):
    run.train(40)
    run.all_done(40)
    history = run.history()
    assert [step.step for step in history.steps] == list(range(1, 41))
    assert history.lost == []
    (generation,) = history.generations
    assert (generation.failed, generation.why, generation.last_step) == (False, "all steps are done", 40)
    assert history.peaks == {"a": 20_000, "b": 20_000}
    assert history.stored == [20, 40]
    assert history.tokens_per_second == pytest.approx(800 / STEP_SECONDS)


def test_speeds_are_learned_of_ranks_with_the_whole_model_only(tmp_path: Path):
    run = MadeTraining(tmp_path / "run", steps=40, parallel="pipeline")
    run.ready("ab")
    run.goes()
    run.train(25)
    run.parallel = "data"
    kill_a_rank(run)
    run.goes()
    run.train(40, first=26)
    history = run.history()
    assert [generation.parallel for generation in history.generations] == ["pipeline", "data"]
    assert history.speeds() == {node: (pytest.approx(1000.0), pytest.approx(15 * 0.4)) for node in "ab"}


def test_steps_after_the_last_state_are_lost_with_a_rank_and_done_again(run: MadeTraining):
    run.train(28)
    kill_a_rank(run)
    run.goes()
    run.train(40, first=26)
    run.all_done(40)
    history = run.history()
    assert [step.step for step in history.steps] == list(range(1, 41))
    assert [(step.step, step.generation) for step in history.lost] == [(26, 1), (27, 1), (28, 1)]
    assert [step.generation for step in history.steps] == [1] * 25 + [2] * 15
    assert [line["step"] for line in history.metric_lines()] == list(range(1, 41))
    assert sum(node["tokens"] for node in history.nodes_summary().values()) == 40 * 800


def test_a_takeover_is_told_without_gaps_from_the_last_word_to_the_first_step(run: MadeTraining):
    run.train(28)
    kill_a_rank(run)
    run.goes()
    run.train(40, first=26)
    first, second = run.history().generations
    assert first.failed
    assert first.why == "the rank on b exited: killed by signal 9"
    phases = takeover(first, second)
    assert [(phase.name, round(phase.end - phase.begin, 3)) for phase in phases] == [
        ("noticed", 0.25), ("stopped", 0.5), ("planned", 0.0), ("loaded", 2.0), ("joined", 1.0), ("stepped", 0.5),
    ]  # fmt: skip
    assert all(before.end == after.begin for before, after in pairwise(phases))
    cold = takeover(None, first)
    assert [phase.name for phase in cold] == ["planned", "loaded", "joined", "stepped"]


@pytest.mark.parametrize("asked", [False, True])
def test_who_failed_is_named_also_where_another_rank_noticed_it_first(tmp_path: Path, asked: bool):
    """`asked`: the daemon was told to kill the rank before it had noticed its end."""
    run = MadeTraining(tmp_path / "three", nodes="abc", steps=40)
    run.ready("abc")
    run.goes()
    run.train(12)
    last_word = run.now
    run.now += 0.1
    why = "the rank on a failed: connection to a peer was lost"
    run.fails("a", "peer", "connection to a peer was lost")
    run.now += 0.1
    run.exits("c", f"{why} (killed by signal 15)", asked=True)
    run.exits("b", f"{why} (killed by signal 9)" if asked else "killed by signal 9", asked=asked)
    run.exits("a", f"{why} (exit status 3)", asked=True)
    generation = run.history().generations[0]
    assert generation.why == "the rank on b exited: killed by signal 9"
    assert generation.failed_word == pytest.approx(WALL + last_word)
    assert generation.noticed == pytest.approx(WALL + last_word + 0.1)


@pytest.mark.parametrize("witness", [False, True])
def test_a_lost_node_is_named_and_gone_when_its_rank_counts_as_dead(run: MadeTraining, witness: bool):
    """`witness`: the other rank misses its peer before the node is known to be lost."""
    run.train(12)
    noticed_at = run.now + (0.1 if witness else 3.0)
    if witness:
        run.now += 0.1
        run.fails("a", "peer", "connection to a peer was lost")
        run.now += 2.9
    else:
        run.now += 3.0
    lost_at = run.now
    run.lose("b")
    run.obeys("a")
    policy = RecoveryPolicy()
    run.pass_time(policy.return_seconds + 4)
    history = run.history()
    first, second = history.generations
    assert first.why == "b is lost: not heard for 3.1 s"
    assert first.noticed == pytest.approx(WALL + noticed_at)
    dead_at = lost_at + policy.lease_seconds + policy.fence_margin_seconds
    assert first.gone == pytest.approx(WALL + dead_at, abs=0.5)
    waited = {phase.name: phase.end - phase.begin for phase in takeover(first, second)}["planned"]
    assert 1.0 < waited < policy.return_seconds  # for the node to come back
    assert second.nodes == ("a",)
    assert any(incident.trouble and incident.text.startswith("b is lost") for incident in history.incidents)


def test_fetching_a_state_is_a_phase_of_its_own(run: MadeTraining):
    run.train(12)
    run.lose("b")
    run.obeys("a")
    run.now += 6.0
    run.ready("b")  # with an empty disk, and its rank of before
    run.obeys("b")
    run.now += 1.5
    run.arrive()
    run.goes()
    run.train(13, first=11)
    first, second = run.history().generations
    phases = {phase.name: phase.end - phase.begin for phase in takeover(first, second)}
    assert phases["fetched"] == pytest.approx(1.5)
    assert second.nodes == ("a", "b")


def test_a_hang_is_noticed_by_the_clock(run: MadeTraining):
    run.train(12)
    run.pass_time(6.0)
    (generation,) = run.history().generations
    assert generation.failed
    assert "made no progress in step" in generation.why


def test_a_generation_that_outlived_its_coordinator_ended_with_it(tmp_path: Path, run: MadeTraining):
    run.train(12)
    run.history()
    memory = run.memory
    again = MadeTraining(tmp_path / "run", steps=40, memory=memory, slept=3600.0)
    again.pass_time(6.0)  # until the ranks of before are surely dead
    again.ready("ab", [part(10)])
    again.goes()
    again.train(15, first=11)
    history = again.history()
    first, second = history.generations
    assert (first.why, first.failed) == (COORDINATOR_GONE, False)
    assert second.opened is not None
    assert takeover(first, second)[0].begin == second.opened  # the hour that nobody was there is not counted
    assert history.seconds < 60
    assert history.elapsed(second.started) < 30
    assert history.sittings == 2
    assert [step.step for step in history.lost] == [11, 12]


def test_steps_that_only_the_daemons_knew_of_when_the_coordinator_died_count_for_their_generation(
    tmp_path: Path, run: MadeTraining
):
    run.train(12)
    run.history()
    again = MadeTraining(tmp_path / "run", steps=40, memory=run.memory, slept=60.0)
    for node in "ab":  # said again by the daemons, as the last coordinator had not acknowledged it
        again.handle(e.StepDone(at=again.now, node=NodeName(node), generation=1, step=13, seconds=STEP_SECONDS))
    again.pass_time(6.0)
    again.ready("ab", [part(10)])
    first, second = again.history().generations
    assert (first.last_step, second.start_step) == (13, 10)


def test_a_run_that_is_stopped_says_who_asked(run: MadeTraining):
    run.train(12)
    run.handle(e.StopAsked(at=run.now))
    for node in "ab":
        run.of_rank(e.RankEnded, node, step=12, complete=False, reason="stopped as asked", digest="w")
    (generation,) = run.history().generations
    assert (generation.why, generation.failed) == ("interrupted", False)


def test_going_back_for_the_divergence_gives_up_what_was_done_and_measured(tmp_path: Path):
    run = MadeTraining(tmp_path / "kl", steps=60, kl_budget=0.1)
    run.ready("ab")
    run.goes()
    run.train(20)
    run.diverge(20, 0.05)
    run.train(30, first=21)
    run.diverge(30, 0.2)
    run.obeys("ab")
    run.arrive()  # the nodes had newer states, from which nobody may go on
    run.goes()
    run.train(30, first=21)
    run.diverge(30, 0.08)
    history = run.history()
    assert [(each.step, each.kl) for each in history.divergences] == [(20, 0.05), (30, 0.08)]
    assert [(each.step, each.kl) for each in history.divergences_lost] == [(30, 0.2)]
    assert [step.step for step in history.lost] == list(range(21, 31))
    first, second = history.generations
    assert not first.failed
    assert first.why.startswith("KL 0.2000 after step 30 is over the budget of 0.1")
    assert second.start_step == 20


def test_steps_count_by_the_state_that_was_gone_on_with_not_by_the_order_of_generations(run: MadeTraining):
    """Generation 2 began further back, and came to nothing: generation 3 found the newer state of generation 1."""
    run.train(12)
    run.lose("b")
    run.obeys("a")
    run.pass_time(5.0)
    run.event(e.NodeReady, "b", parts=(part(5), part(10)))
    run.goes()
    run.train(14, first=11)
    history = run.history()
    assert [step.step for step in history.steps] == list(range(1, 15))
    run.ledger.record(
        WALL + run.now,
        events=[(run.now, {"event": {"kind": "Tick", "at": run.now}, "commands": [starts(run, step=5, number=3)]})],
    )
    assert [step.step for step in run.history().steps] == [1, 2, 3, 4, 5]
    run.ledger.record(
        WALL + run.now,
        events=[(run.now, {"event": {"kind": "Tick", "at": run.now}, "commands": [starts(run, step=10, number=4)]})],
    )
    assert [step.step for step in run.history().steps] == list(range(1, 11))


def starts(run: MadeTraining, *, step: int, number: int) -> dict[str, object]:
    """StartRank for a generation that goes on from what generation 1 had after `step`."""
    spec = run.starts[0].spec.model_copy(
        update={"generation": number, "start_step": step, "start": (part(step, generation=1),)}
    )
    return {"kind": "StartRank", "node": "a", "spec": spec.model_dump(mode="json"), "reason": ""}


def test_what_could_not_be_kept_is_trouble(run: MadeTraining):
    run.train(6)
    run.could_not_keep("b", 5)
    (trouble,) = [incident for incident in run.history().incidents if incident.trouble]
    assert trouble.text == "b could not keep the snapshot of step 5: no space left"


def test_validation_begins_before_training_but_is_never_best_there(run: MadeTraining):
    run.evaluate(0)
    run.train(20)
    run.evaluate(10)
    run.evaluate(20)
    history = run.history()
    assert history.validation() == [(step, loss_of(step) + 0.1) for step in (0, 10, 20)]
    summary = history.validation_summary()
    assert summary is not None
    assert (summary["best_step"], summary["first"]) == (20, loss_of(0) + 0.1)
    lines = {line["step"]: line for line in history.metric_lines()}
    assert lines[10]["validation_loss"] == loss_of(10) + 0.1


def test_benchmarks_are_told_by_name(run: MadeTraining):
    run.evaluate(0, **{"benchmark/sums": 0.25})
    run.train(10)
    run.evaluate(10, **{"benchmark/sums": 0.5})
    history = run.history()
    assert history.benchmark_summary() == {"sums": {"first": 0.25, "last": 0.5}}
    assert list(history.metric_lines())[9]["benchmark/sums"] == 0.5
