"""When a node is enrolled, left as it is, or refused: by its real certificate and the real registry."""

from __future__ import annotations

import asyncio
import datetime
import json
from pathlib import Path

import pytest
from realign_launcher.host_steps import DaemonStatus, Found, HostSteps, Venv, _pythons_in
from realign_launcher.progress import Progress
from realign_launcher.shells import Finished, LocalShell

from realign_cluster.coordinator.home import ClusterHome, NodeRequest
from realign_cluster.domain.errors import NodesMissing
from realign_cluster.domain.hostfile import Host
from realign_cluster.rpc.certificates import Role, fingerprint, make_key_and_request

RUNNING = DaemonStatus(state="running", pid=7, port=47100, node_id="n-1")
SILENT = DaemonStatus(state="silent", pid=7, port=47100, node_id="n-1")
STOPPED = DaemonStatus(state="stopped", node_id="n-1")


@pytest.fixture
def home(tmp_path: Path) -> ClusterHome:
    return ClusterHome(tmp_path / "cluster")


def signed(home: ClusterHome, days: int = 365) -> bytes:
    """A node's certificate that is good for so many days, entered into the registry."""
    _, request_pem = make_key_and_request("n-1")
    home.sign_node(NodeRequest(node_id="n-1", name="alpha", request_pem=request_pem))
    pem = home.ensure_authority().sign(request_pem, role=Role.NODE, id="n-1", days=days)
    registry = home.folder / "nodes.json"
    (entry,) = json.loads(registry.read_text())
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    registry.write_text(json.dumps([{**entry, "fingerprint": fingerprint(pem), "expires": expires.isoformat()}]))
    return pem


def why(home: ClusterHome, status: DaemonStatus, certificate_pem: bytes | None) -> str:
    host = Host(ssh="127.0.0.1", name="alpha", address="127.0.0.1")
    steps = HostSteps(
        host,
        LocalShell(host),
        home,
        Progress(),
        pythons=("python3",),
        installs=False,
        hostfile="h.json",
        venv=Venv(lock=asyncio.Lock()),
    )
    return steps._why_enrol(Found(status=status, certificate_pem=certificate_pem))


def test_a_good_certificate_is_kept(home: ClusterHome) -> None:
    pem = signed(home)
    assert [why(home, status, pem) for status in (RUNNING, SILENT, STOPPED)] == ["", "", ""]


def test_a_missing_or_damaged_one_is_replaced(home: ClusterHome) -> None:
    assert why(home, STOPPED, None) == "it has no certificate"
    assert why(home, STOPPED, b"-----BEGIN CERTIFICATE-----\nx") == "its certificate is damaged"


@pytest.mark.parametrize(
    ("days", "running", "stopped"),
    [
        (0, "has expired", "has expired"),
        (20, "", "expires in 20 days"),
        (40, "", ""),
    ],
)
def test_one_that_expires_is_replaced_in_time_but_interrupts_no_run(
    home: ClusterHome, days: int, running: str, stopped: str
) -> None:
    pem = signed(home, days)
    for status, expected in ((RUNNING, running), (STOPPED, stopped)):
        said = why(home, status, pem)
        assert (expected in said) if expected else said == ""


def test_one_of_another_cluster_is_replaced_only_when_nothing_runs_with_it(home: ClusterHome, tmp_path: Path) -> None:
    theirs = signed(ClusterHome(tmp_path / "theirs"))
    assert why(home, STOPPED, theirs) == "its certificate is of another cluster"
    for status in (RUNNING, SILENT):
        with pytest.raises(NodesMissing, match="a daemon of another cluster runs"):
            why(home, status, theirs)


def test_a_revoked_node_is_not_enrolled_again(home: ClusterHome) -> None:
    pem = signed(home)
    home.revoke("alpha")
    with pytest.raises(NodesMissing, match="was revoked") as caught:
        why(home, STOPPED, pem)
    assert "join-code" in caught.value.fix


def test_answers_of_pythons_are_read_past_a_login_shells_greeting() -> None:
    answer = {"index": 1, "python": "3.12.1", "packages": {"realign-cluster": "1"}}
    said = f"Welcome to mac!\n{{not json\n{json.dumps(answer)}\n{json.dumps({**answer, 'index': 9})}\n"
    (found,) = _pythons_in(Finished(status=0, output=said, errors=""), ("a", "b"))
    assert (found.path, found.new_enough, found.has_project) == ("b", True, True)
