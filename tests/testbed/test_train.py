"""Trainings over hosts that are apart in network, disk and clock: ranks meet over the hosts' addresses, hosts are cut
off, die and lose power in the middle of a step. All end with the weights of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import made_rows
from tests.cluster.kit import TINY_MODEL, wait_until, write_rows
from tests.cluster.train_kills import Kill, Recovered, Victim, costs, run_with_kills, table
from tests.cluster.train_kit import Outcome, Training, history_of, ledger_of, outcome, steps_lost
from tests.cluster_kit import children_that_run
from tests.testbed.bed import COORDINATOR, Bed

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

WAIT = 90.0
LOOKS = 1.0  # seconds: watchdogs look every quarter of a second, and so does the coordinator
TRAINING = (
    *("--steps", "30", "--global-batch", "32", "--learning-rate", "1e-3", "--parallel", "data", "--reproducible"),
    *("--snapshot-every", "1", "--checkpoint-every", "4", "--evaluate-every", "5"),
)


class TrainBed:
    """The bed's hosts as one cluster, whose daemons `realign-launch` started over ssh and left running."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.nodes = bed.hosts
        self._hostfile = bed.hostfile(*bed.hosts, cores=1)
        rows = made_rows(360)
        self._data = write_rows(bed.state / "train.jsonl", rows[:300])
        self._valid = write_rows(bed.state / "valid.jsonl", rows[300:])
        self.begun: list[Training] = []

    def launcher(self, *arguments: object) -> list[object]:
        return [sys.executable, "-m", "realign_launcher.main", "--hostfile", self._hostfile, *arguments]

    def up(self) -> None:
        self.bed.exec(COORDINATOR, self.launcher("up")).ok()

    def begin(self, run: str) -> Training:
        """On the coordinator's own disk."""
        errors = self.bed.state / f"train-{len(self.begun)}.stderr"
        errors.touch()
        train = ["train", "--data", self._data, "--valid", self._valid, "--model", TINY_MODEL, *TRAINING]
        command = self.launcher("--keep", *train, "--out", self.bed.data / run)
        process = self.bed.start(COORDINATOR, ["sh", "-c", f'exec "$@" 2> {errors} > /dev/null', "sh", *command])
        self.begun.append(Training(process=process, folder=self.bed.disk(COORDINATOR) / run, errors=errors))
        return self.begun[-1]

    def rank(self, node: str) -> int | None:
        return next(iter(children_that_run("realign_cluster.training.worker", self.daemon(node))), None)

    def states(self, node: str, run_id: str) -> Path:
        return self.bed.disk(node) / "node" / "training" / "runs" / run_id

    def daemon(self, node: str) -> int:
        """Its process number: the hosts of a bed share theirs with us."""
        path = self.bed.disk(node) / "node" / "daemon.json"
        return int(json.loads(path.read_text())["pid"]) if path.exists() else 0

    def serves(self, node: str) -> bool:
        pid = self.daemon(node)
        return bool(pid) and psutil.pid_exists(pid)

    def kill(self, victim: Victim, node: str, training: Training) -> None:
        match victim:
            case "rank":
                os.kill(self.rank(node) or 0, signal.SIGKILL)
            case "cut":
                self.bed.cut(node)
            case "host":
                self.bed.kill(node)
            case "power":
                self.bed.cut(node)
                self.bed.kill(node)
            case "pause":
                pass  # it stays as it is

    def bring_back(self, victim: Victim, node: str, training: Training) -> Training:
        if victim in ("host", "power"):
            self.bed.boot(node)
        if victim in ("cut", "power"):
            self.bed.heal(node)
        if victim in ("host", "power"):
            self.up()
        return training


@pytest.fixture(scope="module")
def module_ground(bed_of_session: Bed) -> Iterator[TrainBed]:
    """Daemons up."""
    bed_of_session.make_whole()
    ground = TrainBed(bed_of_session)
    ground.up()
    yield ground
    for training in ground.begun:
        training.close()


@pytest.fixture(scope="module")
def calm(module_ground: TrainBed) -> Outcome:
    """What the same command comes to when nothing goes wrong."""
    run = module_ground.begin("calm")
    run.finish()
    assert len(history_of(run.folder).generations) == 1
    return outcome(run.folder)


@pytest.fixture
def ground(module_ground: TrainBed) -> Iterator[TrainBed]:
    """Whole before and after each test."""
    if not all(module_ground.serves(node) for node in module_ground.nodes):
        module_ground.up()
    yield module_ground
    module_ground.bed.heal()
    for host in (COORDINATOR, *module_ground.nodes):
        module_ground.bed.boot(host)


def test_a_host_is_cut_off_in_a_step(ground: TrainBed, calm: Outcome) -> None:
    """Silence and no reset: its rank ends by itself, the other one is ended, and both go on when it is back."""
    victim, other = ground.nodes
    run = ground.begin("cut")
    run.reach(5)
    rank = ground.rank(victim)
    assert rank is not None
    ground.bed.cut(victim)
    cut_at = time.time()
    kills = run.wait_for(lambda: run.commands("KillRank"), "an end of the generation")
    wait_until(lambda: not psutil.pid_exists(rank), 10, "the end of the rank on the host that is cut off")
    run.wait_for(lambda: any("the same world is asked for" in note for note in run.notes()), "word of the wait")
    assert run.generation == 1
    ground.bed.heal(victim)
    run.finish()

    assert outcome(run.folder) == calm
    slowest = max(step.seconds for step in history_of(run.folder).steps if step.generation == 1)
    assert kills[0][0] - cut_at < max(5.0, 3 * slowest) + LOOKS
    assert max(steps_lost(run.folder)) <= 1
    with ledger_of(run.folder) as ledger:
        run_id = ledger.meta("run_id")
    for host in (victim, other):
        [ring] = ground.states(host, run_id).glob("ring-2.*.json")
        met = {address.rpartition(":")[0] for [address] in json.loads(ring.read_text())}
        assert met == {ground.bed.address(host) for host in ground.nodes}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_hosts_that_die_in_every_phase(ground: TrainBed, calm: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    """A cut lasts longer than the lease: a shorter one costs nothing, the ring's connections outlive it."""
    one, other = ground.nodes
    sets = [
        [
            Kill(phase="reduce", victim="cut", node=one, away=7.0),
            Kill(phase="save", victim="host", node=other, away=0.0),
            Kill(phase="load", victim="cut", node=one, away=5.0),
        ],
        [
            Kill(phase="reduce", victim="pause", node=other, away=0.0),
            Kill(phase="evaluate", victim="power", node=one, away=2.0),
            Kill(phase="load", victim="host", node=other, away=2.0),
        ],
        [
            Kill(phase="snapshot", victim="power", node=other, away=0.0),
            Kill(phase="reduce", victim="cut", node=other, away=9.0),
            Kill(phase="evaluate", victim="host", node=one, away=5.0),
        ],
        [
            Kill(phase="save", victim="cut", node=one, away=5.0),
            Kill(phase="snapshot", victim="cut", node=one, away=6.0),
            Kill(phase="reduce", victim="power", node=other, away=1.0),
        ],
    ]
    found: list[Recovered] = []
    for number, kills in enumerate(sets):
        training, hits = run_with_kills(ground, f"kills-{number}", kills, random.Random(number))
        assert outcome(training.folder) == calm
        found += costs(training, hits)
        with capsys.disabled():
            print(f"\n{table(found[-len(hits) :])}")
    assert all(each.lost <= 1 + each.left_out for each in found), table(found)
    for each in found:
        if each.hit.kill.victim in ("pause", "cut") and each.hit.kill.phase == "reduce":
            assert each.detected is not None
            assert each.detected < each.limit + LOOKS, table([each])
    assert Counter(each.hit.kill.phase for each in found)["reduce"] == 4
