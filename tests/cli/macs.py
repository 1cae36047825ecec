"""Macs that are not there: an `ssh` on the path that runs what it is given in a real shell, with a Mac's commands.

The commands print what the machine's parts make them say, in the published shapes of tests/fixtures/macos; those that
set something up change it. So both `realign doctor` and MLX's own `mlx.distributed_config` can be run against them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SSH = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in
    -o) shift 2 ;;
    --) shift; break ;;
    -*) shift ;;
    *) break ;;
  esac
done
host=$1; shift
cd {macs}/"$host" 2>/dev/null || {{ echo "ssh: Could not resolve hostname $host: nodename unknown" >&2; exit 255; }}
PATH={macs}/"$host"/bin:/usr/bin:/bin exec /bin/sh -c "$*"
"""

# Remembers what it was told; the Thunderbolt Bridge has all sockets until it is put down, as after installing macOS.
_IFCONFIG = """
[ "$1 $2" = "bridge0 down" ] && exec touch bridge-down
[ "$2" = inet ] && exec /bin/sh -c 'echo "$1" >"$0"' "address-$1" "$3"
for interface in {interfaces}; do
  echo "$interface: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500"
  [ ! -f "address-$interface" ] || printf '\\tinet %s netmask 0xfffffffc\\n' "$(cat "address-$interface")"
  printf '\\tstatus: active\\n'
done
[ -f bridge-down ] && up='8822<' || up='8863<UP,'
echo "bridge0: flags=${{up}}BROADCAST,SMART,SIMPLEX,MULTICAST> mtu 1500"
for interface in {interfaces}; do printf '\\tmember: %s flags=3<LEARNING,DISCOVER>\\n' "$interface"; done"""


@dataclass(slots=True)
class Mac:
    """`cables`: by socket number, the name and the socket number of the Mac at the other end."""

    name: str
    cables: dict[int, tuple[str, int]]
    sockets: int = 3
    macos: str = "26.2"
    rdma_ctl: str = "enabled"
    gigabits: int = 120
    mlx: str | None = None  # None: what is installed here
    inactive: set[int] = field(default_factory=set)  # sockets whose port stays down

    def interface(self, socket: int) -> str:
        return f"en{socket + 1}"

    def domain(self, socket: int) -> str:
        return f"{self.name}-{socket}"

    def files(self) -> dict[str, str]:
        """What the commands print that cannot be changed by them."""
        sockets = range(1, self.sockets + 1)
        rdma = sockets if self.rdma_ctl == "enabled" and self.gigabits > 40 else []
        devices = "".join(f"    rdma_{self.interface(s)}        \t{s:016x}\n" for s in rdma)
        infos = "".join(
            f"hca_id:\trdma_{self.interface(s)}\n\ttransport:\t\t\tThunderbolt (100)\n\tphys_port_cnt:\t\t\t1\n"
            f"\t\tport:\t1\n\t\t\tstate:\t\t\t{self._state(s)}\n\t\t\tlink_layer:\t\tThunderbolt\n\n"
            for s in rdma
        )
        ports = "".join(f"Hardware Port: Thunderbolt {s}\nDevice: {self.interface(s)}\n\n" for s in sockets)
        return {
            "ibv_devices.txt": f"    device          \t   node GUID\n    ------          \t----------------\n{devices}",
            "ibv_devinfo.txt": infos or "No IB devices found\n",
            "networksetup.txt": f"\nHardware Port: Ethernet\nDevice: en0\n\n{ports}",
            "thunderbolt.json": json.dumps({"SPThunderboltDataType": [self._bus(s) for s in sockets]}),
        }

    def commands(self) -> dict[str, str]:
        interfaces = " ".join(self.interface(socket) for socket in range(1, self.sockets + 1))
        version = "" if self.mlx is None else f' | sed \'s/"mlx": "[^"]*"/"mlx": "{self.mlx}"/\''
        return {
            "uname": "echo Darwin",
            "sw_vers": f"echo {self.macos}",
            "rdma_ctl": f"echo {self.rdma_ctl}",
            "ibv_devices": "cat ibv_devices.txt",
            "ibv_devinfo": "cat ibv_devinfo.txt",
            "networksetup": "cat networksetup.txt",
            "system_profiler": "cat thunderbolt.json",
            "ifconfig": _IFCONFIG.format(interfaces=interfaces),
            "ipconfig": f"echo 192.168.1.{ord(self.name[0]) % 100}",
            "route": ":",
            "sudo": 'exec "$@"',
            "python3": f'{shlex.quote(sys.executable)} "$@"{version}',
        }

    def _state(self, socket: int) -> str:
        active = socket in self.cables and socket not in self.inactive
        return "PORT_ACTIVE (4)" if active else "PORT_DOWN (1)"

    def _bus(self, socket: int) -> dict[str, object]:
        bus: dict[str, object] = {
            "_name": f"thunderboltusb4_bus_{socket - 1}",
            "device_name_key": "Mac Studio",
            "domain_uuid_key": self.domain(socket),
            "receptacle_1_tag": {"current_speed_key": f"Up to {self.gigabits} Gb/s", "receptacle_id_key": str(socket)},
        }
        if socket in self.cables:
            name, other = self.cables[socket]
            bus["_items"] = [{"_name": "Mac15,14", "domain_uuid_key": f"{name}-{other}"}]
        return bus


def put_up(folder: Path, macs: Sequence[Mac]) -> str:
    """The PATH with which `ssh NAME` reaches them."""
    for mac in macs:
        for name, text in mac.files().items():
            _write(folder / "macs" / mac.name / name, text)
        for name, body in mac.commands().items():
            _program(folder / "macs" / mac.name / "bin" / name, f"#!/bin/sh\n{body}\n")
    _program(folder / "bin" / "ssh", _SSH.format(macs=shlex.quote(str(folder / "macs"))))
    return f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


def mesh(*names: str) -> list[Mac]:
    """A cable between any two: towards the k-th of the others from socket k."""
    others = {name: [other for other in names if other != name] for name in names}
    return [
        Mac(name, {socket: (other, others[other].index(name) + 1) for socket, other in enumerate(others[name], 1)})
        for name in names
    ]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _program(path: Path, text: str) -> None:
    _write(path, text)
    path.chmod(0o755)
