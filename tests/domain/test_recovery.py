"""What recovery does in each situation that a training run can be in. Each test is a rule."""

from __future__ import annotations

from typing import Any

import pytest

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.recovery_policy import RecoveryPolicy
from realign_cluster.domain.run_memory import GoBack, RunMemory
from tests.domain.train_by_hand import TrainRun, part

POLICY = RecoveryPolicy()


# --- starting


def test_waits_for_all_expected_nodes_then_plans_starts_and_lets_them_join_together() -> None:
    run = TrainRun("ab")
    run.ready("a")
    assert not run.all(c.Replan)
    assert "waiting for b" in run.notes()
    run.ready("b")
    assert run.all(c.Replan)[0].nodes == ("a", "b")
    assert [(start.node, start.spec.rank, start.spec.start_step) for start in run.starts] == [("a", 0, 0), ("b", 1, 0)]
    run.of_rank(e.RankLoaded, "a")
    assert not run.all(c.Go)
    run.of_rank(e.RankLoaded, "b")
    assert [(go.generation, go.nodes) for go in run.all(c.Go)] == [(1, ("a", "b"))]


def test_begins_without_a_node_that_does_not_come() -> None:
    run = TrainRun("ab")
    run.ready("a")
    run.pass_time(POLICY.arrival_seconds - 1)
    assert not run.starts
    run.pass_time(1)
    assert run.running == "a"


def test_what_outlives_the_coordinator_is_remembered_before_a_rank_is_started() -> None:
    run = TrainRun("ab").begin()
    kinds = [type(command) for command in run.said]
    assert kinds.index(c.Remember) < kinds.index(c.StartRank)
    assert run.memory.generation == 1
    assert run.memory.nodes == ("a", "b")


def test_ranks_that_do_not_mean_the_same_run_end_it() -> None:
    run = TrainRun("ab")
    run.ready("ab")
    run.of_rank(e.RankLoaded, "a", config="one")
    run.of_rank(e.RankLoaded, "b", config="other")
    assert run.killed() == "ab"
    run.obeys("ab")
    assert run.finish is not None
    assert run.finish.state == "failed"
    assert "a one, b other" in run.finish.reason


def test_a_new_stream_is_told_again_what_may_have_been_lost_with_the_old_one() -> None:
    run = TrainRun("ab")
    run.ready("ab")
    run.of_rank(e.RankLoaded, "ab")
    run.ready("b", generation=1)
    assert [go.generation for go in run.last(c.Go)] == [1]
    run.of_rank(e.RankJoined, "ab")
    run.ready("b", generation=1)
    assert not run.new


# --- never two generations


def test_the_next_generation_waits_until_every_rank_of_the_last_is_dead() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.exits("b")
    assert run.killed() == "a"
    run.pass_time(4.0)
    assert run.generation == 1
    run.obeys("a")
    assert run.generation == 2
    assert [start.spec.start_step for start in run.starts] == [3, 3]


def test_a_rank_that_is_not_reported_dead_is_killed_again() -> None:
    run = TrainRun("ab").begin(steps=1)
    run.exits("b")
    run.pass_time(POLICY.kill_again_seconds + 0.5)
    assert run.killed() == "a"
    assert run.generation == 1


def test_the_rank_of_a_lost_node_counts_as_dead_when_its_daemon_must_have_killed_it() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.lose("b")
    assert run.killed() == "a"  # nothing reaches b
    run.obeys("a")
    run.pass_time(POLICY.lease_seconds + POLICY.fence_margin_seconds - 0.5)
    assert "counts as dead" not in run.notes()
    run.pass_time(0.5)
    assert "the rank of generation 1 on b counts as dead" in run.notes()


def test_a_daemon_that_was_started_anew_has_no_rank_that_could_be_killed() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.exits("a")
    run.pass_time(POLICY.kill_patience_seconds - 1)
    run.ready("b", [part(3)], generation=None)
    assert (run.generation, run.running) == (2, "ab")
    assert not run.all(c.Quarantine)


def test_the_rank_of_a_node_that_comes_back_is_as_dead_as_its_daemon_says() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.lose("b")
    run.obeys("a")
    run.ready("b", [part(3)], generation=1)
    assert run.killed() == "b"
    assert run.generation == 1
    run.obeys("b")
    assert run.generation == 2
    run.lose("b")
    run.obeys("a")
    run.ready("b", [part(3)], generation=None)
    assert run.generation == 3


def test_a_report_of_an_older_generation_leads_to_its_death() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.exits("b")
    run.obeys("a")
    assert run.generation == 2
    run.of_rank(e.StepDone, "b", generation=1, step=4, seconds=1.0)
    assert [(kill.node, kill.generation) for kill in run.last(c.KillRank)] == [("b", 1)]
    run.goes()
    run.step(4)
    assert not run.last(c.KillRank)
    run.exits("b")
    run.obeys("a")
    assert run.generation == 2  # that one has not been reported dead yet
    run.obeys("b", generation=1)
    assert run.generation == 3


def test_after_a_restart_ranks_of_the_last_coordinator_live_as_long_as_its_lease() -> None:
    first = TrainRun("ab").begin(steps=3)
    run = TrainRun("ab", memory=first.memory, now=50.0, policy=RecoveryPolicy(return_seconds=0.5))
    run.ready("a", [part(3)], generation=1)
    assert run.killed() == "a"
    run.obeys("a", generation=1)
    run.pass_time(POLICY.lease_seconds + POLICY.fence_margin_seconds - 0.5)
    assert not run.starts
    run.pass_time(0.5)
    assert run.running == "a"
    assert (run.generation, run.starts[0].spec.start_step) == (2, 3)


# --- noticing


def test_a_step_may_take_three_times_the_slowest_and_five_seconds_in_any_case() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.pass_time(5.0)
    assert not run.last(c.KillRank)
    run.pass_time(0.5)
    assert run.killed() == "ab"
    slow = TrainRun("ab").begin(steps=1)
    slow.step(2, seconds=4.0)
    slow.pass_time(12.0)
    assert not slow.last(c.KillRank)
    slow.pass_time(0.5)
    assert slow.killed() == "ab"


@pytest.mark.parametrize("section", ["reference", "snapshot", "evaluate", "generate", "save"])
def test_every_section_has_its_limit(section: str) -> None:
    run = TrainRun("ab").begin(steps=1)
    run.section("ab", section)  # type: ignore[arg-type]
    limit = POLICY.sections.of(section, 1.0)  # type: ignore[arg-type]
    run.pass_time(limit)
    assert not run.last(c.KillRank)
    run.pass_time(0.5)
    assert run.killed() == "ab"
    assert f"no progress in {section}" in run.notes()


def test_a_rank_that_loads_for_too_long_is_killed_and_the_one_that_waits_for_it_is_not_to_blame() -> None:
    run = TrainRun("ab")
    run.ready("ab")
    run.of_rank(e.RankLoaded, "a")
    run.pass_time(POLICY.sections.load_seconds + 0.5)
    assert run.killed() == "ab"
    assert "the rank on b made no progress in load" in run.notes()


def test_ranks_that_cannot_join_are_killed() -> None:
    run = TrainRun("ab")
    run.ready("ab")
    run.of_rank(e.RankLoaded, "ab")
    run.pass_time(POLICY.sections.join_seconds + 0.5)
    assert run.killed() == "ab"


def test_the_rank_that_is_waited_for_is_to_blame_not_those_that_wait() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.section("a", "reduce")
    run.pass_time(5.5)
    generation = run.recovery.generation
    assert generation is not None
    assert list(generation.culprits) == ["b"]


def test_a_rank_that_says_it_gets_further_in_a_section_is_not_hung() -> None:
    run = TrainRun("ab").begin(steps=1)
    for _ in range(5):
        run.section("ab", "evaluate", patience=5.0)
        run.pass_time(4.5)
        assert not run.last(c.KillRank)
    run.section("a", "evaluate", patience=5.0)
    run.pass_time(1.0)
    assert run.killed() == "ab"
    assert "the rank on b made no progress in evaluate" in run.notes()


def test_who_waits_for_others_may_as_long_as_one_of_them_gets_further_but_not_when_all_wait() -> None:
    run = TrainRun("ab").begin(steps=1)
    run.section("a", "wait", patience=3600.0)
    for _ in range(5):
        run.section("b", "save", patience=10.0)
        run.pass_time(9.0)
        assert not run.last(c.KillRank)
    run.section("b", "wait", patience=3600.0)
    run.pass_time(5.0)
    assert not run.last(c.KillRank)
    run.pass_time(0.5)
    assert run.killed() == "ab"


def test_a_step_that_is_said_to_take_longer_may() -> None:
    """It has ten times the tokens of those before."""
    run = TrainRun("ab").begin(steps=3)
    run.section("ab", "step", step=3, patience=30.0)
    run.pass_time(30.0)
    assert not run.last(c.KillRank)
    run.pass_time(0.5)
    assert run.killed() == "ab"


def test_a_coordinator_that_slept_blames_nobody() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.now += 60.0
    run.handle(e.Stalled(at=run.now, gap=59.5))
    run.pass_time(0.5)
    assert not run.last(c.KillRank)
    run.step(4)
    assert run.generation == 1


def test_a_daemon_without_the_rank_that_it_should_have_ends_the_generation() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.ready("b", [part(3)], generation=None)
    assert run.killed() == "ab"


# --- who goes on


def test_waits_a_little_for_a_lost_node_and_then_goes_on_without_it() -> None:
    run = TrainRun("abc").begin(steps=3)
    run.lose("c")
    run.obeys("ab")
    run.pass_time(POLICY.return_seconds - 0.5)
    assert run.generation == 1
    run.pass_time(0.5)
    assert run.running == "ab"
    assert run.all(c.Replan)[-1].nodes == ("a", "b")


def test_a_lost_node_that_is_back_in_time_takes_part() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.lose("b")
    run.obeys("a")
    run.pass_time(6.0)
    run.ready("b", [part(3)])
    assert (run.generation, run.running) == (2, "ab")


def test_a_node_that_goes_while_states_are_fetched_is_waited_for_anew() -> None:
    run = TrainRun("ab").begin(steps=2)
    run.step(3)
    run.keep("a", part(3))
    run.exits("b")
    run.obeys("a")
    run.pass_time(POLICY.give_up_seconds * 2)  # it is large
    run.lose("b")
    run.pass_time(POLICY.return_seconds - 0.5)
    assert (run.generation, run.finish) == (1, None)
    run.ready("b", [part(3)])
    assert (run.generation, run.running) == (2, "ab")


def test_nodes_that_come_and_go_are_not_waited_for_for_ever() -> None:
    run = TrainRun("abc").begin(steps=3)
    run.lose("bc")
    run.obeys("a")
    for _ in range(int(POLICY.give_up_seconds / 8)):
        run.ready("b", [part(3)])
        run.pass_time(4.0)
        run.lose("b")
        run.pass_time(4.0)
    assert run.generation == 2


def test_a_node_that_said_goodbye_is_not_waited_for() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.lose("b", clean=True)
    run.obeys("a")
    assert (run.generation, run.running) == (2, "a")


def test_a_node_that_comes_back_joins_at_the_next_checkpoint() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.lose("b", clean=True)
    run.obeys("a")
    run.goes()
    run.ready("b")
    assert not run.last(c.AskStop)
    run.step(4)
    run.keep("a", part(4, generation=2))
    assert not run.last(c.AskStop)
    run.keep("a", part(4, generation=2, kind="checkpoint"))
    assert [(ask.generation, ask.nodes) for ask in run.last(c.AskStop)] == [(2, ("a",))]
    run.step(5)
    run.keep("a", part(5, generation=2, kind="checkpoint"))
    run.ends("a", step=5, complete=False)
    assert run.last(c.Fetch)[0].node == "b"  # it gets what it lacks first
    run.event(e.PartFetched, "b", part=part(5, generation=2, kind="checkpoint"))
    assert (run.generation, run.running) == (3, "ab")
    assert run.starts[1].spec.start_step == 5


def test_a_node_without_which_the_world_is_as_good_changes_nothing() -> None:
    run = TrainRun("ab", parallel="single").begin(steps=3)
    run.lose("b")
    run.ready("b")
    run.keep("a", part(4, kind="checkpoint"))
    assert not run.all(c.AskStop)


def test_a_node_that_takes_no_part_is_not_waited_for() -> None:
    run = TrainRun("ab")
    run.ready("a")
    run.bar("b")
    assert run.running == "a"


def test_where_nobody_takes_part_it_ends_at_once_and_says_why() -> None:
    run = TrainRun("ab")
    run.bar("a")
    assert run.finish is None  # b may still come
    run.bar("b", reason="no room for the model\n  fix: free some disk")
    assert run.finish is not None
    assert run.finish.state == "incomplete"
    assert "a takes no part: it is held by another run" in run.finish.reason
    assert "b takes no part: no room for the model" in run.finish.reason


def test_a_world_that_cannot_be_the_same_again_ends_at_once() -> None:
    run = TrainRun("ab", reproducible=True).begin(steps=3)
    run.bar("b")
    run.obeys("a")
    assert run.finish is None  # b's rank may live
    run.pass_time(POLICY.lease_seconds + POLICY.fence_margin_seconds)
    assert run.finish is not None
    assert run.finish.state == "incomplete"
    assert "b takes no part" in run.finish.reason


def test_a_group_that_lacks_a_node_that_takes_no_part_ends_at_once() -> None:
    run = TrainRun("ab", parallel="sharded", least=2)
    run.ready("a")
    run.bar("b")
    run.pass_time(0.5)
    assert run.finish is not None
    assert run.finish.state == "incomplete"


def test_reproducible_waits_for_the_same_world_and_then_gives_up() -> None:
    run = TrainRun("ab", reproducible=True).begin(steps=3)
    run.lose("b", clean=True)
    run.obeys("a")
    run.pass_time(POLICY.same_world_seconds - 1)
    assert (run.generation, run.finish) == (1, None)
    run.pass_time(2)
    assert run.finish is not None
    assert run.finish.state == "incomplete"
    assert "b: the same world is asked for" in run.finish.reason


def test_reproducible_waits_as_long_as_is_asked() -> None:
    run = TrainRun("ab", reproducible=True, wait_seconds=20.0).begin(steps=3)
    run.lose("b", clean=True)
    run.obeys("a")
    run.pass_time(19)
    assert run.finish is None
    run.pass_time(2)
    assert run.finish is not None
    assert run.finish.state == "incomplete"


@pytest.mark.parametrize("back", [True, False])
def test_another_sitting_waits_as_long_for_a_node_that_is_away(back: bool) -> None:
    """The coordinator was killed with b: it finds a alone, which would be enough."""
    asked: dict[str, Any] = {"reproducible": True, "wait_seconds": 60.0, "least_nodes": 1}
    first = TrainRun("ab", **asked).begin(steps=3)
    run = TrainRun("a", memory=first.memory, now=50.0, **asked)
    run.ready("a", [part(3)])
    run.pass_time(58)
    assert (run.starts, run.finish) == ([], None)
    if back:
        run.ready("b", [part(3)])
    else:
        run.pass_time(8)  # it counts from when b's rank is dead for certain
    assert (run.generation, run.running) == (2, "ab" if back else "a")


def test_reproducible_goes_on_with_fewer_if_they_are_enough_and_the_others_stayed_away() -> None:
    run = TrainRun("ab", reproducible=True, wait_seconds=20.0, least_nodes=1).begin(steps=3)
    run.lose("b", clean=True)
    run.obeys("a")
    run.pass_time(19)
    assert (run.generation, run.finish) == (1, None)
    run.pass_time(2)
    assert (run.generation, run.running, run.starts[0].spec.start_step) == (2, "a", 3)
    assert "b stayed away: it goes on without" in run.notes()
    run.ready("b", [part(3)])  # too late: what comes out is not to change once more
    run.goes()
    run.step(4)
    assert (run.running, run.memory.world and run.memory.world.nodes) == ("a", ("a",))
    run.exits("a")
    run.pass_time(1)
    assert (run.generation, run.running) == (3, "a")


def test_reproducible_is_the_same_world_if_the_node_comes_back_in_time() -> None:
    run = TrainRun("ab", reproducible=True, wait_seconds=20.0, least_nodes=1).begin(steps=3)
    before = run.starts[0].spec.world
    for _ in range(2):
        run.lose("b", clean=True)
        run.obeys("a")
        run.pass_time(15)
        run.ready("b", [part(3)])
        assert run.starts[0].spec.world == before
        run.goes()
    assert run.generation == 3


def test_reproducible_does_not_wait_for_a_node_that_takes_no_part_if_the_others_are_enough() -> None:
    run = TrainRun("ab", reproducible=True, least_nodes=1).begin(steps=3)
    run.bar("b")
    run.obeys("a")
    run.pass_time(POLICY.lease_seconds + POLICY.fence_margin_seconds + POLICY.return_seconds)
    assert (run.generation, run.running, run.finish) == (2, "a", None)


def test_reproducible_with_too_few_gives_up() -> None:
    run = TrainRun("abc", reproducible=True, wait_seconds=20.0, least_nodes=2).begin(steps=3)
    run.lose("bc", clean=True)
    run.obeys("a")
    run.pass_time(21)
    assert run.finish is not None
    assert run.finish.state == "incomplete"


def test_reproducible_goes_on_with_exactly_the_same_plan() -> None:
    run = TrainRun("ab", reproducible=True).begin(steps=3)
    before = run.starts[0].spec.world
    run.lose("b")
    run.obeys("a")
    run.pass_time(100.0)
    run.ready("b", [part(3)])
    assert run.starts[0].spec.world == before
    assert len(run.all(c.Replan)) == 1


def test_a_group_that_cannot_do_with_fewer_waits_says_so_and_ends_incomplete() -> None:
    run = TrainRun("ab", parallel="tensor", least=2).begin()
    run.lose("b")
    run.obeys("a")
    run.pass_time(POLICY.return_seconds)
    assert "waiting for b: without it 1 nodes are too few" in run.notes()
    run.pass_time(POLICY.give_up_seconds)
    assert run.finish is not None
    assert run.finish.state == "incomplete"
    assert "1 nodes are too few" in run.finish.reason


def test_a_run_that_cannot_be_planned_with_all_nodes_has_failed() -> None:
    run = TrainRun("ab", least=3)
    run.ready("ab")
    assert run.finish == c.Finish(state="failed", reason="2 nodes are too few")


def test_a_node_whose_rank_survives_sigkill_needs_a_reboot_and_is_used_again_after_it() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.ready("b", [part(3)], generation=1, boot="monday")
    run.exits("a")
    run.obeys("b", wedged=True)
    assert [(command.node, "reboot" in command.reason) for command in run.last(c.Quarantine)] == [("b", True)]
    assert run.running == "a"
    run.goes()
    run.lose("b")
    run.ready("b", boot="monday")
    assert not run.last(c.Replan)
    run.lose("b")
    run.ready("b", boot="tuesday")
    assert run.last(c.Replan)[0].nodes == ("a", "b")


def test_a_node_that_never_reports_its_rank_dead_needs_a_reboot() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.exits("a")
    run.pass_time(POLICY.kill_patience_seconds + 1)
    assert [command.node for command in run.all(c.Quarantine)] == ["b"]
    assert run.running == "a"


def crash_again_and_again(run: TrainRun, node: str, times: int) -> None:
    for _ in range(times):
        others = run.running.replace(node, "")
        run.exits(node)
        run.obeys(others)


def test_a_node_whose_ranks_keep_crashing_alone_is_set_aside() -> None:
    run = TrainRun("ab").begin(steps=3)
    crash_again_and_again(run, "b", POLICY.strikes_to_set_aside)
    assert [command.node for command in run.all(c.Quarantine)] == ["b"]
    assert run.running == "a"


def test_those_that_lost_a_peer_are_not_to_blame() -> None:
    run = TrainRun("ab").begin(steps=3)
    for _ in range(POLICY.strikes_to_set_aside):
        run.fails("b", "peer")  # b is the first to say something
        run.exits("b", "exit 3")
        run.exits("a")
    assert [command.node for command in run.all(c.Quarantine)] == ["a"]


def test_a_node_that_the_others_cannot_do_without_is_taken_back() -> None:
    run = TrainRun("ab", parallel="tensor", least=2).begin(steps=0)
    crash_again_and_again(run, "b", POLICY.strikes_to_set_aside)
    assert [command.node for command in run.all(c.Quarantine)] == ["b"]
    run.pass_time(0.5)
    assert "b is taken back" in run.notes()
    assert run.running == "ab"


def test_tries_without_a_new_step_are_counted() -> None:
    run = TrainRun("a").begin(steps=3)
    crash_again_and_again(run, "a", POLICY.relaunches)
    assert run.finish is None
    run.goes()
    run.step(4)
    crash_again_and_again(run, "a", POLICY.relaunches)
    assert run.finish is None
    run.exits("a", "killed by signal 11")
    assert run.finish is not None
    assert run.finish.state == "incomplete"
    assert "6 tries in a row without a new step" in run.finish.reason
    assert "killed by signal 11" in run.finish.reason


def test_what_no_other_try_would_mend_ends_the_run() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.keep("a", part(3, kind="checkpoint"))
    run.fails("a", "not-finite", "the loss of step 4 is no number, rows 3, 7", fatal=True)
    assert run.killed() == "ab"
    run.obeys("ab")
    assert run.finish is None  # the good checkpoint is being stored
    run.handle(e.CheckpointStored(at=run.now, step=3, parts=(part(3, kind="checkpoint"),)))
    assert run.finish == c.Finish(state="failed", reason="the loss of step 4 is no number, rows 3, 7")


# --- from where


def test_starts_from_the_newest_step_that_is_there_whole_and_nodes_fetch_what_they_lack() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.step(4)
    run.keep("a", part(4))
    run.exits("b")
    run.obeys("a")
    assert [(fetch.node, fetch.part.step, fetch.source) for fetch in run.last(c.Fetch)] == [("b", 4, "a")]
    assert run.generation == 1
    run.event(e.PartFetched, "b", part=part(4))
    assert [start.spec.start for start in run.starts] == [(part(4),), (part(4),)]


def test_a_state_in_parts_is_whole_only_with_all_of_them() -> None:
    run = TrainRun("ab", parallel="sharded").begin()
    for step in (1, 2):
        run.step(step)
        run.keep("a", part(step, 0, of=2))
    run.keep("b", part(1, 1, of=2))
    run.exits("b")
    run.obeys("a")
    assert {(fetch.node, fetch.part.step, fetch.part.part) for fetch in run.all(c.Fetch)} >= {("a", 1, 1), ("b", 1, 0)}
    run.event(e.PartFetched, "a", part=part(1, 1, of=2))
    run.event(e.PartFetched, "b", part=part(1, 0, of=2))
    assert run.starts[0].spec.start_step == 1
    assert [each.part for each in run.starts[0].spec.start] == [0, 1]


def test_parts_of_different_generations_are_never_mixed() -> None:
    """Their step is the same, their rounding may not be."""
    run = TrainRun("ab", parallel="sharded")
    held = {"a": [part(5, 0, of=2, generation=1)], "b": [part(5, 1, of=2, generation=2)]}
    held["a"].append(part(4, 0, of=2, generation=1))
    held["b"].append(part(4, 1, of=2, generation=1))
    for node, parts in held.items():
        run.ready(node, parts)
    assert {fetch.part.step for fetch in run.all(c.Fetch)} == {4}


def test_a_checkpoint_in_the_run_folder_is_fetched_where_nodes_have_nothing() -> None:
    stored = part(20, kind="checkpoint")
    run = TrainRun("a", memory=RunMemory(generation=4, any_state=True), checkpoints=[stored], now=9.0)
    run.ready("a")
    assert [(fetch.node, fetch.part, fetch.source) for fetch in run.last(c.Fetch)] == [("a", stored, None)]


def test_a_damaged_part_is_dropped_and_the_step_before_is_used() -> None:
    run = TrainRun("ab").begin(steps=2)
    run.step(3)
    run.keep("a", part(3))
    run.exits("b")
    run.obeys("a")
    run.event(e.FetchFailed, "b", part=part(3), source="a", reason="its digest is wrong", corrupt=True)
    assert [(drop.node, drop.parts) for drop in run.last(c.DropParts)] == [("a", (part(3),))]
    assert run.starts[0].spec.start_step == 2


def test_a_state_that_a_rank_cannot_load_is_fetched_again_and_given_up_if_that_does_not_help() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.exits("a")
    run.obeys("b")
    run.fails("b", e.STATE_CODE, "snapshot-3 is damaged")
    run.exits("b", "exit 3")
    run.obeys("a")
    assert [(fetch.node, fetch.part.step, fetch.source) for fetch in run.last(c.Fetch)] == [("b", 3, "a")]
    run.event(e.PartFetched, "b", part=part(3))
    assert run.starts[0].spec.start_step == 3
    run.fails("b", e.STATE_CODE, "snapshot-3 is of no use")
    run.exits("b", "exit 3")
    run.obeys("a")
    assert run.starts[0].spec.start_step == 2
    assert not run.all(c.Quarantine)


def test_a_damaged_part_that_is_listed_again_is_dropped_again() -> None:
    """The order to drop it may have been lost with the stream, and a failure is said again over the next."""
    run = TrainRun("ab").begin(steps=3)
    run.exits("a")
    run.obeys("b")
    run.fails("b", e.STATE_CODE, "snapshot-3 is damaged")
    run.ready("b", [part(2), part(3)])
    assert [(drop.node, drop.parts) for drop in run.last(c.DropParts)] == [("b", (part(3),))]
    run.fails("b", e.STATE_CODE, "snapshot-3 is damaged")
    run.exits("b", "exit 3")
    run.keep("b", part(3))  # of before it failed
    run.obeys("a")
    assert [(fetch.node, fetch.part.step, fetch.source) for fetch in run.last(c.Fetch)] == [("b", 3, "a")]
    run.keep("b", part(3))  # said once more, while a sound copy is on its way
    assert not run.last(c.StartRank)
    run.event(e.PartFetched, "b", part=part(3))
    assert [start.spec.start_step for start in run.last(c.StartRank)] == [3, 3]


def test_a_fetch_that_fails_on_the_way_is_tried_again_from_elsewhere() -> None:
    run = TrainRun("abc").begin(steps=1)
    run.step(2)
    run.keep("ab", part(2))
    run.exits("c")
    run.obeys("ab")
    assert run.last(c.Fetch)[0].source == "a"
    run.event(e.FetchFailed, "c", part=part(2), source="a", reason="no answer")
    assert not run.last(c.Fetch)
    run.pass_time(POLICY.transfer_again_seconds)
    assert [(fetch.node, fetch.source) for fetch in run.last(c.Fetch)] == [("c", "b")]


def test_a_fetch_that_a_broken_stream_may_have_lost_is_said_again() -> None:
    run = TrainRun("ab").begin(steps=1)
    run.step(2)
    run.keep("a", part(2))
    run.exits("b")
    run.obeys("a")
    run.ready("b", [part(1)])
    assert [fetch.node for fetch in run.last(c.Fetch)] == ["b"]


def test_never_from_nothing_while_a_state_may_be_on_a_node_that_is_not_there() -> None:
    memory = TrainRun("ab").begin(steps=3).memory
    run = TrainRun("ab", memory=memory, now=9.0)
    run.ready("a")
    run.pass_time(POLICY.return_seconds + 10.0)
    assert not run.starts
    assert "b: what is left of the run's states can only be there" in run.notes()
    run.ready("b", [part(3)])
    run.event(e.PartFetched, "a", part=part(3))
    assert run.starts[0].spec.start_step == 3
    alone = TrainRun("ab", memory=memory, now=9.0)
    alone.ready("a")
    alone.pass_time(POLICY.give_up_seconds + 10.0)
    assert alone.finish is not None
    assert alone.finish.state == "incomplete"


def test_a_node_that_only_had_copies_is_not_forgotten() -> None:
    run = TrainRun("ab", parallel="single").begin()
    run.step(1)
    run.keep("a", part(1))
    run.event(e.PartFetched, "b", part=part(1))
    assert run.memory.nodes == ("a", "b")
    again = TrainRun("ab", parallel="single", memory=run.memory, now=9.0)
    again.ready("a")
    again.pass_time(POLICY.return_seconds + 10)
    assert not again.starts
    again.ready("b", [part(1)])
    assert [(fetch.node, fetch.source) for fetch in again.last(c.Fetch)] == [("a", "b")]


def test_a_state_whose_parts_were_never_seen_together_may_exist_all_the_same() -> None:
    run = TrainRun("ab", parallel="sharded", policy=RecoveryPolicy(return_seconds=0.5)).begin()
    run.keep("a", part(1, 0, of=2))
    run.lose("b")  # before it could say that it has the other
    run.obeys("a")
    run.lose("a")
    run.ready("b", [part(1, 1, of=2)])
    run.pass_time(30.0)
    assert run.generation == 1
    assert "a: what is left of the run's states can only be there" in run.notes()


def test_from_nothing_when_all_that_there_was_proved_damaged_and_says_so() -> None:
    run = TrainRun("a", memory=RunMemory(generation=3, nodes=("a",), any_state=True), now=9.0)
    run.ready("a")
    assert run.starts[0].spec.start_step == 0
    assert "it begins again" in run.notes()


def test_a_stale_report_does_not_hide_the_part_that_replaced_what_it_is_of() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.exits("b")
    run.obeys("a")
    run.goes()
    newer = part(4, generation=2, digest="again")
    run.keep("ab", newer)
    run.keep("a", part(4, digest="old"))
    run.exits("b")
    run.obeys("a")
    assert run.starts[0].spec.start == (newer,)


# --- what is kept


def test_the_two_newest_whole_states_are_kept() -> None:
    run = TrainRun("ab").begin(steps=2)
    assert not run.all(c.DropParts)
    run.step(3)
    run.keep("a", part(3))
    assert {(drop.node, drop.parts) for drop in run.last(c.DropParts)} == {("a", (part(1),)), ("b", (part(1),))}


def test_a_newer_state_that_is_not_whole_drops_nothing() -> None:
    run = TrainRun("ab", parallel="sharded").begin()
    for step in (1, 2):
        run.keep("a", part(step, 0, of=2))
        run.keep("b", part(step, 1, of=2))
    run.keep("a", part(3, 0, of=2))
    assert not run.all(c.DropParts)


def test_parts_that_only_one_node_has_are_copied_to_a_peer_one_state_at_a_time() -> None:
    run = TrainRun("ab", parallel="sharded").begin()
    run.keep("a", part(1, 0, of=2))
    run.keep("b", part(1, 1, of=2))
    assert {(fetch.node, fetch.part.part, fetch.source) for fetch in run.all(c.Fetch)} == {("b", 0, "a"), ("a", 1, "b")}
    run.keep("a", part(2, 0, of=2))
    run.keep("b", part(2, 1, of=2))
    assert len(run.all(c.Fetch)) == 2
    run.event(e.PartFetched, "b", part=part(1, 0, of=2))
    run.event(e.PartFetched, "a", part=part(1, 1, of=2))
    assert {fetch.part.step for fetch in run.last(c.Fetch)} == {2}


def test_the_newest_state_that_would_outlast_any_node_is_kept_until_there_is_a_newer_one() -> None:
    run = TrainRun("ab", parallel="sharded").begin()
    for step in (1, 2, 3, 4):
        run.keep("a", part(step, 0, of=2))
        run.keep("b", part(step, 1, of=2))
        if step == 1:
            run.event(e.PartFetched, "b", part=part(1, 0, of=2))
            run.event(e.PartFetched, "a", part=part(1, 1, of=2))
    assert 1 not in {each.step for drop in run.all(c.DropParts) for each in drop.parts}
    run.lose("b")
    run.obeys("a")
    run.pass_time(POLICY.return_seconds)
    assert run.starts[0].spec.start_step == 1
    assert run.running == "a"


def test_replicas_need_no_copies() -> None:
    assert not TrainRun("ab").begin(steps=3).all(c.Fetch)


def test_a_whole_checkpoint_goes_to_the_run_folder_and_a_failure_to_store_it_stops_nothing() -> None:
    run = TrainRun("ab").begin(steps=1)
    run.keep("a", part(1, kind="checkpoint"))
    assert [(store.step, store.parts) for store in run.last(c.Store)] == [(1, (("a", part(1, kind="checkpoint")),))]
    run.handle(e.StoreFailed(at=run.now, step=1, reason="disk full"))
    assert "checkpoint 1 was not stored: disk full" in run.notes()
    run.step(2)
    run.keep("a", part(2, kind="checkpoint"))
    run.pass_time(POLICY.transfer_again_seconds)
    assert [store.step for store in run.last(c.Store)] == [2]


# --- its KL


def test_over_its_kl_budget_a_run_goes_back_to_where_it_was_within() -> None:
    run = TrainRun("ab", kl_budget=0.1).begin(steps=2)
    run.handle(e.KlMeasured(at=run.now, generation=1, step=2, kl=0.05))
    for step in (3, 4, 5, 6):
        run.step(step)
        run.keep("ab", part(step))
    run.handle(e.KlMeasured(at=run.now, generation=1, step=6, kl=0.2))
    assert run.memory.go_backs == (GoBack(generation=1, step=2),)  # newer ones were kept, and it was all the same
    assert {each.step for drop in run.all(c.DropParts) for each in drop.parts} == {1, 3, 4, 5, 6}
    run.obeys("ab")
    spec = run.starts[0].spec
    assert (spec.start_step, spec.learning_rate_factor, spec.beta_factor) == (2, 0.5, 2.0)
    assert spec.schedule_start == 2


def test_over_its_kl_budget_from_the_beginning_a_run_begins_again() -> None:
    run = TrainRun("ab", kl_budget=0.1).begin(steps=2)
    run.handle(e.KlMeasured(at=run.now, generation=1, step=2, kl=0.2))
    assert run.memory.go_backs == (GoBack(generation=1, step=0),)
    run.obeys("ab")
    assert run.starts[0].spec.start_step == 0


def test_the_last_checkpoint_within_the_kl_budget_is_used_and_what_came_after_it_never_is() -> None:
    stored = part(2, kind="checkpoint")
    run = TrainRun("ab", kl_budget=0.1, checkpoints=[stored]).begin()
    run.event(e.PartFetched, "ab", part=stored)
    run.goes()
    run.handle(e.KlMeasured(at=run.now, generation=1, step=3, kl=0.05))
    run.keep("a", part(4), part(5))
    run.handle(e.KlMeasured(at=run.now, generation=1, step=5, kl=0.2))
    run.lose("b")
    run.obeys("a")
    run.ready("b", [stored, part(5)])  # it was not there when the others dropped theirs
    assert [(drop.node, drop.parts) for drop in run.last(c.DropParts)] == [("b", (part(5),))]
    assert run.starts[0].spec.start == (stored,)


def test_over_its_kl_budget_a_run_stops_if_that_is_what_was_asked() -> None:
    run = TrainRun("ab", kl_budget=0.1, kl_action="stop").begin(steps=2)
    run.handle(e.KlMeasured(at=run.now, generation=1, step=1, kl=0.05))
    run.handle(e.KlMeasured(at=run.now, generation=1, step=2, kl=0.2))
    run.obeys("ab")
    assert run.finish is not None
    assert run.finish.state == "failed"
    assert "KL 0.2000 after step 2 is over the budget of 0.1; it was within up to step 1" in run.finish.reason


# --- shares


def test_shares_shift_with_the_measured_speeds_unless_the_run_is_reproducible() -> None:
    shares = e.SharesMeasured(at=9.0, generation=1, shares=(0.6, 0.4), reason="b is slower")
    run = TrainRun("ab").begin(steps=1)
    run.handle(shares)
    assert run.all(c.ShiftShares) == [c.ShiftShares(generation=1, version=1, shares=(0.6, 0.4), reason="b is slower")]
    run = TrainRun("ab", reproducible=True).begin(steps=1)
    run.handle(shares)
    assert not run.all(c.ShiftShares)


# --- the best checkpoint


def evaluated_and_kept(run: TrainRun, step: int, loss: float) -> None:
    run.step(step)
    run.handle(e.LossMeasured(at=run.now, generation=run.generation, step=step, loss=loss))
    run.keep("a", part(step, kind="checkpoint"))


def test_the_best_checkpoint_is_stored_however_many_came_after_it_while_storing_was_slow() -> None:
    run = TrainRun("ab").begin()
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5), (4, 2.6), (5, 2.0)):
        evaluated_and_kept(run, step, loss)
    assert (run.memory.best_step, run.memory.best_loss) == (2, 2.0)
    assert [store.step for store in run.all(c.Store)] == [1]  # and takes its time
    dropped = {each.step for drop in run.all(c.DropParts) for each in drop.parts}
    assert 3 in dropped
    assert 2 not in dropped
    run.handle(e.CheckpointStored(at=run.now, step=1, parts=(part(1, kind="checkpoint"),)))
    run.handle(e.CheckpointStored(at=run.now, step=2, parts=(part(2, kind="checkpoint"),)))
    assert [store.step for store in run.all(c.Store)] == [1, 2, 5]
    run.keep("a", part(6, kind="checkpoint"))
    assert {each.step for drop in run.last(c.DropParts) for each in drop.parts} == {1, 4}


def test_a_run_is_complete_once_its_best_checkpoint_is_stored_too() -> None:
    run = TrainRun("ab", steps=3).begin()
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5)):
        evaluated_and_kept(run, step, loss)
    run.ends("ab", step=3)
    for step in (1, 3):
        run.handle(e.CheckpointStored(at=run.now, step=step, parts=(part(step, kind="checkpoint"),)))
    assert [store.step for store in run.all(c.Store)] == [1, 3, 2]
    assert run.finish is None
    run.handle(e.CheckpointStored(at=run.now, step=2, parts=(part(2, kind="checkpoint"),)))
    assert run.finish == c.Finish(state="complete", reason="all is done after step 3")


def test_a_best_checkpoint_that_cannot_be_stored_does_not_keep_a_run_from_its_end() -> None:
    run = TrainRun("ab", steps=2).begin()
    for step, loss in ((1, 2.0), (2, 2.5)):
        evaluated_and_kept(run, step, loss)
    run.ends("ab", step=2)
    for _ in range(POLICY.transfer_attempts):
        run.handle(e.StoreFailed(at=run.now, step=1, reason="the disk is full"))
        run.pass_time(POLICY.transfer_again_seconds + 0.5)
    run.handle(e.CheckpointStored(at=run.now, step=2, parts=(part(2, kind="checkpoint"),)))
    run.lose("ab")
    run.pass_time(POLICY.transfer_seconds)
    assert run.finish is not None


def test_what_was_best_of_a_course_that_was_given_up_is_not_any_more() -> None:
    run = TrainRun("a", kl_budget=0.1).begin()
    evaluated_and_kept(run, 1, 3.0)
    run.handle(e.KlMeasured(at=run.now, generation=1, step=1, kl=0.05))
    evaluated_and_kept(run, 2, 1.0)
    run.handle(e.KlMeasured(at=run.now, generation=1, step=2, kl=0.5))
    assert (run.memory.best_step, run.memory.best_loss) == (0, None)
    run.obeys("a")
    run.goes()
    run.step(2)
    run.handle(e.LossMeasured(at=run.now, generation=2, step=2, loss=2.0))
    assert (run.memory.best_step, run.memory.best_loss) == (2, 2.0)


# --- the end


def test_complete_when_all_ranks_ended_with_equal_weights_and_the_last_checkpoint_is_stored() -> None:
    run = TrainRun("ab", steps=3).begin(steps=3)
    last = part(3, kind="checkpoint")
    run.keep("a", last)
    assert not run.all(c.Store)  # whether it is the last is not known before all ranks have ended
    run.ends("a", step=3)
    assert not run.all(c.Store)
    run.ends("b", step=3)
    assert run.memory.complete_step == 3
    assert [store.step for store in run.last(c.Store)] == [3]
    assert run.finish is None
    run.handle(e.CheckpointStored(at=run.now, step=3, parts=(last,)))
    assert run.finish == c.Finish(state="complete", reason="all is done after step 3")
    assert run.generation == 1


def test_replicas_that_end_with_different_weights_have_failed() -> None:
    run = TrainRun("ab", steps=3).begin(steps=3)
    run.ends("a", step=3, digest="0123")
    run.ends("b", step=3, digest="4567")
    assert run.finish is not None
    assert run.finish.state == "failed"
    assert "a 0123, b 4567" in run.finish.reason


def test_ranks_of_a_sharded_model_end_with_different_weights() -> None:
    run = TrainRun("ab", parallel="sharded", steps=3).begin()
    run.keep("a", part(3, 0, of=2, kind="checkpoint"))
    run.keep("b", part(3, 1, of=2, kind="checkpoint"))
    run.ends("a", step=3, digest="0123")
    run.ends("b", step=3, digest="4567")
    assert run.memory.complete_step == 3


def test_a_last_checkpoint_that_is_lost_is_made_again() -> None:
    run = TrainRun("ab", steps=3).begin(steps=3)
    run.keep("a", part(3, kind="checkpoint"))
    run.ends("ab", step=3)
    run.lose("a")
    run.handle(e.StoreFailed(at=run.now, step=3, reason="a does not answer"))
    run.pass_time(POLICY.return_seconds + 5)
    assert (run.running, run.starts[0].spec.start_step) == ("b", 3)


def test_after_hours_of_training_a_lost_node_is_still_waited_for() -> None:
    run = TrainRun("a", steps=3).begin(steps=3)
    for _ in range(10):
        run.now += 1000.0
        run.section("a", "evaluate", step=3)
    run.keep("a", part(3, kind="checkpoint"))
    run.ends("a", step=3)
    run.lose("a")
    run.handle(e.StoreFailed(at=run.now, step=3, reason="a does not answer"))
    run.pass_time(POLICY.give_up_seconds - 1)
    assert run.finish is None
    run.ready("a", [part(3, kind="checkpoint")])
    assert (run.generation, run.starts[0].spec.start_step) == (2, 3)


def test_a_last_checkpoint_that_is_found_damaged_is_made_again() -> None:
    run = TrainRun("ab", steps=3).begin(steps=3)
    last = part(3, kind="checkpoint")
    run.keep("a", last)
    run.ends("ab", step=3)
    run.new = []
    run.handle(e.StoreFailed(at=run.now, step=3, reason="its digest is wrong", corrupt=(("a", last),)))  # type: ignore[arg-type]
    assert [(drop.node, drop.parts) for drop in run.last(c.DropParts)] == [("a", (last,))]
    assert (run.generation, run.starts[0].spec.start) == (2, (part(3),))


def test_a_last_checkpoint_that_can_never_be_kept_ends_the_run() -> None:
    run = TrainRun("a", steps=3).begin(steps=3)
    for _ in range(POLICY.relaunches + 1):
        assert run.finish is None
        run.goes()
        run.ends("a", step=3)  # its disk is full: no PartKept
    assert run.finish is not None
    assert run.finish.state == "incomplete"
    assert "the last checkpoint could not be kept" in run.finish.reason


def test_one_rank_that_does_not_come_to_the_end_is_one_too_few() -> None:
    run = TrainRun("ab", steps=3).begin(steps=3)
    run.keep("a", part(3, kind="checkpoint"))
    run.ends("a", step=3)
    run.exits("b")
    assert run.memory.complete_step is None
    assert (run.generation, run.starts[0].spec.start_step) == (2, 3)


def test_a_restart_after_the_end_only_stores_what_is_still_to_be_stored() -> None:
    last = part(3, kind="checkpoint")
    memory = RunMemory(generation=1, nodes=("a", "b"), any_state=True, complete_step=3)
    assert TrainRun("ab", memory=memory, checkpoints=[last]).finish is not None
    run = TrainRun("ab", memory=memory)
    run.ready("a", [last])
    assert [store.step for store in run.last(c.Store)] == [3]


def test_interrupted_it_stops_after_a_step_with_a_checkpoint() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.new = []
    run.handle(e.StopAsked(at=run.now))
    assert [ask.nodes for ask in run.last(c.AskStop)] == [("a", "b")]
    run.step(4)
    run.keep("a", part(4, kind="checkpoint"))
    run.ends("ab", step=4, complete=False)
    assert run.finish is None
    run.handle(e.CheckpointStored(at=run.now, step=4, parts=(part(4, kind="checkpoint"),)))
    assert run.finish == c.Finish(state="incomplete", reason="interrupted; the same command goes on from here")


def test_interrupted_twice_or_for_too_long_its_ranks_are_killed() -> None:
    for impatient in (True, False):
        run = TrainRun("ab").begin(steps=3)
        run.handle(e.StopAsked(at=run.now))
        run.new = []
        if impatient:
            run.handle(e.StopAsked(at=run.now))
        else:
            run.section("ab", "save")
            run.pass_time(POLICY.stop_seconds + 5.0)
        assert run.killed() == "ab"
        run.obeys("ab")
        assert run.finish is not None
        assert run.finish.state == "incomplete"


def test_interrupted_before_its_first_step_a_generation_is_killed_at_once() -> None:
    """Reference log-probabilities and a first evaluation may take an hour, and nobody listens meanwhile."""
    run = TrainRun("ab").begin()
    run.section("ab", "reference", step=0)
    run.new = []
    run.handle(e.StopAsked(at=run.now))
    assert run.killed() == "ab"
    run.obeys("ab")
    assert run.finish is not None
    assert run.finish.state == "incomplete"


def test_interrupted_while_nothing_runs_it_ends_at_once() -> None:
    run = TrainRun("ab")
    run.ready("a")
    run.handle(e.StopAsked(at=run.now))
    assert run.finish is not None
    assert not run.recovery.apply(e.Tick(at=9.0))


def test_all_nodes_are_gone_for_good() -> None:
    run = TrainRun("ab").begin(steps=3)
    run.lose("ab")
    run.pass_time(POLICY.give_up_seconds + 10)
    assert run.finish is not None
    assert run.finish.state == "incomplete"
