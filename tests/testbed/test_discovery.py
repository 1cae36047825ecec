"""Zeroconf between hosts: who is enrolled, who only says so, and a goodbye."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.testbed.bed import COORDINATOR, Bed

pytestmark = pytest.mark.testbed


def discovered(bed: Bed) -> dict[str, str]:
    """Name and standing of everything the coordinator finds."""
    said = bed.python(COORDINATOR, "realign_cluster.cli.main", "nodes", "--discover", "--json").ok()
    events = [json.loads(line) for line in said.out.splitlines()]
    return {event["name"]: event["standing"] for event in events if event["event"] == "node"}


def test_nodes_are_found_between_hosts_and_strangers_are_not_trusted(bed: Bed) -> None:
    ours, stranger = bed.hosts
    launcher = "realign_launcher.main"
    bed.python(COORDINATOR, launcher, "--hostfile", bed.hostfile(ours), "up").ok()
    # The other host is a cluster of its own: its daemon advertises itself as ours does.
    own = bed.state / "own.json"
    own.write_text(
        json.dumps(
            [
                {
                    "ssh": "127.0.0.1",
                    "ips": [bed.address(stranger)],
                    "realign": {"name": stranger, "python": sys.executable, "state": str(bed.data / "node")},
                }
            ]
        )
    )
    bed.python(stranger, launcher, "--hostfile", own, "up").ok()
    assert discovered(bed) == {ours: "enrolled", stranger: "not enrolled"}

    bed.python(COORDINATOR, "realign_cluster.cli.main", "cluster", "revoke", ours).ok()
    assert discovered(bed)[ours] == "revoked"

    bed.python(stranger, launcher, "--hostfile", own, "down").ok()  # a clean stop says goodbye
    assert set(discovered(bed)) == {ours}


def test_a_liar_with_anothers_fingerprint_is_not_taken_for_it(bed: Bed) -> None:
    ours, liar = bed.hosts
    bed.python(COORDINATOR, "realign_launcher.main", "--hostfile", bed.hostfile(ours), "up").ok()
    known = json.loads(
        bed.python(COORDINATOR, "realign_cluster.cli.main", "cluster", "nodes", "--json").out.splitlines()[0]
    )
    script = bed.state / "liar.py"
    script.write_text(
        "import socket, sys, time\n"
        "from zeroconf import ServiceInfo, Zeroconf\n"
        "kind = '_realign._tcp.local.'\n"
        "properties = {'id': sys.argv[1], 'name': 'liar', 'fingerprint': sys.argv[2]}\n"
        "Zeroconf().register_service(ServiceInfo(kind, 'liar.' + kind, port=47100, properties=properties,\n"
        "    addresses=[socket.inet_aton(sys.argv[3])], server='liar.local.'))\n"
        "print('registered', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = bed.start(liar, [sys.executable, script, known["node_id"], known["fingerprint"], bed.address(liar)])
    assert process.stdout is not None
    assert process.stdout.readline() == "registered\n"
    began = time.monotonic()
    assert discovered(bed) == {ours: "enrolled", "liar": "enrolled, not answering"}
    assert time.monotonic() - began < 30
