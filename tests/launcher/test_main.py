"""The command line: options on either side, help, dry runs, bad hostfiles, children and their signals."""

from __future__ import annotations

import json
import signal
import sys

import pytest
from realign_launcher.child import command_line
from realign_launcher.main import parse

from tests.launcher.station import Station, wait_for

REALIGN = [sys.executable, "-m", "realign_cluster.cli.main"]


def test_arguments_of_the_command_are_passed_as_they_are() -> None:
    options = parse(["--hostfile", "h", "--keep", "curate", "in", "--keep-if", "a < 1", "--json", "--dry-run"])
    assert options.command == ["curate", "in", "--keep-if", "a < 1", "--json", "--dry-run"]
    assert (options.keep, options.dry_run) == (True, False)


def test_options_of_up_may_come_after_it() -> None:
    options = parse(["up", "--hostfile", "h", "--json", "--min-nodes", "2"])
    assert (str(options.hostfile), options.json, options.min_nodes, options.install) == ("h", True, 2, False)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--hostfile", "h", "statsu"],
        ["--hostfile", "h", "runs", "list"],
        ["up"],
        ["--hostfile", "h"],
        ["--hostfile", "h", "--min-nodes", "0", "up"],
        ["--hostfile", "h", "up", "x"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2


def test_the_hostfile_is_given_to_the_command_once() -> None:
    assert command_line(["nodes"], "h", None) == [*REALIGN, "nodes", "--hostfile", "h"]
    assert command_line(["nodes", "--hostfile=x"], "h", 2) == [*REALIGN, "nodes", "--hostfile=x", "--min-nodes", "2"]
    assert command_line(["c", "--", "-odd.jsonl"], "h", None) == [*REALIGN, "c", "--hostfile", "h", "--", "-odd.jsonl"]
    assert command_line(["doctor"], "h", 1) == [*REALIGN, "doctor", "--hostfile", "h"]


def test_help_has_examples(station: Station) -> None:
    said = station.launch("--help")
    assert said.status == 0
    assert "realign-launch --hostfile hostfiles/local.json up" in said.out
    said = station.launch("--hostfile", "x", "down", "--help")
    assert "example: realign-launch" in said.out
    said = station.launch("curate", "--help")
    assert said.status == 0
    assert "--keep-if" in said.out


def test_a_dry_run_prints_every_command_and_touches_nothing(station: Station) -> None:
    hostfile = station.hostfile("alpha")
    hosts = json.loads(hostfile.read_text())["hosts"]
    hosts.append({"ssh": "curator@mac.invalid", "realign": {"name": "mac", "python": "/opt/py thon"}})
    hostfile.write_text(json.dumps(hosts))
    said = station.launch("--hostfile", hostfile, "--dry-run", "--install", "curate", "in.jsonl", "--out", "run")
    assert said.status == 0
    lines = [line for line in said.out.splitlines() if line and not line.startswith("#")]
    remote = [line for line in lines if line.startswith("ssh ")]
    assert all(
        "-o BatchMode=yes -o ConnectTimeout=5" in line and "-T -- curator@mac.invalid" in line for line in remote
    )
    for word in ("status", "request", "enrol", "run", "stop", "pip install", "wheels"):
        assert any(word in line for line in remote), word
    assert any(line.startswith("/bin/sh -c") and "nodes/alpha" in line for line in lines)
    assert lines[-1].endswith(f"curate in.jsonl --out run --hostfile {hostfile}")
    assert [path.name for path in station.home.iterdir()] == ["hosts.json"]


def test_a_dry_run_of_down_only_stops(station: Station) -> None:
    said = station.launch("--hostfile", station.hostfile("alpha"), "--dry-run", "down")
    assert "stop --state" in said.out
    assert " run --port" not in said.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the hostfile"),
        ("[", "bad.json:1: not JSON"),
        ('[{"ssh": "m", "realign": {"prt": 1}}]', "host m: realign.prt: unknown field; did you mean 'port'?"),
        ('[{"ssh": "m"}, {"ssh": "m"}]', "is called 'm' too"),
    ],
)
def test_a_bad_hostfile_exits_2_and_leaves_nothing(station: Station, text: str | None, message: str) -> None:
    path = station.home / "bad.json"
    if text is not None:
        path.write_text(text)
    said = station.launch("--hostfile", path, "up")
    assert said.status == 2
    assert message in said.err
    assert "fix:" in said.err or ";" in said.err
    assert not (station.home / ".realign").exists()


def test_an_interrupt_while_hosts_come_up_ends_with_130(station: Station) -> None:
    slow = station.home / "slow-python"
    slow.write_text("#!/bin/sh\ntouch $HOME/asked\nexec sleep 60\n")
    slow.chmod(0o755)
    process = station.start("realign_launcher.main", "--hostfile", station.hostfile("alpha", python=str(slow)), "up")
    wait_for(station.home / "asked")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
