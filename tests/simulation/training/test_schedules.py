"""Thousands of seeded training runs in which ranks crash, hang and wedge, nodes go and come back, disks fill and rot,
and the coordinator dies.

A failure prints its script, the end of its trace and the command that replays it.
"""

from __future__ import annotations

from collections import Counter
from typing import get_args

import orjson
import pytest

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain import recovery_events as e
from realign_cluster.domain.recovery import Recovery
from realign_cluster.domain.recovery_codec import decode, encode

from .replay import run_seed
from .script import policy_of
from .world import World

SHARDS = 10
SCHEDULES = 500  # per shard


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_schedule_comes_to_a_justified_end(shard: int) -> None:
    for seed in range(shard * SCHEDULES, (shard + 1) * SCHEDULES):
        run_seed(seed)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shard", range(20))
def test_soak(shard: int) -> None:
    for seed in range(1_000_000 + shard * 10_000, 1_000_000 + (shard + 1) * 10_000):
        run_seed(seed)


def test_the_schedules_meet_what_they_are_for() -> None:
    """A simulation in which nothing happens proves nothing."""
    seen: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in range(250):
        world = run_seed(seed)
        seen["sittings"] += world.sittings - 1
        seen["lost steps"] += sum(world.judge.steps_lost)
        seen["relaunches"] += len(world.judge.launched) - 1
        ends.update(finish.state for finish in world.ends)
        for event, commands in world.recorded:
            seen[type(event).__name__] += 1
            for command in commands:
                seen[type(command).__name__] += 1
                seen["fewer than the same world"] += "stayed away" in getattr(command, "text", "")
    kinds = {kind.__name__ for kind in (*get_args(e.Event), *get_args(c.Command))}
    assert kinds <= seen.keys()
    assert min(ends[state] for state in get_args(c.Outcome)) > 5
    assert min(seen["sittings"], seen["lost steps"], seen["relaunches"], seen["Quarantine"]) > 20
    assert seen["fewer than the same world"] > 2


def sittings(world: World) -> list[list[tuple[e.Event, tuple[c.Command, ...]]]]:
    found: list[list[tuple[e.Event, tuple[c.Command, ...]]]] = []
    for event, commands in world.recorded:
        if isinstance(event, e.Opened):
            found.append([])
        found[-1].append((event, commands))
    return found


def test_recorded_events_lead_to_the_same_commands() -> None:
    """Through the ledger's encoding, and without the ticks that led to nothing."""
    for seed in range(100):
        world = run_seed(seed)
        for recorded in sittings(world):
            events = [decode(orjson.loads(orjson.dumps(encode(event)))) for event, _ in recorded]
            assert isinstance(events[0], e.Opened)
            recovery = Recovery(events[0], policy_of(world.script))
            again = [recovery.apply(event) for event in events]  # type: ignore[arg-type]
            assert again == [commands for _, commands in recorded], f"seed {seed}"


def test_equal_seeds_give_equal_runs() -> None:
    for seed in (3, 7, 2024):
        assert run_seed(seed).recorded == run_seed(seed).recorded
