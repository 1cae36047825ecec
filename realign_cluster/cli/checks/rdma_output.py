"""What a Mac's own commands say of its Thunderbolt cables and RDMA, as data.

Pure: takes the output of the commands of `COMMANDS`, run one after the other on a host; what a command did not say is
empty. Shapes as Apple documents them (TN3205: ibv_devices, ibv_devinfo), as MLX documents or parses them
(system_profiler, networksetup), or as the commands print them (sw_vers, rdma_ctl, ifconfig).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Nothing of these changes anything or needs root.
COMMANDS = {
    "system": "uname -s",
    "macos": "sw_vers -productVersion",
    "rdma_ctl": "rdma_ctl status",
    "ibv_devices": "ibv_devices",
    "ibv_devinfo": "ibv_devinfo",
    "networksetup": "networksetup -listallhardwareports",
    "ifconfig": "ifconfig",
    "thunderbolt": "system_profiler SPThunderboltDataType -json",
}
MARK = "== realign "
BRIDGE = "bridge0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Socket:
    """A Thunderbolt socket. `domain` and `peer_domain` tell which socket is at the other end of its cable."""

    name: str  # "Thunderbolt 3"
    interface: str  # "en5"
    domain: str = ""
    peer_domain: str = ""  # "": no Mac at its other end
    gigabits: int = 0  # "Up to 120 Gb/s" without a cable; 0: not said

    @property
    def device(self) -> str:
        return f"rdma_{self.interface}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    up: bool = False
    addresses: tuple[str, ...] = ()  # IPv4
    members: tuple[str, ...] = ()  # of a bridge


@dataclass(frozen=True, slots=True, kw_only=True)
class RdmaState:
    """Of one host. `ports` is the state by device, such as PORT_ACTIVE, for those that ibv_devices lists."""

    system: str
    macos: str = ""
    rdma_ctl: str = ""
    ports: Mapping[str, str] = field(default_factory=dict)
    sockets: tuple[Socket, ...] = ()
    interfaces: Mapping[str, Interface] = field(default_factory=dict)

    def socket(self, device: str) -> Socket | None:
        return next((socket for socket in self.sockets if socket.device == device), None)

    @property
    def bridged(self) -> tuple[str, ...]:
        """Interfaces that the Thunderbolt bridge has taken; none while it is down."""
        bridge = self.interfaces.get(BRIDGE, Interface())
        return bridge.members if bridge.up else ()


def script(commands: Mapping[str, str] = COMMANDS) -> str:
    """One line of POSIX shell that runs them all, each with its mark before it, whatever fails."""
    return "; ".join(f"echo; echo '{MARK}{name}'; {command} 2>/dev/null" for name, command in commands.items()) + "; :"


def sections(output: str) -> dict[str, str]:
    """By name, what each command printed."""
    found = re.split(rf"^{MARK}(\w+)\n", output, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def parse_rdma(output: str) -> RdmaState:
    """Of what `script` printed."""
    said = sections(output)
    states = parse_port_states(said.get("ibv_devinfo", ""))
    return RdmaState(
        system=said.get("system", "").strip(),
        macos=said.get("macos", "").strip(),
        rdma_ctl=said.get("rdma_ctl", "").strip(),
        ports={device: states.get(device, "") for device in parse_devices(said.get("ibv_devices", ""))},
        sockets=parse_sockets(said.get("thunderbolt", ""), parse_hardware_ports(said.get("networksetup", ""))),
        interfaces=parse_interfaces(said.get("ifconfig", "")),
    )


def parse_devices(output: str) -> tuple[str, ...]:
    """`ibv_devices`: below two lines of heading a device and its GUID each."""
    return tuple(re.findall(r"^\s*(rdma_\w+)\s+[0-9a-f]+\s*$", output, re.MULTILINE))


def parse_port_states(output: str) -> dict[str, str]:
    """`ibv_devinfo`: for each hca_id its one port's state."""
    found: dict[str, str] = {}
    device = ""
    for name, value in re.findall(r"^\s*(hca_id|state):\s*(\w+)", output, re.MULTILINE):
        if name == "hca_id":
            device = value
        else:
            found.setdefault(device, value)
    return found


def parse_hardware_ports(output: str) -> dict[str, str]:
    """`networksetup -listallhardwareports`: interface by port name, "Thunderbolt 1": "en2"."""
    return dict(re.findall(r"^Hardware Port: (.+)\nDevice: (\S+)", output, re.MULTILINE))


def parse_interfaces(output: str) -> dict[str, Interface]:
    """`ifconfig`: a block for each interface, whose first line has its flags."""
    found = {}
    for block in re.split(r"^(?=\S)", output, flags=re.MULTILINE):
        if (head := re.match(r"(\w+): flags=[0-9a-f]+<([A-Z0-9,]*)>", block)) is not None:
            found[head[1]] = Interface(
                up="UP" in head[2].split(","),
                addresses=tuple(re.findall(r"^\s+inet ([\d.]+)", block, re.MULTILINE)),
                members=tuple(re.findall(r"^\s+member: (\w+)", block, re.MULTILINE)),
            )
    return found


def parse_sockets(output: str, hardware_ports: Mapping[str, str]) -> tuple[Socket, ...]:
    """`system_profiler SPThunderboltDataType -json`: a bus for each socket, below it what is connected, as MLX reads
    it.
    """
    try:
        buses = json.loads(output)["SPThunderboltDataType"]
    except (ValueError, KeyError, TypeError):
        return ()
    sockets = (_socket(bus, hardware_ports) for bus in buses if isinstance(bus, dict))
    return tuple(socket for socket in sockets if socket is not None)


def _socket(bus: dict[str, Any], hardware_ports: Mapping[str, str]) -> Socket | None:
    tag = bus.get("receptacle_1_tag", {})
    name = f"Thunderbolt {tag.get('receptacle_id_key', '')}"
    if "domain_uuid_key" not in bus or name not in hardware_ports:
        return None
    peers = [item["domain_uuid_key"] for item in bus.get("_items", []) if "domain_uuid_key" in item]
    speed = re.search(r"(\d+) Gb/s", str(tag.get("current_speed_key", "")))
    return Socket(
        name=name,
        interface=hardware_ports[name],
        domain=str(bus["domain_uuid_key"]),
        peer_domain=str(peers[0]) if peers else "",
        gigabits=int(speed[1]) if speed else 0,
    )
