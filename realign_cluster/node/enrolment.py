"""The node's side of joining a cluster: makes the key, asks for a signature, keeps the certificate.

The key is made here and never leaves; `request` and `install` are two halves that the launcher carries over ssh, `join`
does both through a join code.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography import x509

from realign_cluster.domain.errors import NodesMissing, RealignError
from realign_cluster.node.identity import Identity
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.rpc.certificates import (
    ENROLMENT_NAME,
    CertificateBundle,
    CertificateError,
    Role,
    make_key_and_request,
)
from realign_cluster.rpc.channel import CHANNEL_OPTIONS, fetch_certificate
from realign_cluster.rpc.join_code import decode_join_code
from realign_cluster.rpc.pb.coordinator_pb2 import EnrolReply, EnrolRequest
from realign_cluster.rpc.pb.coordinator_pb2_grpc import EnrolmentStub
from realign_cluster.rpc.private_files import write_private

JOIN_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningRequest:
    node_id: str
    name: str
    request_pem: bytes


def enrolled_bundle(folder: StateFolder, identity: Identity) -> CertificateBundle:
    """What this node serves with. Raises CertificateError, with the way to enrol, when there is none."""
    ways = (
        f"realign-launch --hostfile FILE up   (from the coordinator), or: realignd join CODE --state {folder.root}"
        "   (CODE from: realign cluster join-code)"
    )
    try:
        bundle = CertificateBundle.load(folder.root)
        owner = bundle.identity
    except FileNotFoundError as error:
        raise CertificateError(f"this node ({identity.name}) is not enrolled in any cluster", ways) from error
    except CertificateError as error:
        raise CertificateError(f"the certificate in {folder.root} cannot be used: {error.message}", ways) from error
    if owner.role is not Role.NODE or owner.id != identity.node_id:
        raise CertificateError(f"the certificate in {folder.root} is for {owner.id}, not {identity.node_id}", ways)
    return bundle


def request_signature(folder: StateFolder, identity: Identity) -> SigningRequest:
    """Asked twice before an answer it asks for the same key, so that either answer fits."""
    pending = folder.pending_key.read_bytes() if folder.pending_key.exists() else None
    key_pem, request_pem = make_key_and_request(identity.node_id, pending)
    if pending is None:
        write_private(folder.pending_key, key_pem)
    return SigningRequest(node_id=identity.node_id, name=identity.name, request_pem=request_pem)


def install_certificate(
    folder: StateFolder, identity: Identity, certificate_pem: bytes, authority_pem: bytes
) -> CertificateBundle:
    """Keeps an answered request. Raises CertificateError when it does not answer ours; then nothing has changed."""
    candidates = [path for path in (folder.pending_key, folder.root / "node.key") if path.exists()]
    if not candidates:
        raise CertificateError("no signature was asked for", f"realignd request --state {folder.root}")
    for path in candidates:
        bundle = CertificateBundle(
            key_pem=path.read_bytes(), certificate_pem=certificate_pem, authority_pem=authority_pem
        )
        try:
            bundle.check()
        except CertificateError:
            if path is candidates[-1]:
                raise
            continue
        break
    owner = bundle.identity
    if owner.role is not Role.NODE or owner.id != identity.node_id:
        raise CertificateError(
            f"the certificate is for {owner.role.value} {owner.id}, not for node {identity.node_id}",
            f"realignd request --state {folder.root}",
        )
    bundle.save(folder.root)
    folder.pending_key.unlink(missing_ok=True)
    return bundle


async def join(folder: StateFolder, identity: Identity, code_text: str) -> CertificateBundle:
    """Raises UsageError for a bad code, NodesMissing when the listener cannot be had, RealignError when it refuses."""
    code = decode_join_code(code_text)
    again = "ask for a new code on the coordinator: realign cluster join-code"
    try:
        der = await fetch_certificate(code.address)
    except (OSError, TimeoutError, ssl.SSLError, ValueError) as error:
        why = str(error) or "no answer in time"
        raise NodesMissing(f"nothing answers at {code.address}: {why}", f"a code lives ten minutes; {again}") from error
    if hashlib.sha256(der).digest() != code.listener_sha256:
        raise NodesMissing(f"{code.address} is not the listener that this code was made for", again)
    listener_pem = ssl.DER_cert_to_PEM_cert(der).encode()
    request = request_signature(folder, identity)
    reply = await _enrol(code.address, listener_pem, code.secret.hex(), request)
    if reply.error:
        raise RealignError(f"{code.address} refused: {reply.error}")
    return install_certificate(folder, identity, reply.certificate_pem, reply.authority_pem)


async def _enrol(address: str, listener_pem: bytes, secret: str, request: SigningRequest) -> EnrolReply:
    certificate = x509.load_pem_x509_certificate(listener_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", dns[0] if dns else ENROLMENT_NAME))
    credentials = grpc.ssl_channel_credentials(root_certificates=listener_pem)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        message = EnrolRequest(
            secret=secret, node_id=request.node_id, name=request.name, request_pem=request.request_pem
        )
        try:
            stub: Any = EnrolmentStub(channel)  # type: ignore[no-untyped-call]
            reply: EnrolReply = await stub.Enrol(message, timeout=JOIN_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise NodesMissing(
                f"{address} did not enrol this node: {error.details()}",
                "ask for a new code on the coordinator: realign cluster join-code",
            ) from error
    return reply
