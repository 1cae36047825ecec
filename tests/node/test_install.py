from __future__ import annotations

import configparser
import plistlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from realign_cluster.cli.realignd import app
from realign_cluster.domain.errors import UsageError
from realign_cluster.node.environment import ENVIRONMENT_EFFECTS, check_environment, parse_assignments
from realign_cluster.node.install import STOP_SECONDS, ServiceOptions, explain, render_unit

OPTIONS = ServiceOptions(
    python="/opt/realign/bin/python",
    user="ada",
    state=Path("/Users/ada/my state"),
    arguments=("--port", "47100", "--name", "m3"),
    environment={"MLX_METAL_FAST_SYNCH": "1", "ODD": '50% "x"'},
    nice=-10,
)


def test_the_launch_daemon_has_the_keys_that_matter() -> None:
    keys = plistlib.loads(render_unit("launchd", OPTIONS))
    assert keys["ProgramArguments"][:6] == [
        *("/opt/realign/bin/python", "-m", "realign_cluster.cli.realignd", "run", "--state", "/Users/ada/my state"),
    ]
    assert keys["UserName"] == "ada"
    assert keys["RunAtLoad"] is True
    assert keys["KeepAlive"] == {"SuccessfulExit": False}
    assert keys["ProcessType"] == "Interactive"
    assert keys["Nice"] == -10
    assert keys["ExitTimeOut"] == STOP_SECONDS
    assert keys["ThrottleInterval"] >= 1
    assert keys["EnvironmentVariables"] == OPTIONS.environment


def test_nothing_is_set_that_was_not_asked_for() -> None:
    plain = ServiceOptions(python="p", user="u", state=Path("/s"), arguments=())
    keys = plistlib.loads(render_unit("launchd", plain))
    assert "Nice" not in keys
    assert "EnvironmentVariables" not in keys
    assert b"Nice" not in render_unit("systemd", plain)
    assert explain(plain) == []


def test_the_systemd_unit() -> None:
    text = render_unit("systemd", OPTIONS).decode()
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["ExecStart"].startswith("/opt/realign/bin/python -m realign_cluster.cli.realignd run")
    assert '"/Users/ada/my state"' in service["ExecStart"]
    assert (service["User"], service["Restart"], service["Nice"]) == ("ada", "on-failure", "-10")
    assert "Environment=MLX_METAL_FAST_SYNCH=1" in text
    assert 'Environment="ODD=50%% \\"x\\""' in text


def test_each_variable_says_what_it_really_does() -> None:
    lines = explain(OPTIONS)
    assert any("deadlock" in line for line in lines)
    assert any("CPU scheduling only" in line for line in lines)
    assert "no effect" in ENVIRONMENT_EFFECTS["MLX_METAL_PREALLOCATE"]


def test_dry_run_prints_the_unit_alone_on_standard_output() -> None:
    done = CliRunner().invoke(app, ["install", "--dry-run", "--service", "launchd", "--env", "MLX_METAL_FAST_SYNCH=1"])
    assert done.exit_code == 0
    assert plistlib.loads(done.stdout.encode())["EnvironmentVariables"] == {"MLX_METAL_FAST_SYNCH": "1"}
    assert "deadlock" in done.stderr


@pytest.mark.parametrize("pair", ["X", "=1", "1X=2", "A-B=1"])
def test_assignments(pair: str) -> None:
    with pytest.raises(UsageError):
        parse_assignments([pair])


def test_what_a_job_may_set_in_a_worker() -> None:
    check_environment({"MLX_METAL_FAST_SYNCH": "1", "REALIGN_FAULTS": "1"})
    for name in ("LD_PRELOAD", "PYTHONPATH", "PATH", "DYLD_INSERT_LIBRARIES"):
        with pytest.raises(UsageError, match=name):
            check_environment({name: "x"})
