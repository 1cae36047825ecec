"""Runs with troubles of a known kind, told from the first node to the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from realign_cluster.domain import recovery_commands as c
from realign_cluster.domain.training import ParallelMode

from .script import Fault, NodeScript, Script
from .world import World

FOR_GOOD = 2500.0
CALM = Script(
    seed=1,
    nodes=(NodeScript("n0", 0.1, 1.0), NodeScript("n1", 0.1, 1.0), NodeScript("n2", 0.1, 1.0)),
    parallel="data",
    least_nodes=1,
    steps=8,
    step_seconds=1.0,
    checkpoint_every=3,
    snapshot_every=1,
    reproducible=False,
    faults=(),
    latency=0.01,
    spikes=0.0,
    resets=0.0,
)


def played(script: Script) -> World:
    world = World(script)
    world.run()
    return world


@pytest.mark.parametrize("node", ["n0", "n1", "n2"])
@pytest.mark.parametrize("at", [0.5, 6.0])
def test_a_node_that_the_others_do_not_reach_is_left_out_and_they_go_on(node: str, at: float) -> None:
    """All three daemons are heard all the time."""
    world = played(replace(CALM, faults=(Fault(at, "unlink", node, FOR_GOOD),)))
    assert [end.state for end in world.ends] == ["complete"]
    last = world.judge.launched[-1]
    assert node not in last.world.nodes or last.world.size == 1


@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_where_fewer_nodes_do_not_hold_the_model_it_is_tried_and_said(parallel: ParallelMode) -> None:
    script = replace(CALM, parallel=parallel, nodes=CALM.nodes[:2], least_nodes=2)
    world = played(replace(script, faults=(Fault(0.5, "unlink", "n1", FOR_GOOD),)))
    assert [end.state for end in world.ends] == ["incomplete", "complete"]  # the second after it was mended
    assert "tries in a row without a new step" in world.ends[0].reason
    notes = [each.text for _, commands in world.recorded for each in commands if isinstance(each, c.NoteLine)]
    assert any("is taken back, the others cannot go on alone" in note for note in notes)
