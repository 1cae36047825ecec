"""The cluster's home on this machine: its authority, the coordinator's own certificate, and which nodes were enrolled.

    authority/{ca.key,ca.crt}  coordinator/{coordinator.key,coordinator.crt,ca.crt}  nodes.json  nodes.lock

A certificate is trusted when the authority signed it, which TLS checks, and the registry knows it as not revoked, which
is checked here. Knows nothing of hostfiles, ssh or discovery.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.rpc.certificates import Authority, CertificateBundle, Role, fingerprint, parse_certificate
from realign_cluster.rpc.private_files import write_private

RENEW_DAYS = 30  # a certificate that expires sooner is replaced when there is a chance to
Standing = Literal["enrolled", "revoked", "unknown"]


class EnrolledNode(BaseModel):
    """One certificate that was signed for a node. A node that was enrolled twice has two."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node_id: str
    name: str
    fingerprint: str  # SHA-256 of the DER certificate, hex
    serial: str  # hex
    address: str = ""  # "host:port" where it was last seen; empty when it joined by code and was not seen since
    enrolled: datetime.datetime
    expires: datetime.datetime
    revoked: datetime.datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRequest:
    """What a node asks with: its key stays where it was made."""

    node_id: str
    name: str
    request_pem: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedNode:
    """What a node is given, both PEM."""

    certificate_pem: bytes
    authority_pem: bytes


_REGISTRY = TypeAdapter(list[EnrolledNode])


def realign_home() -> Path:
    """~/.realign, or what REALIGN_HOME says."""
    return Path(os.environ.get("REALIGN_HOME") or "~/.realign").expanduser()


class ClusterHome:
    """Reads and changes one cluster's home. Several processes may do so at once: changes hold a lock."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or realign_home() / "cluster"

    @property
    def exists(self) -> bool:
        return (self.folder / "authority" / "ca.key").exists()

    def ensure_authority(self) -> Authority:
        """The cluster's authority, made at the first call together with the coordinator's certificate."""
        with self._locked():
            authority_folder = self.folder / "authority"
            if (authority_folder / "ca.key").exists():
                authority = Authority.load(authority_folder)
            else:
                authority = Authority.create(authority_folder)
            if self._coordinator_needs_certificate(authority):
                bundle = authority.issue(_coordinator_id(), Role.COORDINATOR)
                bundle.save(self.folder / "coordinator", "coordinator")
            return authority

    def bundle(self) -> CertificateBundle:
        """The coordinator's key and certificate, made or renewed if need be."""
        self.ensure_authority()
        return CertificateBundle.load(self.folder / "coordinator", "coordinator")

    def sign_node(self, request: NodeRequest, *, address: str = "", readmit: bool = False) -> SignedNode:
        """Sign a node's request and enter it into the registry.

        Raises UsageError for a node that was revoked, unless it is readmitted on purpose, and CertificateError for a
        request that is not what it claims.
        """
        if not readmit and self.standing_of_node(request.node_id) == "revoked":
            raise UsageError(
                f"node {request.name} ({request.node_id}) was revoked",
                "take it out of the hostfile, or admit it again: realign cluster join-code",
            )
        authority = self.ensure_authority()
        certificate_pem = authority.sign(request.request_pem, role=Role.NODE, id=request.node_id)
        certificate = parse_certificate(certificate_pem)
        entry = EnrolledNode(
            node_id=request.node_id,
            name=request.name,
            fingerprint=fingerprint(certificate_pem),
            serial=f"{certificate.serial_number:x}",
            address=address,
            enrolled=_now(),
            expires=certificate.not_valid_after_utc,
        )
        with self._locked():
            self._write([*(old for old in self._read() if old.expires > _now()), entry])
        return SignedNode(certificate_pem=certificate_pem, authority_pem=authority.certificate_pem)

    def revoke(self, node: str) -> tuple[EnrolledNode, ...]:
        """Revoke every certificate of the node of this name or id. UsageError when there is none."""
        with self._locked():
            entries = self._read()
            hit = [e for e in entries if node in (e.name, e.node_id)]
            if not hit:
                known = ", ".join(sorted({e.name for e in entries})) or "none"
                raise UsageError(f"no node {node!r} is enrolled", f"enrolled are: {known}")
            when = _now()
            changed = [e.model_copy(update={"revoked": e.revoked or when}) if e in hit else e for e in entries]
            self._write(changed)
        return tuple(e for e in _newest(changed) if node in (e.name, e.node_id))

    def record_address(self, node_id: str, address: str) -> None:
        """Remember where a node was seen. Does nothing for one that is not enrolled."""
        if all(e.address == address for e in self._read() if e.node_id == node_id):
            return
        with self._locked():
            entries = self._read()
            self._write([e.model_copy(update={"address": address}) if e.node_id == node_id else e for e in entries])

    def nodes(self) -> tuple[EnrolledNode, ...]:
        """The newest certificate of each node, revoked ones too, by name and age: the last of a name is current."""
        return tuple(sorted(_newest(self._read()), key=lambda e: (e.name, e.enrolled)))

    def find(self, name: str, address: str = "") -> EnrolledNode | None:
        """The enrolled node of this name; of several the one last seen at `address`, else the newest."""
        found = [e for e in _newest(self._read()) if e.name == name and e.revoked is None]
        return next((e for e in reversed(found) if e.address == address), found[-1] if found else None)

    def trusted(self, fingerprint: str) -> bool:
        """Whether a certificate of this fingerprint was signed here and is not revoked."""
        return self.standing(fingerprint) == "enrolled"

    def standing(self, fingerprint: str) -> Standing:
        for entry in self._read():
            if entry.fingerprint == fingerprint:
                return "revoked" if entry.revoked else "enrolled"
        return "unknown"

    def revoked_fingerprints(self) -> frozenset[str]:
        """Certificates that the authority signed and that are not to be trusted all the same."""
        return frozenset(e.fingerprint for e in self._read() if e.revoked)

    def standing_of_node(self, node_id: str) -> Standing:
        """By its newest certificate."""
        for entry in _newest(self._read()):
            if entry.node_id == node_id:
                return "revoked" if entry.revoked else "enrolled"
        return "unknown"

    def _coordinator_needs_certificate(self, authority: Authority) -> bool:
        try:
            bundle = CertificateBundle.load(self.folder / "coordinator", "coordinator")
        except (FileNotFoundError, RealignError):
            return True
        soon = _now() + datetime.timedelta(days=RENEW_DAYS)
        return bundle.authority_pem != authority.certificate_pem or bundle.not_after < soon

    def _read(self) -> list[EnrolledNode]:
        path = self.folder / "nodes.json"
        try:
            return _REGISTRY.validate_json(path.read_bytes())
        except FileNotFoundError:
            return []
        except ValidationError as error:
            raise RealignError(
                f"{path} is damaged: {error.errors()[0]['msg']}",
                f"move it away (mv {path} {path}.bad) and enrol the nodes again: realign-launch --hostfile FILE up",
            ) from None

    def _write(self, entries: list[EnrolledNode]) -> None:
        write_private(self.folder / "nodes.json", _REGISTRY.dump_json(entries, indent=1))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        with (self.folder / "nodes.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _newest(entries: list[EnrolledNode]) -> list[EnrolledNode]:
    """The last entered of each node, in the order entered."""
    return list({e.node_id: e for e in entries}.values())


def _coordinator_id() -> str:
    """A DNS name for this machine's coordinator: what a node shows to whom it refuses because of us."""
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:40].strip("-")
    return f"coordinator-{host}" if host else "coordinator"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
