"""The scripts that hosts are given: quoted, one line each, and doing in a real shell what they say."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realign_launcher import commands
from realign_launcher.shells import LocalShell, RemoteShell, diagnose

from realign_cluster.domain.hostfile import Host

HOST = Host(ssh="mac-1", name="alpha", address="mac-1", state="~/my nodes/alpha's")


def sh(script: str, home: Path, stdin: bytes = b"") -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        input=stdin,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode()


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20))
def test_a_path_stays_one_word(path: str) -> None:
    assert sh(f"printf %s {commands.path_word('/' + path)}", Path("/h")) == "/" + path
    assert sh(f"printf %s {commands.path_word('~/' + path)}", Path("/a b")) == "/a b/" + path


def test_the_home_is_the_hosts() -> None:
    assert sh(f"printf %s {commands.path_word('$HOME/x y')}", Path("/h")) == "/h/x y"


@pytest.mark.parametrize(
    "script",
    [
        commands.check(("~/p y/python", "python3")),
        commands.status(HOST, "python3"),
        commands.request(HOST, "python3"),
        commands.enrol(HOST, "python3"),
        commands.start(HOST, "python3"),
        commands.stop(HOST, "python3"),
        commands.installed_wheel(),
        commands.copy_wheel("x.whl"),
        commands.install("python3", "x.whl", "00"),
    ],
)
def test_scripts_are_one_line_of_posix_shell(script: str) -> None:
    assert "\n" not in script
    subprocess.run(["/bin/sh", "-n", "-c", script], check=True)


def test_the_check_answers_for_each_python_that_is_there(tmp_path: Path) -> None:
    answers = [
        json.loads(line)
        for line in sh(commands.check((sys.executable, "/no/python", "python3")), tmp_path).splitlines()
    ]
    assert answers[0]["index"] == 0
    assert answers[0]["packages"]["realign-cluster"]
    assert {answer["index"] for answer in answers} <= {0, 2}


def test_a_wheel_is_copied_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100
    sh(commands.copy_wheel("x-1.whl"), tmp_path, stdin=data)
    assert [path.name for path in (tmp_path / ".realign/wheels").iterdir()] == ["x-1.whl"]
    assert (tmp_path / ".realign/wheels/x-1.whl").read_bytes() == data


def test_ssh_never_asks_and_never_takes_a_host_for_an_option() -> None:
    command = RemoteShell(HOST).command("echo 'a b'")
    assert command[:2] == ["ssh", "-o"]
    assert "BatchMode=yes" in command
    assert "-T" in command
    assert command[-3:-1] == ["--", "mac-1"]
    assert shlex.split(command[-1]) == ["exec", "/bin/sh", "-c", "echo 'a b'"]


async def test_a_local_script_gets_its_input_and_is_killed_when_late() -> None:
    shell = LocalShell(HOST)
    done = await shell.run("cat; echo said >&2; exit 3", stdin=b'hello\n{"a": 1}\n')
    assert (done.status, done.json(), done.complaint()) == (3, {"a": 1}, "said")
    with pytest.raises(Exception, match="no answer from mac-1 in 0 s"):
        await shell.run("exec sleep 60", seconds=0.2)


@pytest.mark.parametrize(
    ("errors", "reason", "fix"),
    [
        ("ssh: Could not resolve hostname m: Name or service not known", "unknown host", "ssh/config"),
        (
            "ssh: Could not resolve hostname m: nodename nor servname provided, or not known",
            "unknown host",
            "ssh/config",
        ),
        ("u@m: Permission denied (publickey,password).", "no key of yours", "ssh-copy-id m"),
        ("Host key verification failed.", "host key", "ssh m true"),
        ("ssh: connect to host m port 22: Connection timed out", "does not answer", "wake it"),
        ("ssh: connect to host m port 22: Operation timed out", "does not answer", "wake it"),
        ("ssh: connect to host m port 22: No route to host", "does not answer", "wake it"),
        ("ssh: connect to host m port 22: Connection refused", "serves no ssh", "Remote Login"),
        ("kex_exchange_identification: Connection closed by remote host", "closed the connection", "sshd"),
        ("something new", "something new", "ssh m true"),
    ],
)
def test_what_ssh_says_becomes_a_reason_and_a_fix(errors: str, reason: str, fix: str) -> None:
    said, remedy = diagnose("m", errors)
    assert reason in said
    assert fix in remedy
