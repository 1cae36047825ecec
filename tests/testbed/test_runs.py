"""Whole runs over hosts that are apart in network, disk and clock, and what can happen to one of them meanwhile.

Nothing here depends on how fast anything is: every test waits for what the ledger says, and the host that is to be
missed is missed because the other one is slowed down until it is back.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from realign_cluster.store.ledger_reader import AttemptRecord
from tests.cluster.conftest import made_rows
from tests.cluster.kit import TINY_MODEL, committed_units, ledger, output_bytes, summary, wait_until, write_rows
from tests.testbed.bed import COORDINATOR, Bed

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300)]

ROWS = 1200
SCORING = ("--model", str(TINY_MODEL), "--score", "loglik,ifd", "--reproducible", "--plain")
SHARE = 50  # percent of one CPU for each host, so that coordinator and ssh find some as well
CRAWL = 15  # the same for a host that must not finish the run before the other one is back
LEASE_SECONDS = 3.0
WAIT = 90.0


@dataclass(slots=True)
class Running:
    """A run that was started: its folder and its standard error seen from here."""

    process: subprocess.Popen[str]
    folder: Path
    errors: Path
    rows: int

    def attempts(self) -> list[AttemptRecord]:
        reader = ledger(self.folder)
        try:
            return reader.attempts()
        finally:
            reader.close()

    def said(self) -> str:
        return self.errors.read_text(errors="replace") if self.errors.exists() else ""

    def said_to_be_full(self) -> bool:
        said = self.said()
        return "nothing is handed out" in said or "no lease is given out" in said

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's first true value. Fails at once when the run ends meanwhile."""

        def look() -> Any:
            value = condition()
            assert value or self.process.poll() is None, f"the run ended before {what}\n{self.said()}"
            return value

        return wait_until(look, WAIT, what)

    def midway(self, units: int = 4) -> None:
        self.wait_for(lambda: committed_units(self.folder) >= units, f"{units} committed units")

    def committed_by(self, host: str, since: float) -> list[AttemptRecord]:
        """What was handed to `host` after `since` and committed."""
        return [a for a in self.attempts() if a.node == host and a.outcome == "committed" and a.granted_at > since]

    def lost_by(self, host: str) -> list[AttemptRecord]:
        return [a for a in self.attempts() if a.node == host and (a.outcome or "").startswith("node lost")]

    def given_to_another(self, victim: str) -> list[tuple[AttemptRecord, AttemptRecord]]:
        """What was outstanding on `victim` when it was lost, each with a later attempt of another host at it."""
        later = {a.unit: a for a in self.attempts() if a.node != victim}
        return [(a, later[a.unit]) for a in self.lost_by(victim) if later.get(a.unit, a).attempt > a.attempt]

    def finish(self, expected: dict[str, bytes]) -> None:
        """It completes, every row is there, and the bytes are those of a run that nothing happened to."""
        assert self.process.wait(WAIT * 2) == 0, self.said()
        found = summary(self.folder)
        assert found["state"] == "complete"
        assert found["rows"] == {"in": self.rows, "kept": self.rows, "dropped": 0, "failed": 0}
        assert output_bytes(self.folder) == expected


class RunCluster:
    """The bed's hosts as one cluster, whose daemons `realign-launch` started over ssh and left running."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.hosts = bed.hosts
        self.hostfile = bed.hostfile(*bed.hosts, cores=1)
        self.rows = write_rows(bed.state / "rows.jsonl", made_rows(ROWS))
        self._started = 0
        self.calm: dict[str, bytes] = {}

    def launcher(self, *arguments: object) -> list[object]:
        return [sys.executable, "-m", "realign_launcher.main", "--hostfile", self.hostfile, *arguments]

    def up(self) -> None:
        self.bed.exec(COORDINATOR, self.launcher("up")).ok()

    def curate(self, name: str, *launch: str) -> Running:
        """Starts a run on the coordinator's own disk, or goes on with the one of that name."""
        self._started += 1
        errors = self.bed.state / f"stderr-{self._started}"
        command = self.launcher(*launch, "curate", self.rows, "--out", self.bed.data / name, *SCORING)
        process = self.bed.start(COORDINATOR, ["sh", "-c", f'exec "$@" 2> {errors}', "sh", *command])
        return Running(process=process, folder=self.bed.disk(COORDINATOR) / name, errors=errors, rows=ROWS)

    def fill(self, host: str) -> None:
        """Fills its disk, though others write to it: what they took between looking and filling is no longer there."""
        for _ in range(10):
            with contextlib.suppress(AssertionError):
                return self.bed.fill(host)
        return self.bed.fill(host)

    def serving(self, host: str) -> bool:
        """Whether its daemon lives: the hosts of a bed share their process numbers with us."""
        try:
            return psutil.pid_exists(self.daemon_pid(host))
        except FileNotFoundError:
            return False

    def daemon_pid(self, host: str) -> int:
        pid: int = json.loads((self.bed.disk(host) / "node" / "daemon.json").read_text())["pid"]
        return pid


@pytest.fixture(scope="module")
def module_cluster(bed_of_session: Bed) -> RunCluster:
    """Daemons up, and the bytes of an undisturbed run, which also leaves each host with a warm worker."""
    bed_of_session.make_whole()
    cluster = RunCluster(bed_of_session)
    for host in cluster.hosts:
        bed_of_session.slow(host, SHARE)
    run = cluster.curate("calm", "--keep")
    assert run.process.wait(WAIT * 2) == 0, run.said()
    cluster.calm = output_bytes(run.folder)
    assert set(summary(run.folder)["nodes"]) == set(cluster.hosts)
    return cluster


@pytest.fixture
def cluster(module_cluster: RunCluster) -> Iterator[RunCluster]:
    """Whole before and after each test."""
    if not all(module_cluster.serving(host) for host in module_cluster.hosts):
        module_cluster.up()
    yield module_cluster
    bed = module_cluster.bed
    bed.heal()
    for host in (COORDINATOR, *bed.hosts):
        bed.unfill(host)
        bed.resume(host)
        bed.boot(host)
    for host in bed.hosts:
        bed.slow(host, SHARE)


def test_a_host_is_cut_off(cluster: RunCluster) -> None:
    """Silence and no reset: its lease runs out, its work goes to the other one, the run ends without it."""
    victim, other = cluster.hosts
    run = cluster.curate("cut")
    run.midway()
    cut_at = time.time()
    cluster.bed.cut(victim)
    run.finish(cluster.calm)
    moved = run.given_to_another(victim)
    assert moved, "no lease was outstanding on the host that was cut off"
    assert len(moved) == len(run.lost_by(victim))
    for gone, taken in moved:
        assert gone.ended_at is not None
        assert gone.ended_at - cut_at > LEASE_SECONDS - 1.0  # its last beat may be older than the cut, by half a second
        assert "not heard for" in (gone.outcome or "")
        assert (taken.node, taken.outcome) == (other, "committed")
    assert f"{victim} is lost" in run.said()


@pytest.mark.soak
def test_a_host_is_paused_and_goes_on(cluster: RunCluster) -> None:
    """Its kernel goes on acknowledging: only the missing beats tell. Awake again it is given work again."""
    victim, other = cluster.hosts
    run = cluster.curate("paused")
    run.midway()
    pid = cluster.daemon_pid(victim)
    cluster.bed.pause(victim)
    run.wait_for(lambda: run.given_to_another(victim), "a lease of the paused host given to the other one")
    cluster.bed.slow(other, CRAWL)
    resumed_at = time.time()
    cluster.bed.resume(victim)
    run.wait_for(lambda: run.committed_by(victim, resumed_at), "work of the host that was resumed")
    cluster.bed.slow(other, SHARE)
    run.finish(cluster.calm)
    assert cluster.daemon_pid(victim) == pid


@pytest.mark.soak
def test_a_host_is_killed_and_rebooted(cluster: RunCluster) -> None:
    """Everything on it dies; `realign-launch up` starts its daemon again during the run, which takes it back."""
    victim, other = cluster.hosts
    run = cluster.curate("rebooted")
    run.midway()
    pid = cluster.daemon_pid(victim)
    cluster.bed.kill(victim)
    run.wait_for(lambda: run.given_to_another(victim), "a lease of the killed host given to the other one")
    cluster.bed.slow(other, CRAWL)
    cluster.bed.boot(victim)
    cluster.up()
    assert cluster.daemon_pid(victim) != pid
    up_at = time.time()
    run.wait_for(lambda: run.committed_by(victim, up_at), "work of the host that was rebooted")
    cluster.bed.slow(other, SHARE)
    run.finish(cluster.calm)


@pytest.mark.soak
def test_the_coordinators_host_loses_power(cluster: RunCluster) -> None:
    """Cut, then dead; rebooted it takes its run up again, and the nodes that waited for it."""
    run = cluster.curate("power")
    run.midway()
    cluster.bed.cut(COORDINATOR)
    cluster.bed.kill(COORDINATOR)
    run.process.wait(WAIT)
    before = committed_units(run.folder)
    cluster.bed.boot(COORDINATOR)
    cluster.bed.heal(COORDINATOR)
    again = cluster.curate("power")
    again.finish(cluster.calm)
    attempts = again.attempts()
    orphans = [attempt for attempt in attempts if attempt.outcome == "older epoch"]
    committed = {attempt.unit: attempt for attempt in attempts if attempt.outcome == "committed"}
    assert orphans, "no lease was outstanding when the coordinator's host died"
    assert all(committed[attempt.unit].epoch > attempt.epoch for attempt in orphans)
    assert sum(attempt.epoch == 1 for attempt in committed.values()) == before  # nothing acknowledged was lost
    assert summary(again.folder)["resumed"] == 1


@pytest.mark.soak
def test_a_nodes_disk_is_full(cluster: RunCluster) -> None:
    """It goes on while its results are taken; cut off with its disk full it is not taken back until there is room."""
    victim, other = cluster.hosts
    pid = cluster.daemon_pid(victim)
    run = cluster.curate("node-full")
    run.midway(2)
    cluster.fill(victim)
    full_at = time.time()
    run.wait_for(lambda: len(run.committed_by(victim, full_at)) >= 2, "results of the node whose disk is full")
    cluster.bed.cut(victim)
    run.wait_for(lambda: run.given_to_another(victim), "a lease of the host cut off given to the other one")
    cluster.bed.slow(other, CRAWL)
    cluster.bed.heal(victim)
    run.wait_for(lambda: "of disk left" in run.said(), "word of why the node is not taken back")
    freed_at = time.time()
    cluster.bed.unfill(victim)
    run.wait_for(lambda: run.committed_by(victim, freed_at), "work of the node that has room again")
    cluster.bed.slow(other, SHARE)
    run.finish(cluster.calm)
    assert cluster.daemon_pid(victim) == pid


def test_the_coordinators_disk_is_full(cluster: RunCluster) -> None:
    """No lease is given out, nobody is lost for it, and it goes on by itself once there is room, or ends when told."""
    run = cluster.curate("full")
    run.midway(2)
    cluster.fill(COORDINATOR)
    run.wait_for(run.said_to_be_full, "word that the disk is full")
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(WAIT) in (1, 130), run.said()
    before = committed_units(run.folder)
    cluster.bed.unfill(COORDINATOR)

    run = cluster.curate("full")
    run.midway(before + 2)
    cluster.fill(COORDINATOR)
    run.wait_for(run.said_to_be_full, "word that the disk is full")
    full_at = time.time()
    time.sleep(LEASE_SECONDS + 1.0)  # longer than any node may be silent: a coordinator that hangs would lose them
    assert run.process.poll() is None, run.said()
    freed_at = time.time()
    cluster.bed.unfill(COORDINATOR)
    run.wait_for(lambda: "going on" in run.said(), "word that there is room again")
    run.finish(cluster.calm)
    attempts = run.attempts()
    assert not [a for a in attempts if full_at < a.granted_at < freed_at]
    assert [a for a in attempts if a.granted_at > freed_at], "the run was over before its disk was full"
    assert not [a for a in attempts if (a.outcome or "").startswith("node lost")]
