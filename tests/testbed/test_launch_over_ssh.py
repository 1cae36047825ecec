"""`realign-launch` from one host of the test bed onto others over ssh, and what it says when one is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.testbed.bed import COORDINATOR, Bed, Done

pytestmark = pytest.mark.testbed


def launch(bed: Bed, hostfile: Path, *arguments: str) -> Done:
    return bed.python(COORDINATOR, "realign_launcher.main", "--hostfile", hostfile, *arguments)


def events(done: Done) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.out.splitlines()]


def test_up_a_command_status_down(bed: Bed) -> None:
    hostfile = bed.hostfile(*bed.hosts)
    up = launch(bed, hostfile, "up", "--json").ok()
    assert [(e["name"], e["serving"], e["started"]) for e in events(up)[:-1]] == [(h, True, True) for h in bed.hosts]
    for host in bed.hosts:  # each on its own disk, with its own identity
        assert (bed.disk(host) / "node/identity.json").exists()
    nodes = bed.python(COORDINATOR, "realign_cluster.cli.main", "nodes", "--hostfile", hostfile, "--json").ok()
    assert [e.get("standing") for e in events(nodes)[:-1]] == ["serving", "serving"]
    again = launch(bed, hostfile, "nodes", "--json").ok()
    assert "runs already" in again.err
    assert launch(bed, hostfile, "status").ok().out.count("serves") == 2  # what ran before was not stopped
    launch(bed, hostfile, "down").ok()
    assert launch(bed, hostfile, "status").status == 3


@pytest.mark.soak
def test_a_host_that_is_cut_is_named_and_the_rest_goes_on_when_asked(bed: Bed) -> None:
    one, other = bed.hosts
    hostfile = bed.hostfile(one, other)
    bed.cut(other)
    said = launch(bed, hostfile, "up")
    assert said.status == 3
    assert re.search(rf"{other} .*does not answer: off, asleep or not connected", said.err), said.err
    assert not (bed.disk(one) / "node/daemon.json").exists()  # nothing is left half done
    said = launch(bed, hostfile, "--min-nodes", "1", "nodes", "--json").ok()
    assert {e["name"]: e["standing"] for e in events(said)[:-1]} == {one: "serving", other: "not enrolled"}
    assert not (bed.disk(one) / "node/daemon.json").exists()


def test_a_host_that_refuses_is_named_with_what_helps(bed: Bed) -> None:
    one, other = bed.hosts
    bed.kill(other)
    said = launch(bed, bed.hostfile(other), "up")
    assert said.status == 3
    assert "is up but serves no ssh" in said.err or "does not answer" in said.err
    keyless = bed.state / "keyless.json"
    keyless.write_text(json.dumps([{"ssh": f"nobody@{one}", "ips": [bed.address(one)]}]))
    said = launch(bed, keyless, "up")
    assert said.status == 3
    assert "no key of yours is accepted" in said.err
    assert "ssh-copy-id" in said.err


def test_a_daemon_outlives_its_launcher_and_is_found_again_after_a_reboot(bed: Bed) -> None:
    host = bed.hosts[0]
    hostfile = bed.hostfile(host)
    launch(bed, hostfile, "up").ok()
    bed.kill(host)
    bed.boot(host)
    status = launch(bed, hostfile, "status", "--json")
    assert (status.status, events(status)[0]["serving"]) == (3, False)
    up = launch(bed, hostfile, "up").ok()
    assert "enrolling" not in up.err  # its identity and certificate are on its disk
