"""Daemons of a hostfile on this machine, started, used and stopped as real processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.station import Station, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.cluster


def serving(said_events: list[dict[str, object]]) -> dict[str, bool]:
    return {str(event["name"]): bool(event["serving"]) for event in said_events if event["event"] == "host"}


def add_host(hostfile: Path, host: dict[str, object]) -> Path:
    data = json.loads(hostfile.read_text())
    data["hosts"].append(host)
    hostfile.write_text(json.dumps(data))
    return hostfile


def test_up_status_down(station: Station) -> None:
    hostfile = station.hostfile("alpha", "beta")
    down = station.launch("--hostfile", hostfile, "status", "--json")
    assert (down.status, serving(down.events)) == (3, {"alpha": False, "beta": False})

    up = station.launch("--hostfile", hostfile, "up", "--json")
    assert up.status == 0, up.err
    assert serving(up.events) == {"alpha": True, "beta": True}
    assert up.events[-1] == {"event": "summary", "hosts": 2, "serving": 2, "ok": True, "missing": []}
    assert "starting realignd" in up.err
    pids = station.daemons()
    assert sorted(pids) == ["alpha", "beta"]

    again = station.launch("--hostfile", hostfile, "up", "--json")
    assert [event.get("started") for event in again.events[:-1]] == [False, False]
    assert station.daemons() == pids

    assert station.launch("--hostfile", hostfile, "status").status == 0
    assert station.launch("--hostfile", hostfile, "down").status == 0
    assert station.daemons() == {}
    assert station.launch("--hostfile", hostfile, "down").status == 0


def test_a_command_runs_on_the_cluster_and_what_was_started_is_stopped(station: Station) -> None:
    both = station.hostfile("alpha", "beta")
    first = station.home / "first.json"
    first.write_text(json.dumps({"hosts": json.loads(both.read_text())["hosts"][:1]}))
    assert station.launch("--hostfile", first, "up").status == 0
    said = station.launch("--hostfile", both, "nodes", "--json")
    assert said.status == 0, said.err
    assert {e["name"]: e["standing"] for e in said.events[:-1]} == {"alpha": "serving", "beta": "serving"}
    assert sorted(station.daemons()) == ["alpha"]  # it ran before, so it runs on
    assert station.launch("--hostfile", both, "--keep", "nodes").status == 0
    assert sorted(station.daemons()) == ["alpha", "beta"]


def test_the_exit_status_is_the_commands(station: Station) -> None:
    assert station.launch("--hostfile", station.hostfile("alpha"), "nodes", "--no-such-option").status == 2
    assert station.daemons() == {}


def test_a_host_that_is_missing_ends_the_launch_with_3(station: Station) -> None:
    hostfile = add_host(station.hostfile("alpha"), {"ssh": "no-such-host.invalid", "realign": {"name": "ghost"}})
    said = station.launch("--hostfile", hostfile, "nodes", "--json")
    assert said.status == 3
    assert re.search(r"ghost +unknown host: ssh cannot resolve no-such-host\.invalid", said.err)
    assert "fix: correct" in said.err
    assert "--min-nodes" in said.err
    assert station.daemons() == {}  # nothing half done

    said = station.launch("--hostfile", hostfile, "--min-nodes", "1", "nodes", "--json")
    assert said.status == 0, said.err
    assert "going on without ghost" in said.err
    assert {e["name"]: e["standing"] for e in said.events[:-1]} == {"alpha": "serving", "ghost": "not enrolled"}
    assert station.daemons() == {}


def test_a_port_in_use_is_named(station: Station) -> None:
    hostfile = station.hostfile("alpha")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", json.loads(hostfile.read_text())["hosts"][0]["realign"]["port"]))
        taken.listen()
        said = station.launch("--hostfile", hostfile, "up")
    assert said.status == 3
    assert re.search(r"port \d+", said.err)
    assert "fix:" in said.err
    assert station.daemons() == {}


@pytest.mark.parametrize(
    ("python", "reason", "fix"),
    [
        ("/no/such/python", "no Python at /no/such/python", "install Python 3.11 or later there"),
        ("OLD", "is Python 3.9.6, 3.11 or later is needed", '"python": "/path/to/python3"'),
        ("BARE", "realign-cluster is not installed for", "--install up"),
    ],
)
def test_what_a_hosts_python_lacks_is_said(station: Station, python: str, reason: str, fix: str) -> None:
    stand_in = station.home / python.strip("/").replace("/", "-")
    answer = {"index": 0, "python": "3.9.6" if python == "OLD" else "3.13.1", "packages": {"realign-cluster": ""}}
    stand_in.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    stand_in.chmod(0o755)
    path = python if python.startswith("/") else str(stand_in)
    said = station.launch("--hostfile", station.hostfile("alpha", python=path), "up")
    assert said.status == 3
    assert reason in said.err
    assert fix in said.err


def test_a_daemon_of_another_cluster_is_left_alone(station: Station, tmp_path: Path) -> None:
    hostfile = station.hostfile("alpha")
    assert station.launch("--hostfile", hostfile, "up").status == 0
    before = station.daemons()
    (station.home / ".realign/cluster").rename(station.home / ".realign/theirs")
    said = station.launch("--hostfile", hostfile, "up")
    assert said.status == 3
    assert "a daemon of another cluster runs in" in said.err
    assert station.daemons() == before
    assert station.launch("--hostfile", hostfile, "down").status == 0
    said = station.launch("--hostfile", hostfile, "up")  # stopped, it may be taken over
    assert said.status == 0, said.err
    assert "its certificate is of another cluster" in said.err


def test_an_interrupted_run_is_waited_for_and_the_daemons_are_stopped(station: Station) -> None:
    hostfile, run = station.hostfile("alpha"), station.home / "run"
    curate = ["curate", EXAMPLES / "data/instructions.jsonl", "--model", EXAMPLES / "tiny-model", "--score", "loglik"]
    process = station.start("realign_launcher.main", "--hostfile", hostfile, *curate, "--out", run)
    wait_for(run / "ledger.sqlite", 60)
    assert sorted(station.daemons()) == ["alpha"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert station.daemons() == {}


@pytest.mark.soak
def test_install_puts_this_version_into_a_private_environment(station: Station) -> None:
    venv = station.home / ".realign/venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    here = next(path for path in map(Path, sys.path) if (path / "grpc").is_dir())
    (site / "what_pip_would_fetch.pth").write_text(f"{here}\n")  # the dependencies, so that no registry is needed
    hostfile = station.hostfile("alpha", python=sys.executable)
    said = station.launch("--hostfile", hostfile, "--install", "up")
    assert said.status == 0, said.err
    assert (site / "realign_launcher/main.py").exists()
    command = Path(f"/proc/{station.daemons()['alpha']}/cmdline")
    if command.exists():
        assert command.read_bytes().split(b"\0")[0].decode().startswith(str(venv))
    again = station.launch("--hostfile", hostfile, "--install", "up")
    assert "is installed already" in again.err
    assert station.launch("--hostfile", hostfile, "down").status == 0
