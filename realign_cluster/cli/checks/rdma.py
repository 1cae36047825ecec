"""RDMA over Thunderbolt between the hosts of a hostfile: what would keep jaccl from joining them.

Asks each host over the launcher's shells, here or by ssh, with commands that only read. One host's findings are in the
order in which things have to be put right; then come those that take two hosts to see: whose cable leads where.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace

from realign_launcher import commands
from realign_launcher.fleet import pythons_for
from realign_launcher.shells import Unreachable, names_of_this_machine, shell_for

from realign_cluster.cli.checks.finding import Finding, fail, ok
from realign_cluster.cli.checks.macos import RDMA_MACOS
from realign_cluster.cli.checks.rdma_output import BRIDGE, COMMANDS, RdmaState, parse_rdma, script, sections
from realign_cluster.domain.hostfile import Host, Hostfile
from realign_cluster.domain.jaccl import NotLinked, link
from realign_cluster.domain.world import RdmaLinks

TOPIC = "rdma"
OLDEST_MLX = (0, 32)
ASK_SECONDS = 60.0  # system_profiler alone takes some
CONFIGURE = (
    "mlx.distributed_config --over thunderbolt --backend jaccl --hosts HOSTS --auto-setup --output-hostfile NEW.json"
)
TCP = "train over TCP: --backend ring"


def wants_rdma(hostfile: Hostfile) -> bool:
    """Whether it asks for jaccl, or leaves the backend open and lists devices."""
    listed = any(device for host in hostfile.hosts for device in host.rdma)
    return hostfile.backend.startswith("jaccl") or (hostfile.backend in ("", "any") and listed)


async def check_rdma(hostfile: Hostfile) -> list[Finding]:
    """Nothing for a hostfile without RDMA."""
    if not wants_rdma(hostfile):
        return []
    try:
        links = link(hostfile, [host.name for host in hostfile.hosts])
    except NotLinked as refused:
        return [fail(TOPIC, line, refused.fix) for line in refused.message.splitlines()]
    answers = await asyncio.gather(*(_ask(host) for host in hostfile.hosts))
    found: list[Finding] = []
    states: dict[str, RdmaState] = {}
    for host, answer in zip(hostfile.hosts, answers, strict=True):
        if isinstance(answer, Finding):
            found.append(answer)
            continue
        state, mlx = answer
        states[host.name] = state
        found += mlx_findings(host.name, mlx) + host_findings(host.name, state, devices_of(hostfile, links, host.name))
    found += cable_findings(hostfile, links, states)
    hosts = ",".join(host.ssh for host in hostfile.hosts)
    return [replace(finding, fix=finding.fix.replace("HOSTS", hosts)) for finding in found]


async def _ask(host: Host) -> tuple[RdmaState, str] | Finding:
    """What it says of its cables, and the version of MLX there: "" where there is none."""
    own_names = names_of_this_machine()
    asked = COMMANDS | {"python": commands.check(pythons_for(host, own_names))}
    try:
        answered = await shell_for(host, own_names).run(script(asked), seconds=ASK_SECONDS)
    except Unreachable as error:
        return fail(TOPIC, error.message, error.fix)
    lines = sections(answered.output).get("python", "").splitlines()
    pythons = [json.loads(line) for line in lines if line.startswith("{")]
    versions = [str(python["packages"]["mlx"]) for python in pythons if python["packages"]["mlx"]]
    return parse_rdma(answered.output), versions[0] if versions else ""


def devices_of(hostfile: Hostfile, links: RdmaLinks, name: str) -> dict[str, str]:
    """Which other host each device of this one leads to, as far as the group uses it."""
    names = [host.name for host in hostfile.hosts]
    rank, size = names.index(name), len(names)
    peers = {(rank - 1) % size, (rank + 1) % size} - {rank} if links.ring else set(range(size)) - {rank}
    used = {peer: links.devices[rank][peer] if links.ring else links.devices[rank][peer][:1] for peer in sorted(peers)}
    return {device: names[peer] for peer, devices in used.items() for device in devices}


def mlx_findings(name: str, version: str) -> list[Finding]:
    if not version:
        return [fail(TOPIC, f"{name}: no MLX there", "realign-launch --hostfile FILE --install up")]
    if _numbers(version) < OLDEST_MLX:
        text = f"{name}: MLX {version}, jaccl as it is used here needs {'.'.join(map(str, OLDEST_MLX))}"
        return [fail(TOPIC, text, "realign-launch --hostfile FILE --install up")]
    return []


def host_findings(name: str, state: RdmaState, devices: Mapping[str, str]) -> list[Finding]:
    """The first thing that is in the way, or what there is for each device; `devices` lead to their hosts."""
    if state.system != "Darwin":
        return [fail(TOPIC, f"{name} runs {state.system or 'something unknown'}: jaccl is for Macs", TCP)]
    if _numbers(state.macos) < RDMA_MACOS:
        text = f"{name}: macOS {state.macos or 'of unknown version'}, RDMA over Thunderbolt needs 26.2"
        return [fail(TOPIC, text, f"on {name}: sudo softwareupdate --install --all --restart")]
    if not re.search(r"(?<!not )\benabled\b", state.rdma_ctl.lower()):
        text = f"{name}: RDMA is not enabled (rdma_ctl status: {state.rdma_ctl or 'no answer'})"
        fix = f"at {name}, by hand: start into Recovery, Utilities > Terminal: rdma_ctl enable, then restart"
        return [fail(TOPIC, text, fix)]
    if not state.ports:
        return [_no_device(name, state)]
    found = [fault for device, peer in devices.items() for fault in device_findings(name, state, device, peer)]
    bridged = [device for device in devices if device.removeprefix("rdma_") in state.bridged]
    if bridged:
        text = f"{name}: the Thunderbolt Bridge ({BRIDGE}) has taken {', '.join(bridged)}: RDMA fails with errno 22"
        off = 'sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off; sudo ifconfig bridge0 down'
        found.append(fail(TOPIC, text, f"on {name}: {off}"))
    if not found:
        leads = ", ".join(f"{device} to {peer}" for device, peer in devices.items())
        found = [ok(TOPIC, f"{name}: macOS {state.macos}, RDMA is enabled, active: {leads}")]
    return found


def _no_device(name: str, state: RdmaState) -> Finding:
    fastest = max((socket.gigabits for socket in state.sockets), default=0)
    if 0 < fastest <= 40:
        return fail(TOPIC, f"{name}: its Thunderbolt makes {fastest} Gb/s at most, RDMA needs Thunderbolt 5", TCP)
    text = f"{name}: RDMA is enabled, yet there is no device (ibv_devices)"
    return fail(TOPIC, text, f"restart {name}, with the cables in; a Mac with Thunderbolt 4 never has one, then {TCP}")


def device_findings(name: str, state: RdmaState, device: str, peer: str) -> list[Finding]:
    """What keeps one device from being used."""
    towards = f"{device} towards {peer}"
    if device not in state.ports:
        text = f"{name} has no {towards}: it has {', '.join(state.ports)}"
        return [fail(TOPIC, text, f"correct the hostfile, or have one written from the cables: {CONFIGURE}")]
    socket = state.socket(device)
    where = f" ({socket.name})" if socket is not None else ""
    if (port := state.ports[device]) != "PORT_ACTIVE":
        text = f"{name}: {towards}{where} is {port or 'not said to be active'}"
        fix = f"a Thunderbolt 5 cable from that socket to {peer}, RDMA enabled on both; then: ibv_devinfo -d {device}"
        return [fail(TOPIC, text, fix)]
    interface = device.removeprefix("rdma_")
    if interface in state.interfaces and not state.interfaces[interface].addresses:
        text = f"{name}: {interface} has no IPv4 address, and MLX finds the way of {towards} by it"
        fix = f"on {name}: sudo ifconfig {interface} inet 192.168.0.1 netmask 255.255.255.252 (the peer's end: .2)"
        return [fail(TOPIC, text, f"{fix}; or for all hosts: {CONFIGURE}")]
    return []


def cable_findings(hostfile: Hostfile, links: RdmaLinks, states: Mapping[str, RdmaState]) -> list[Finding]:
    """Cables that do not lead where the hostfile says, from both ends; and whether the group is whole."""
    ends = {
        socket.domain: (name, socket.device)
        for name, state in states.items()
        for socket in state.sockets
        if socket.domain
    }
    found, seen, wanted = [], 0, 0
    names = [host.name for host in hostfile.hosts]
    for host in hostfile.hosts:
        for device, peer in devices_of(hostfile, links, host.name).items():
            wanted += 1
            here, there = names.index(host.name), names.index(peer)
            expected = links.devices[there][here][links.devices[here][there].index(device)]
            state = states.get(host.name)
            socket = state.socket(device) if state is not None else None
            if socket is None or socket.peer_domain not in ends:
                continue
            if (end := ends[socket.peer_domain]) == (peer, expected):
                seen += 1
            else:
                text = (
                    f"{host.name}: {device} is cabled to {end[1]} of {end[0]}, the hostfile says {expected} of {peer}"
                )
                found.append(
                    fail(TOPIC, text, f"move the cable, or have a hostfile written from the cables: {CONFIGURE}")
                )
    if seen == wanted:
        shape = "ring" if links.ring else "full mesh"
        found.append(ok(TOPIC, f"the cables make a {shape} of {len(names)} Macs, as the hostfile says"))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
