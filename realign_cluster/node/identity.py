"""Who this daemon is: an id made once per state folder, sealed to machine id, host name and the folder's real path.

A copied folder would give two daemons one id. So the seal is compared at every start, and a copy is refused with the
command that makes it a node of its own.
"""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from realign_cluster.domain.errors import RealignError
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.rpc.private_files import write_private


class IdentityError(RealignError):
    """The state folder's identity is not this machine's, or cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What an identity is sealed to, apart from the folder's path."""

    machine_id: str
    host_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    node_id: str
    name: str


class _IdentityFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    node_id: str
    name: str
    machine: str  # a digest: the machine id itself is nobody's business
    host_name: str
    state: str


def parse_platform_uuid(text: str) -> str:
    """From `system_profiler SPHardwareDataType -json`. Raises ValueError."""
    try:
        uuid = json.loads(text)["SPHardwareDataType"][0]["platform_UUID"]
    except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
        raise ValueError("system_profiler named no platform_UUID") from error
    return str(uuid)


def local_machine() -> Machine:
    """Raises IdentityError when the machine does not say who it is."""
    if platform.system() == "Darwin":
        listing = _output("system_profiler", "SPHardwareDataType", "-json")
        # The DNS host name of a Mac follows its network; LocalHostName only follows its owner.
        host_name = _output("scutil", "--get", "LocalHostName").strip() or socket.gethostname()
        try:
            return Machine(machine_id=parse_platform_uuid(listing), host_name=host_name)
        except ValueError as error:
            raise IdentityError(
                f"this Mac's hardware id cannot be read: {error}", "run it outside a sandbox"
            ) from error
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            machine_id = path.read_text().strip()
        except OSError:
            continue
        if machine_id:
            return Machine(machine_id=machine_id, host_name=socket.gethostname())
    raise IdentityError("this machine has no /etc/machine-id", "make one: sudo systemd-machine-id-setup")


def load_identity(folder: StateFolder, machine: Machine) -> Identity | None:
    """None where none was made yet. Raises IdentityError for a copied or unreadable one."""
    try:
        text = folder.identity.read_text()
    except FileNotFoundError:
        return None
    reset = f"realignd reset --state {folder.root}"
    try:
        found = _IdentityFile.model_validate_json(text)
    except ValidationError as error:
        raise IdentityError(f"{folder.identity} is damaged: {error.errors()[0]['msg']}", reset) from error
    moved = [
        f"{what} was {before!r}, is {now!r}"
        for what, before, now in (
            ("the machine", found.machine, _digest(machine.machine_id)),
            ("its host name", found.host_name, machine.host_name),
            ("the folder", found.state, str(folder.root)),
        )
        if before != now
    ]
    if moved:
        raise IdentityError(
            f"the state folder {folder.root} belongs to node {found.node_id} and was copied or moved: "
            f"{'; '.join(moved)}",
            f"{reset}   (it becomes a node of its own, to be enrolled; models are kept)",
        )
    return Identity(node_id=found.node_id, name=found.name)


def load_or_create_identity(folder: StateFolder, machine: Machine, name: str | None = None) -> Identity:
    """`name` is what people call the node; it may change, the id does not."""
    found = load_identity(folder, machine)
    if found is not None and name in (None, found.name):
        return found
    identity = Identity(
        node_id=found.node_id if found else f"n-{secrets.token_hex(8)}",
        name=name or default_name(machine),
    )
    sealed = _IdentityFile(
        node_id=identity.node_id,
        name=identity.name,
        machine=_digest(machine.machine_id),
        host_name=machine.host_name,
        state=str(folder.root),
    )
    write_private(folder.identity, sealed.model_dump_json(indent=2).encode() + b"\n")
    return identity


def reset_identity(folder: StateFolder) -> list[Path]:
    """Forgets who this was: id, key, certificates, spooled results. Models and logs stay. Returns what went."""
    gone = [
        path
        for path in (
            folder.identity,
            folder.root / "node.key",
            folder.root / "node.crt",
            folder.root / "ca.crt",
            folder.pending_key,
            folder.daemon,
            folder.device,
            *sorted(folder.spool.iterdir()),
        )
        if path.exists()
    ]
    for path in gone:
        path.unlink()
    return gone


def default_name(machine: Machine) -> str:
    return machine.host_name.split(".")[0].lower() or "node"


def _digest(machine_id: str) -> str:
    return hashlib.blake2b(machine_id.encode(), digest_size=8, person=b"realign-machine").hexdigest()


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
