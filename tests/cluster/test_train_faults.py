"""Real kills in the middle of a real training: it goes on, and ends with the weights of an undisturbed one."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.cluster.kit import summary, wait_until
from tests.cluster.train_kit import (
    NODES,
    SAME,
    STEPS,
    Outcome,
    TrainCommands,
    held,
    history_of,
    ledger_of,
    lives,
    outcome,
    steps_lost,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

LOOKS = 1.0  # seconds: watchdogs look every quarter of a second, and so does the coordinator


@pytest.mark.soak
def test_a_rank_is_killed_and_the_next_ones_port_is_taken(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = commands.start(commands.command(train_rows, out, *SAME), out)
    run.reach(5)
    os.kill(commands.rank("alpha"), signal.SIGKILL)
    run.wait_for(lambda: run.generation == 2, "another generation")
    beta = run.wait_for(lambda: commands.cluster.daemons["beta"].rank_pids(), "its rank on beta")[0]
    with held(beta):  # Go cannot be said before it has loaded too

        def port_of_alpha() -> int | None:
            with ledger_of(out) as ledger:
                loaded = [
                    each for each in ledger.measurements("loaded") if (each.generation, each.node) == (2, "alpha")
                ]
            return loaded[0].body["port"] if loaded else None

        taken = socket.create_server(("127.0.0.1", run.wait_for(port_of_alpha, "the rank on alpha to be loaded")))
    with taken:
        run.wait_for(lambda: run.generation == 3, "a generation with other ports")
    said = run.finish()
    assert outcome(out) == calm_training
    assert "generation 1 cannot go on" in said  # whichever end of the broken link was heard first
    assert "generation 2 cannot go on" in said
    lost = steps_lost(out)
    assert len(lost) == 2
    assert max(lost) <= 1
    assert history_of(out).generations[1].start_step >= 4


@pytest.mark.soak
def test_a_daemon_is_killed_and_comes_back(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    """Its rank dies with it; the other one waits in vain and is ended; the same world goes on when it is back."""
    out = tmp_path / "run"
    run = commands.start(commands.command(train_rows, out, *SAME), out)
    run.reach(5)
    victim, rank = commands.cluster.daemons["beta"], commands.rank("beta")
    victim.kill()
    wait_until(lambda: not lives(rank), 5, "the end of the dead daemon's rank")
    victim.start()
    run.finish()
    assert outcome(out) == calm_training
    [lost] = steps_lost(out)
    assert lost <= 1
    assert history_of(out).generations[1].start_step >= 4


def test_the_coordinator_is_killed(
    commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path
) -> None:
    """Nobody leads the ranks any more: they end within five seconds. What they left is gone on from; also when the
    daemons go with the coordinator.
    """
    out = tmp_path / "run"
    command = commands.command(train_rows, out, *SAME)
    run = commands.start(command, out)
    run.reach(3)
    ranks = [commands.rank(node) for node in NODES]
    run.kill()
    killed_at = time.monotonic()
    wait_until(lambda: not any(lives(rank) for rank in ranks), 15, "the end of the ranks")
    gone_after = time.monotonic() - killed_at
    assert gone_after < 5.0
    kept = [next(iter(commands.states(out, node))) for node in NODES]
    assert min(kept) >= 3

    again = commands.resume(out)
    again.wait_for(lambda: again.generation == 2, "another generation")
    assert again.commands("StartRank")[-1][1]["spec"]["start_step"] == max(kept)
    again.reach(min(STEPS, max(kept) + 2), generation=2)
    again.kill()
    for daemon in commands.cluster.daemons.values():
        daemon.kill()

    for daemon in commands.cluster.daemons.values():
        daemon.start()
    commands.start(command, out).finish()
    assert outcome(out) == calm_training
    assert summary(out)["resumed"] == 2
    assert max(steps_lost(out)) <= 1


def test_a_rank_is_stopped(commands: TrainCommands, train_rows: Path, calm_training: Outcome, tmp_path: Path) -> None:
    """SIGSTOP: alive, connected, and without progress. The other one waits within a collective."""
    out = tmp_path / "run"
    run = commands.start(commands.command(train_rows, out, *SAME), out)
    run.reach(5)
    rank = commands.rank("alpha")
    os.kill(rank, signal.SIGSTOP)
    stopped_at = time.time()
    kills = run.wait_for(lambda: run.commands("KillRank"), "an end of the generation")
    run.finish()
    assert outcome(out) == calm_training
    history = history_of(out)
    slowest = max(step.seconds for step in history.steps if step.generation == 1)
    assert kills[0][0] - stopped_at < max(5.0, 3 * slowest) + LOOKS
    assert not lives(rank)
    [lost] = steps_lost(out)
    assert lost <= 1
