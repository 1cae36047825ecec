"""Kills in every phase of a training, by chance: each is recovered from, with the weights of an undisturbed run."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from tests.cluster.conftest import made_rows
from tests.cluster.kit import CurateCluster, write_rows
from tests.cluster.train_kills import (
    PHASES,
    Hit,
    Kill,
    Recovered,
    Victim,
    cold_start,
    costs,
    drawn,
    place_in,
    run_with_kills,
    table,
)
from tests.cluster.train_kit import NodeProcesses, Outcome, TrainCommands, Training, history_of, outcome

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

TRAINING = (
    *("--global-batch", "64", "--learning-rate", "1e-3", "--fine-tune", "full", "--parallel", "data"),
    *("--reproducible", "--snapshot-every", "1", "--checkpoint-every", "4", "--evaluate-every", "5"),
)
VICTIMS: tuple[Victim, ...] = ("rank", "daemon", "coordinator")


class ClusterGround(NodeProcesses):
    """Daemons of a cluster on this machine."""

    def __init__(self, commands: TrainCommands, nodes: tuple[str, ...], folder: Path, steps: int) -> None:
        super().__init__(commands.cluster)
        self.nodes = nodes
        self._commands = commands
        self._folder = folder
        self._hosts = commands.cluster.hostfile(*nodes)
        self._options = (*TRAINING, "--steps", str(steps), "--valid", str(folder / "valid.jsonl"))
        rows = made_rows(460)
        self._data = write_rows(folder / "rows.jsonl", rows[:300])
        write_rows(folder / "valid.jsonl", rows[300:])

    def begin(self, run: str) -> Training:
        out = self._folder / run
        return self._commands.start(self._commands.command(self._data, out, *self._options, hosts=self._hosts), out)

    def bring_back(self, victim: Victim, node: str, training: Training) -> Training:
        if victim == "daemon":
            self._daemons[node].start()
        return self.begin(training.folder.name) if victim == "coordinator" else training


def undisturbed(ground: ClusterGround) -> Outcome:
    calm = ground.begin("calm")
    calm.finish()
    return outcome(calm.folder)


def judge(training: Training, hits: list[Hit], expected: Outcome) -> list[Recovered]:
    """All of it was recovered from, at no more than the step that each kill fell into."""
    assert outcome(training.folder) == expected
    found = costs(training, hits)
    for each in found:
        assert each.lost <= 1 + each.left_out, table(found)
        if each.hit.kill.victim == "rank":
            kill = each.hit.kill
            assert place_in(kill.phase, training, kill.node, each.hit.generation), f"it went on: {table([each])}"
    starts = [generation.start_step for generation in history_of(training.folder).generations]
    assert all(step > 0 for step in starts[1:]) or hits[0].kill.phase == "load", starts
    return found


@pytest.mark.soak
def test_a_kill_in_every_phase(pair: CurateCluster, tmp_path: Path) -> None:
    kills = [
        Kill(phase="reduce", victim="rank", node="alpha", away=0.0),
        Kill(phase="load", victim="rank", node="beta", away=0.0),
        Kill(phase="snapshot", victim="daemon", node="beta", away=0.0),
        Kill(phase="evaluate", victim="coordinator", node="alpha", away=1.0),
        Kill(phase="save", victim="rank", node="beta", away=0.0),
    ]
    with TrainCommands(pair) as commands:
        ground = ClusterGround(commands, ("alpha", "beta"), tmp_path, steps=40)
        expected = undisturbed(ground)
        found = judge(*run_with_kills(ground, "run", kills, random.Random(1)), expected)
    assert [each.hit.kill for each in found] == kills
    print(table(found))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_forty_kills(cluster: CurateCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten runs of two and of three ranks, four kills in each."""
    rng = random.Random(2026)
    cluster.start("gamma")
    found: list[Recovered] = []
    cold: list[float] = []
    phases = [*PHASES] * 8
    rng.shuffle(phases)
    with TrainCommands(cluster) as commands:
        for size in (2, 3):
            nodes = ("alpha", "beta", "gamma")[:size]
            folder = tmp_path / f"{size}-ranks"
            folder.mkdir()
            ground = ClusterGround(commands, nodes, folder, steps=36)
            expected = undisturbed(ground)
            for number in range(5):
                chosen, phases = phases[:4], phases[4:]
                kills = drawn(rng.randrange(2**32), chosen, nodes, VICTIMS)
                training, hits = run_with_kills(ground, f"run-{number}", kills, rng)
                found += judge(training, hits, expected)
                cold.append(cold_start(training))
                with capsys.disabled():
                    print(f"\n{size} ranks, run {number}\n{table(found[-len(hits) :])}")
    hit = Counter(each.hit.kill.phase for each in found)
    victims = Counter(each.hit.kill.victim for each in found)
    again = [each.stepped - each.detected for each in found if each.stepped and each.detected]
    with capsys.disabled():
        print(f"\n{len(found)} of 40 recovered; phases {dict(hit)}, victims {dict(victims)}")
        print(f"steps lost: {sum(each.lost for each in found)}, at most {max(each.lost for each in found)} at once")
        print(f"from detection to a new step: median {median(again):.1f} s; a cold start: {median(cold):.1f} s")
    assert len(found) == 40
    assert min(hit[phase] for phase in PHASES) >= 5
    assert median(again) <= 2 * median(cold)
