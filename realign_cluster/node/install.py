"""The daemon as a service of the machine: a LaunchDaemon on macOS, a systemd unit on Linux.

A LaunchDaemon and not a LaunchAgent: it runs without anybody logged in, and macOS's Local Network privacy exempts it.
"""

from __future__ import annotations

import os
import plistlib
import pwd
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.node.daemon import EXIT_SECONDS
from realign_cluster.node.environment import effect_of

Service = Literal["launchd", "systemd"]

LABEL = "org.realign-cluster.realignd"
UNIT = "realignd.service"
THROTTLE_SECONDS = 5
STOP_SECONDS = int(EXIT_SECONDS) + 15  # longer than the daemon's own: it must be able to write out what it holds

_PLACES: dict[Service, Path] = {
    "launchd": Path(f"/Library/LaunchDaemons/{LABEL}.plist"),
    "systemd": Path(f"/etc/systemd/system/{UNIT}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """`arguments` follow `realignd run`; `nice` is None where priority is not asked for."""

    python: str
    user: str
    state: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    nice: int | None = None


def unit_path(service: Service) -> Path:
    return _PLACES[service]


def render_unit(service: Service, options: ServiceOptions) -> bytes:
    return _launchd(options) if service == "launchd" else _systemd(options)


def _command(options: ServiceOptions) -> list[str]:
    run = [options.python, "-m", "realign_cluster.cli.realignd", "run", "--state", str(options.state)]
    return [*run, *options.arguments]


def _own_log_only(options: ServiceOptions) -> list[str]:
    """launchd never rotates what goes to standard error; the daemon's own log is rotated."""
    return [*_command(options), "--quiet"]


def _launchd(options: ServiceOptions) -> bytes:
    keys: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": _own_log_only(options),
        "UserName": options.user,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},  # again after a crash, not after realignd stop
        "ThrottleInterval": THROTTLE_SECONDS,
        "ProcessType": "Interactive",  # otherwise macOS throttles its CPU and I/O as background work
        "ExitTimeOut": STOP_SECONDS,
        "WorkingDirectory": str(options.state),
        "StandardErrorPath": str(options.state / "logs" / "daemon.stderr"),
        "StandardOutPath": "/dev/null",
    }
    if options.nice is not None:
        keys["Nice"] = options.nice
    if options.environment:
        keys["EnvironmentVariables"] = dict(options.environment)
    return plistlib.dumps(keys, sort_keys=False)


def _systemd(options: ServiceOptions) -> bytes:
    lines = [
        "[Unit]",
        "Description=realign-cluster node daemon",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "ExecStart=" + " ".join(map(_systemd_quoted, _command(options))),
        f"User={options.user}",
        "Restart=on-failure",
        f"RestartSec={THROTTLE_SECONDS}",
        f"TimeoutStopSec={STOP_SECONDS}",
        "KillMode=mixed",  # SIGTERM to the daemon only: it ends its worker itself
        *([f"Nice={options.nice}"] if options.nice is not None else []),
        *(f"Environment={_systemd_quoted(f'{name}={value}')}" for name, value in options.environment.items()),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    return "\n".join(lines).encode()


def _systemd_quoted(text: str) -> str:
    if "\n" in text:
        raise UsageError(f"{text!r} cannot stand in a systemd unit", "leave the line break out")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != text or " " in text or not text else text


def explain(options: ServiceOptions) -> list[str]:
    """One line for each thing asked for that people expect more of than it does."""
    lines = [f"{name}={value}: {effect_of(name)}" for name, value in options.environment.items()]
    if options.nice is not None:
        lines.append(f"Nice {options.nice}: {effect_of('NICE')}")
    return lines


def install(service: Service, options: ServiceOptions) -> list[str]:
    """Writes the unit and starts it. Returns the commands that were run. Raises RealignError."""
    _need_root("install")
    _give_state_folder(options)
    path = unit_path(service)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render_unit(service, options))
    path.chmod(0o644)
    if service == "launchd":
        _run(["launchctl", "bootout", f"system/{LABEL}"], may_fail=True)
        return [_run(["launchctl", "bootstrap", "system", str(path)])]
    return [_run(["systemctl", "daemon-reload"]), _run(["systemctl", "enable", "--now", UNIT])]


def uninstall(service: Service) -> list[str]:
    """Stops the service and removes its unit; the state folder stays. Raises RealignError."""
    _need_root("uninstall")
    path = unit_path(service)
    if not path.exists():
        raise RealignError(f"{path} does not exist: nothing was installed", "realignd status")
    if service == "launchd":
        done = [_run(["launchctl", "bootout", f"system/{LABEL}"], may_fail=True)]
        path.unlink()
        return done
    done = [_run(["systemctl", "disable", "--now", UNIT], may_fail=True)]
    path.unlink()
    return [*done, _run(["systemctl", "daemon-reload"], may_fail=True)]


def invoking_user() -> str:
    """Who asked, also through sudo: the service must not run as root only because root installs it."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name


def home_of(user: str) -> Path:
    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        raise UsageError(f"there is no user {user!r} on this machine", "--user NAME of one that exists") from None


def _give_state_folder(options: ServiceOptions) -> None:
    """launchd starts nothing in a folder that does not exist, and the daemon's user must own what root makes here."""
    owner = pwd.getpwnam(options.user)
    missing = [folder for folder in (options.state / "logs", *(options.state / "logs").parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700)
        os.chown(folder, owner.pw_uid, owner.pw_gid)


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise UsageError(
            f"realignd {what} changes the machine's services", f"sudo realignd {what} (or --dry-run to see)"
        )


def _run(command: list[str], *, may_fail: bool = False) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        if may_fail:
            return " ".join(command)
        raise RealignError(f"{' '.join(command)}: {error}", "run it by hand to see more") from error
    if done.returncode and not may_fail:
        raise RealignError(
            f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}", "run it by hand to see more"
        )
    return " ".join(command)
