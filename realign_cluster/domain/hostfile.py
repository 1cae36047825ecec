"""The hostfile: mlx.launch's JSON, in both its forms, with an optional "realign" object per host.

Pure: takes the text, answers with hosts or with every mistake in it, each with line, host, field and what would be
right. Keys that are not ours are ignored as MLX ignores them, so the same file works with mlx.launch; inside "realign"
an unknown key is a mistake. Knows nothing of ssh, of the file system, or of what this machine is called.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from pydantic import ValidationError

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.hostfile_fields import DEFAULT_PORT, DEFAULT_STATE, NAME, VARIABLE, RealignFields
from realign_cluster.domain.json_lines import Path, line_of, lines_of

MOST_HOSTS = 16
MOST_JACCL_HOSTS = 8  # of a mesh; jaccl-ring has no limit of its own
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
BACKENDS = ("any", "ring", "jaccl", "jaccl-ring", "mpi", "nccl")

Rdma = str | tuple[str, ...] | None

_SSH = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@:%+-]*[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One daemon: several hosts of a file may be the same machine, with other names, ports and state folders."""

    ssh: str  # what ssh is given: an alias, a name, user@name or an address
    ips: tuple[str, ...] = ()  # IPv4, for MLX's rings
    rdma: tuple[Rdma, ...] = ()  # per peer its device, several, or None for itself
    name: str
    address: str  # where the coordinator dials it
    port: int = DEFAULT_PORT
    python: str | None = None  # None: the launcher's own here, elsewhere its private environment or python3
    state: str = DEFAULT_STATE  # may begin with ~ or $HOME, which are the host's
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # the file's "envs", then its own
    memory_limit_bytes: int | None = None
    cores: int | None = None
    nice: int | None = None  # CPU priority of its workers

    @property
    def target(self) -> str:
        """What gRPC dials."""
        return f"{self.address}:{self.port}"

    def is_local(self, own_names: frozenset[str]) -> bool:
        """Whether it is this machine, so that no ssh is needed. `own_names` are lower case."""
        return self.ssh.lower() in LOCAL_NAMES | own_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostfile:
    """What a file says: never empty, and no two hosts share a name, an address with port, or a state folder."""

    name: str  # of the file, for messages
    backend: str
    envs: tuple[str, ...]
    hosts: tuple[Host, ...]

    def host(self, name: str) -> Host:
        """The host called `name`. KeyError when there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)


class HostfileError(UsageError):
    """Everything that is wrong with a hostfile, a line each."""


def parse_hostfile(text: str, name: str) -> Hostfile:
    """Read a hostfile's text; `name` is the file's, for messages. Raises HostfileError naming every mistake."""
    try:
        data = json.loads(text)
        reader = _Reader(name, text)
    except json.JSONDecodeError as error:
        raise HostfileError(
            f"{name}:{error.lineno}: not JSON: {error.msg} (column {error.colno})",
            'write a list such as [{"ssh": "mac-1", "ips": ["192.168.0.1"]}], or take that of mlx.distributed_config',
        ) from None
    except RecursionError:
        raise HostfileError(f"{name}:1: nested too deeply to be a hostfile") from None
    hostfile = reader.read(data)
    if reader.mistakes:
        raise HostfileError("\n".join(text for _, text in sorted(reader.mistakes, key=lambda mistake: mistake[0])))
    return hostfile


class _Reader:
    """Reads one file, noting mistakes instead of stopping at the first."""

    def __init__(self, name: str, text: str) -> None:
        self.mistakes: list[tuple[int, str]] = []  # line, message
        self._name = name
        self._lines = lines_of(text)
        self._names: dict[int, str] = {}

    def wrong(self, path: Path, what: str, right: str) -> None:
        index = next((part for part in path if isinstance(part, int)), None)
        line = line_of(self._lines, path)
        where = [f"{self._name}:{line}"]
        if index is not None:
            where.append(f"host {self._names.get(index, index + 1)}")
            path = path[path.index(index) + 1 :]
        if path:
            where.append(_spell(path))
        self.mistakes.append((line, f"{': '.join(where)}: {what}; {right}"))

    def read(self, data: object) -> Hostfile:
        backend, envs, at = "", (), ()  # type: str, tuple[str, ...], Path
        hosts: object = data
        if isinstance(data, dict):
            backend, envs, at = self._backend(data.get("backend", "")), self._envs(data.get("envs", [])), ("hosts",)
            hosts = data.get("hosts")
        if not isinstance(hosts, list):
            self.wrong(
                at, "there is no list of hosts", 'it should be [{"ssh": ...}, ...] or {"hosts": [{"ssh": ...}, ...]}'
            )
            hosts = []
        elif not hosts:
            self.wrong(at, "it names no host", 'add at least {"ssh": "127.0.0.1"}')
        elif len(hosts) > MOST_HOSTS:
            self.wrong(at, f"{len(hosts)} hosts", f"a cluster has at most {MOST_HOSTS}")
        for index, entry in enumerate(hosts):
            self._names[index] = self._short_name(entry, index)
        common = dict(variable.split("=", 1) for variable in envs)
        read = [self._host((*at, index), entry, common) for index, entry in enumerate(hosts)]
        self._check_duplicates(at, read)
        self._check_rdma(at, backend, read)
        return Hostfile(name=self._name, backend=backend, envs=envs, hosts=tuple(h for h in read if h is not None))

    def _short_name(self, entry: object, index: int) -> str:
        if isinstance(entry, dict):
            own = entry.get("realign")
            for text in (own.get("name") if isinstance(own, dict) else None, entry.get("ssh")):
                if isinstance(text, str) and text:
                    return text
        return str(index + 1)

    def _backend(self, value: object) -> str:
        if isinstance(value, str) and (not value or value in BACKENDS):
            return value
        self.wrong(("backend",), f"{value!r} is no backend", f"it should be one of {', '.join(BACKENDS)}")
        return ""

    def _envs(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.wrong(("envs",), "not a list", 'it should be like ["TOKENIZERS_PARALLELISM=false"]')
            return ()
        good: list[str] = []
        for index, text in enumerate(value):
            if isinstance(text, str) and "=" in text and re.fullmatch(VARIABLE, text.split("=", 1)[0]):
                good.append(text)
            else:  # envs are not hosts: their index must not be taken for one
                line = line_of(self._lines, ("envs", index))
                self.mistakes.append((line, f'{self._name}:{line}: envs: {text!r} is not "NAME=VALUE"; write it so'))
        return tuple(good)

    def _host(self, at: Path, entry: object, common: Mapping[str, str]) -> Host | None:
        if not isinstance(entry, dict):
            self.wrong(at, "not an object", 'it should be like {"ssh": "mac-1", "ips": ["192.168.0.1"]}')
            return None
        ssh = entry.get("ssh")
        if not isinstance(ssh, str) or not _SSH.fullmatch(ssh):
            said = "missing" if ssh is None else f"{ssh!r} is no host for ssh"
            self.wrong(
                (*at, "ssh"), said, "it should be a host name, an address, user@host or an alias of ~/.ssh/config"
            )
            ssh = ""
        ips = self._ips((*at, "ips"), entry.get("ips", []))
        own = entry.get("realign", {})
        if not isinstance(own, dict):
            self.wrong((*at, "realign"), "not an object", 'it should be like {"name": "alpha", "port": 47101}')
            own = {}
        fields = self._own((*at, "realign"), own)
        bare = ssh.rpartition("@")[2]
        name = fields.name or bare
        if name and not re.fullmatch(NAME, name):
            self.wrong(
                (*at, "ssh"),
                f"{name!r} cannot be a node's name",
                'add "realign": {"name": ...} of letters, digits, . _ and -',
            )
        return Host(
            ssh=ssh,
            ips=ips,
            rdma=self._rdma((*at, "rdma"), entry.get("rdma", [])),
            name=name,
            address=fields.address or (ips[0] if ips else bare),
            port=fields.port,
            python=fields.python,
            state=fields.state,
            env=MappingProxyType({**common, **fields.env}),
            memory_limit_bytes=fields.memory_limit,
            cores=fields.cores,
            nice=fields.nice,
        )

    def _ips(self, at: Path, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            self.wrong(at, "not a list", 'it should be like ["192.168.0.1"]')
            return ()
        for index, text in enumerate(value):
            if not isinstance(text, str) or not _is_ipv4(text):
                self.wrong(
                    (*at, index),
                    f"{text!r} is not an IPv4 address",
                    "MLX's backends take addresses such as 192.168.0.1",
                )
        return tuple(text for text in value if isinstance(text, str))

    def _rdma(self, at: Path, value: object) -> tuple[Rdma, ...]:
        if not isinstance(value, list):
            self.wrong(at, "not a list", 'it should be like [null, "rdma_en2"]: a device per host, null for itself')
            return ()
        devices: list[Rdma] = []
        for index, device in enumerate(value):
            if device is None or (isinstance(device, str) and device):
                devices.append(device)
            elif isinstance(device, list) and device and all(isinstance(d, str) and d for d in device):
                devices.append(tuple(device))
            else:
                self.wrong(
                    (*at, index), f"{device!r} is no RDMA device", "it should be a name such as rdma_en2, or null"
                )
        return tuple(devices)

    def _own(self, at: Path, own: Mapping[str, object]) -> RealignFields:
        """Read the "realign" object, leaving out what is wrong so that one look finds every mistake."""
        left = dict(own)
        while True:
            try:
                return RealignFields.model_validate(left)
            except ValidationError as error:
                for problem in error.errors():
                    key = str(problem["loc"][0])
                    if problem["type"] == "extra_forbidden":
                        near = difflib.get_close_matches(key, RealignFields.model_fields, 1)
                        hint = (
                            f"did you mean {near[0]!r}?"
                            if near
                            else f"known are {', '.join(RealignFields.model_fields)}"
                        )
                        self.wrong((*at, key), "unknown field", hint)
                    elif key in left:
                        right = RealignFields.model_fields[key].description
                        self.wrong((*at, key), f"{json.dumps(left[key])} will not do", f"it should be {right}")
                    left.pop(key, None)

    def _check_duplicates(self, at: Path, hosts: Sequence[Host | None]) -> None:
        names: dict[str, int] = {}
        targets: dict[str, int] = {}
        states: dict[tuple[str, str], int] = {}
        for index, host in enumerate(hosts):
            if host is None or not host.ssh:
                continue
            here = (*at, index)
            other = names.setdefault(host.name.lower(), index)
            if other != index:
                line = line_of(self._lines, (*at, other))
                self.wrong(
                    (*here, "realign", "name"),
                    f"the host of line {line} is called {host.name!r} too",
                    'give each its own: "realign": {"name": ..., "port": ..., "state": ...}',
                )
            other = targets.setdefault(host.target, index)
            if other != index:
                self.wrong(
                    (*here, "realign", "port"),
                    f"{host.target} is taken by host {self._names[other]}",
                    f'give it another: "realign": {{"port": {host.port + 1}}}',
                )
            other = states.setdefault((_machine(host.ssh), host.state.rstrip("/")), index)
            if other != index:
                self.wrong(
                    (*here, "realign", "state"),
                    f"{host.state} on {host.ssh} is the state folder of host {self._names[other]}",
                    f'give it another: "realign": {{"state": "~/.realign/{host.name}"}}',
                )

    def _check_rdma(self, at: Path, backend: str, hosts: Sequence[Host | None]) -> None:
        if not backend.startswith("jaccl"):
            return
        if backend == "jaccl" and len(hosts) > MOST_JACCL_HOSTS:
            self.wrong(at, f"{len(hosts)} hosts over {backend}", f"it connects at most {MOST_JACCL_HOSTS}; use ring")
        for index, host in enumerate(hosts):
            if host is None:
                continue
            where = (*at, index, "rdma")
            if len(host.rdma) != len(hosts):
                self.wrong(
                    where,
                    f"{len(host.rdma)} entries",
                    f"{backend} needs {len(hosts)}: a device per host, null for itself",
                )
            elif host.rdma[index] is not None:
                self.wrong((*where, index), f"{host.rdma[index]!r} is its device to itself", "it should be null")
            elif backend == "jaccl" and None in (host.rdma[:index] + host.rdma[index + 1 :]):
                peer = next(i for i, device in enumerate(host.rdma) if device is None and i != index)
                self.wrong(
                    (*where, peer), f"no device towards host {self._names[peer]}", "jaccl needs a cable between any two"
                )


def _spell(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _machine(ssh: str) -> str:
    return "localhost" if ssh.lower() in LOCAL_NAMES else ssh


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
