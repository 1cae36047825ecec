"""What only a Mac has: Rosetta, the GPU's wired limit, sleep, thermal pressure, the firewall, RDMA over Thunderbolt.

Each command's output is parsed by a pure function; a command that is missing, or says something else, is no finding.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Awaitable, Callable

from realign_cluster.cli.checks.finding import Finding, ok, warn
from realign_cluster.node.machine_output import parse_thermal_pressure
from realign_cluster.node.probe import command_output

Run = Callable[..., Awaitable[str]]
TOPIC = "macos"
OLDEST_MACOS, RDMA_MACOS = (14, 0), (26, 2)
PMSET_WANTED = {"sleep": "0", "disksleep": "0", "womp": "1", "autorestart": "1"}
PMSET_FIX = "sudo pmset -a sleep 0 disksleep 0 womp 1 autorestart 1"
FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"


async def check_macos(run: Run = command_output, system: str = platform.system()) -> list[Finding]:
    """Nothing on other systems."""
    if system != "Darwin":
        return []
    release = platform.mac_ver()[0]
    found = [version_finding(release)]
    found += rosetta_findings(await run("sysctl", "-n", "sysctl.proc_translated"))
    found += wired_limit_findings(await run("sysctl", "-n", "iogpu.wired_limit_mb"))
    found += power_findings(await run("pmset", "-g"))
    found += thermal_findings(await run("notifyutil", "-g", "com.apple.system.thermalpressurelevel"))
    found += firewall_findings(await run(FIREWALL, "--getglobalstate"))
    found += rdma_findings(await run("rdma_ctl", "status"), await run("ibv_devinfo"), release)
    return found


def version_finding(release: str) -> Finding:
    version = _version(release)
    if version < OLDEST_MACOS:
        return warn(TOPIC, f"macOS {release} is older than MLX's wheels (14.0)", "update macOS: softwareupdate -ia")
    rdma = "" if version >= RDMA_MACOS else "; RDMA over Thunderbolt (jaccl) needs 26.2"
    return ok(TOPIC, f"macOS {release}{rdma}")


def rosetta_findings(output: str) -> list[Finding]:
    """`sysctl -n sysctl.proc_translated`: 1 under Rosetta, 0 native."""
    if output.strip() != "1":
        return []
    fix = "use an arm64 Python: brew install python@3.12, then make clean setup"
    return [warn(TOPIC, "this Python is an Intel one under Rosetta: MLX needs Apple silicon natively", fix)]


def wired_limit_findings(output: str) -> list[Finding]:
    """`sysctl -n iogpu.wired_limit_mb`: 0 is the system's default, about three quarters of the memory."""
    if not output.strip().isdigit():
        return []
    limit = int(output)
    if limit == 0:
        return [
            ok(TOPIC, "GPU wired limit: the default, about 3/4 of memory (raise: sudo sysctl iogpu.wired_limit_mb=N)")
        ]
    return [ok(TOPIC, f"GPU wired limit: {limit:,} MB, until the next boot")]


def power_findings(output: str) -> list[Finding]:
    """`pmset -g`: a headless node must not sleep, and should come back after a power cut."""
    settings = dict(re.findall(r"^\s*([a-z]+)\s+(\d+)", output, re.MULTILINE))
    wrong = {name: settings[name] for name, wanted in PMSET_WANTED.items() if settings.get(name, wanted) != wanted}
    if not settings:
        return []
    if wrong:
        listed = ", ".join(f"{name} is {value}" for name, value in wrong.items())
        return [warn(TOPIC, f"power settings of a headless node: {listed}", PMSET_FIX)]
    return [ok(TOPIC, "never sleeps, wakes for the network, starts again after a power cut")]


def thermal_findings(output: str) -> list[Finding]:
    try:
        level = parse_thermal_pressure(output)
    except ValueError:
        return []
    if level == "nominal":
        return [ok(TOPIC, "thermal pressure: nominal")]
    return [warn(TOPIC, f"thermal pressure: {level}", "let it cool down before calibrating: it would measure too slow")]


def firewall_findings(output: str) -> list[Finding]:
    """`socketfilterfw --getglobalstate`: "Firewall is enabled. (State = 1)"."""
    state = re.search(r"\(State = (\d)\)", output)
    if state is None:
        return []
    if state[1] == "0":
        return [ok(TOPIC, "the application firewall is off")]
    fix = f"sudo {FIREWALL} --add $(command -v python3) --unblockapp $(command -v python3)"
    return [warn(TOPIC, "the application firewall is on: other machines may not reach realignd", fix)]


def rdma_findings(status: str, devices: str, release: str) -> list[Finding]:
    """`rdma_ctl status` can say enabled with no usable device: a port of `ibv_devinfo` must be active."""
    if _version(release) < RDMA_MACOS or not status.strip():
        return []
    active = devices.count("PORT_ACTIVE")
    if "enabled" not in status.lower():
        fix = "only for sharded models: boot into Recovery, Utilities > Terminal: rdma_ctl enable"
        return [ok(TOPIC, f"RDMA over Thunderbolt is off ({fix})")]
    if active == 0:
        fix = "connect the Macs by Thunderbolt 5, every one with every other; check: ibv_devinfo"
        return [warn(TOPIC, "RDMA is enabled, but no port is active", fix)]
    return [ok(TOPIC, f"RDMA over Thunderbolt: {active} active {'port' if active == 1 else 'ports'}")]


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2]) or (0, 0)
