"""The realignd command as a user, or the launcher over ssh, types it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator.enrolment import Enrolment
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.node.lock import lock_holder
from realign_cluster.rpc.certificates import Authority, CertificateBundle, Role
from tests.cluster_kit import TestCluster

pytestmark = pytest.mark.cluster


def realignd(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "realign_cluster.cli.realignd", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def enrol(state: Path, authority: Authority, name: str = "m3") -> dict[str, Any]:
    asked = answer(realignd("request", "--state", state, "--name", name))
    certificate = authority.sign(asked["request_pem"].encode(), role=Role.NODE, id=asked["node_id"])
    signed = {"certificate_pem": certificate.decode(), "authority_pem": authority.certificate_pem.decode()}
    return answer(realignd("enrol", "--state", state, stdin=json.dumps(signed)))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "authority")


def test_enrolled_started_detached_asked_and_stopped(tmp_path: Path, authority: Authority) -> None:
    state = tmp_path / "state"
    run = ("run", "--state", state, "--port", "0", "--host", "127.0.0.1", "--no-advertise", "--detach")
    before = realignd(*run)
    assert before.returncode == 1
    assert "not enrolled" in before.stderr
    assert "realignd join CODE" in before.stderr

    enrolled = enrol(state, authority)
    assert not enrolled["restart_needed"]
    stopped = realignd("status", "--state", state, "--json")
    assert stopped.returncode == 1
    assert json.loads(stopped.stdout)["state"] == "stopped"

    facts = answer(realignd(*run))
    try:
        assert facts["node_id"] == enrolled["node_id"]
        assert facts["fingerprint"] == enrolled["fingerprint"]
        assert os.getsid(facts["pid"]) == facts["pid"]  # survives the ssh session that started it
        status = answer(realignd("status", "--state", state, "--json"))
        assert (status["state"], status["pid"], status["port"]) == ("running", facts["pid"], facts["port"])
        assert (status["name"], status["worker"], status["held_by"]) == ("m3", "absent", None)
        assert "pid" in realignd("status", "--state", state).stdout

        again = realignd(*run)
        assert again.returncode == 1
        assert f"pid {facts['pid']} runs already" in again.stderr
        assert realignd("reset", "--state", state).returncode == 1
    finally:
        assert answer(realignd("stop", "--state", state)) == {"stopped": facts["pid"]}
    assert lock_holder(state / "daemon.lock") is None
    assert answer(realignd("stop", "--state", state)) == {"stopped": None}


def test_a_copied_state_folder_is_refused_until_it_is_reset(tmp_path: Path, authority: Authority) -> None:
    enrol(tmp_path / "state", authority)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    refused = realignd("run", "--state", tmp_path / "copy", "--port", "0", "--host", "127.0.0.1")
    assert refused.returncode == 1
    assert f"realignd reset --state {tmp_path / 'copy'}" in refused.stderr
    assert realignd("reset", "--state", tmp_path / "copy").returncode == 0
    copy = answer(realignd("request", "--state", tmp_path / "copy"))
    assert copy["node_id"] != answer(realignd("request", "--state", tmp_path / "state"))["node_id"]


@pytest.mark.parametrize("wrong", ["not json", "{}", '{"certificate_pem": 3}'])
def test_an_answer_that_is_none_is_refused(tmp_path: Path, authority: Authority, wrong: str) -> None:
    enrol(tmp_path / "state", authority)
    before = CertificateBundle.load(tmp_path / "state")
    refused = realignd("enrol", "--state", tmp_path / "state", stdin=wrong)
    assert refused.returncode == 2
    assert "certificate_pem" in refused.stderr
    assert CertificateBundle.load(tmp_path / "state") == before


def test_a_certificate_for_somebody_else_is_refused(tmp_path: Path, authority: Authority) -> None:
    answer(realignd("request", "--state", tmp_path / "state"))
    other = authority.issue("n-other", Role.NODE)
    signed = {"certificate_pem": other.certificate_pem.decode(), "authority_pem": other.authority_pem.decode()}
    refused = realignd("enrol", "--state", tmp_path / "state", stdin=json.dumps(signed))
    assert refused.returncode == 1
    assert "another key" in refused.stderr


async def test_joining_with_a_code(tmp_path: Path) -> None:
    home = ClusterHome(tmp_path / "cluster")
    async with Enrolment(home, "127.0.0.1") as enrolment:
        wrong = enrolment.code[:-4] + "AAAA"
        refused = await asyncio.to_thread(realignd, "join", wrong, "--state", tmp_path / "state")
        assert refused.returncode == 2
        done = await asyncio.to_thread(realignd, "join", enrolment.code, "--state", tmp_path / "state", "--name", "m3")
        joined = await enrolment.joined()
    assert answer(done)["node_id"] == joined.node_id
    assert CertificateBundle.load(tmp_path / "state").identity.id == joined.node_id
    late = await asyncio.to_thread(realignd, "join", enrolment.code, "--state", tmp_path / "late")
    assert late.returncode == 3
    assert "realign cluster join-code" in late.stderr


def test_an_expired_certificate_is_said_at_the_start(tmp_path: Path, authority: Authority) -> None:
    import datetime

    asked = answer(realignd("request", "--state", tmp_path / "state"))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=10)
    certificate = authority.sign(asked["request_pem"].encode(), role=Role.NODE, id=asked["node_id"], now=past, days=1)
    signed = {"certificate_pem": certificate.decode(), "authority_pem": authority.certificate_pem.decode()}
    answer(realignd("enrol", "--state", tmp_path / "state", stdin=json.dumps(signed)))
    refused = realignd("run", "--state", tmp_path / "state", "--port", "0", "--host", "127.0.0.1", "--detach")
    assert refused.returncode == 1
    assert "expired 9 days ago" in refused.stderr


def test_a_port_in_use_ends_a_detached_start_too(tmp_path: Path, authority: Authority) -> None:
    enrol(tmp_path / "state", authority)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = realignd("run", "--state", tmp_path / "state", "--port", port, "--host", "127.0.0.1", "--detach")
    assert refused.returncode == 1
    assert f"port {port}" in refused.stderr
    assert "fix:" in refused.stderr
    assert lock_holder(tmp_path / "state" / "daemon.lock") is None


def test_each_command_has_an_example() -> None:
    for command in ("run", "request", "enrol", "join", "reset", "stop", "status", "install", "uninstall"):
        shown = realignd(command, "--help")
        assert shown.returncode == 0
        assert "Example: " in shown.stdout
    assert realignd("run", "--port", "99999").returncode == 2


def test_a_daemon_starts_fast(cluster: TestCluster) -> None:
    daemon = cluster.daemon("studio")
    started = time.monotonic()
    daemon.start()
    assert time.monotonic() - started < 5
