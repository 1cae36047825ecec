"""gRPC over mTLS: channels, server credentials, who is calling, and a preflight that says why a peer cannot be had.

gRPC reports every failed handshake as UNAVAILABLE. The preflight makes the same handshake with `ssl` first and names
the reason: expired, foreign, wrong host, not listening, timeout.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import grpc
from cryptography import x509

from realign_cluster.domain.errors import NodesMissing
from realign_cluster.rpc.certificates import (
    CertificateBundle,
    CertificateError,
    PeerIdentity,
    fingerprint_of_der,
    identity_of,
    parse_certificate,
)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
PREFLIGHT_SECONDS = 5.0

Reason = Literal["expired", "not-yet-valid", "foreign", "wrong-host", "not-listening", "timeout", "not-realign"]

_COMMON_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it a peer that vanished is noticed after a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.enable_http_proxy", 0),  # a proxy for the web has no business between nodes
    ("grpc.use_local_subchannel_pool", 1),  # a closed channel must not leave its back-off to the next one
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # otherwise a second daemon on a port would silently share it
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class PeerRefused(NodesMissing):
    """A peer that cannot be talked to: `reason` for programs, the message and fix for people."""

    def __init__(self, reason: Reason, message: str, fix: str) -> None:
        super().__init__(message, fix)
        self.reason: Reason = reason


def server_credentials(bundle: CertificateBundle) -> grpc.ServerCredentials:
    """Only peers with a certificate of the same authority get through the handshake."""
    return grpc.ssl_server_credentials(
        [(bundle.key_pem, bundle.certificate_pem)], root_certificates=bundle.authority_pem, require_client_auth=True
    )


def open_channel(address: str, bundle: CertificateBundle, node_id: str) -> grpc.aio.Channel:
    """A channel to `address` ("host:port") on which only this node can answer. Needs a running event loop."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=bundle.authority_pem, private_key=bundle.key_pem, certificate_chain=bundle.certificate_pem
    )
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", node_id), ("grpc.default_authority", node_id))
    return grpc.aio.secure_channel(address, credentials, options=options)


def caller_identity(context: grpc.aio.ServicerContext) -> PeerIdentity:
    """Who is on the other end of an RPC, by certificate. Raises CertificateError for a certificate of no known role."""
    chain: Sequence[bytes] = context.auth_context().get("x509_pem_cert", ())
    if not chain:
        raise CertificateError("the caller showed no certificate", "dial with the cluster's certificate")
    return identity_of(chain[0])


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" or "[v6]:port". Raises ValueError."""
    host, separator, port = address.rpartition(":")
    if not separator or not host:
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)


async def fetch_certificate(address: str, timeout: float = PREFLIGHT_SECONDS) -> bytes:
    """The DER certificate a listener shows, unverified: for pinning only. Raises OSError, TimeoutError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = split_address(address)
    async with asyncio.timeout(timeout):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            der = tls.getpeercert(binary_form=True)
        finally:
            writer.transport.abort()
    assert der is not None  # a TLS server without a certificate is not something OpenSSL negotiates here
    return der


async def preflight(address: str, bundle: CertificateBundle, node_id: str, timeout: float = PREFLIGHT_SECONDS) -> str:
    """Makes the handshake that gRPC would make; returns the peer's fingerprint. Raises PeerRefused with the reason."""
    _check_own(bundle)
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise PeerRefused("not-listening", str(error), "write the node's address as host:port") from error
    try:
        async with asyncio.timeout(timeout):
            certificate, fingerprint = await _handshake(host, port, bundle)
    except TimeoutError as error:
        raise PeerRefused(
            "timeout",
            f"{address} did not answer within {timeout:g} s",
            f"see whether the machine is up and its firewall lets port {port} through: nc -vz {host} {port}",
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise _refused_certificate(address, node_id, error) from error
    except ssl.SSLError as error:
        raise _refused_by_peer(address, error) from error
    except ConnectionResetError as error:
        raise PeerRefused(
            "not-realign",
            f"what listens at {address} closed the connection before any handshake",
            "correct the port in the hostfile, or see on that machine: realignd status",
        ) from error
    except asyncio.IncompleteReadError as error:
        raise PeerRefused(
            "foreign",
            f"{address} closed the connection during the handshake: it does not accept our certificate",
            "enrol it into this cluster: realign-launch --hostfile FILE up, or on that machine realignd join CODE",
        ) from error
    except socket.gaierror as error:
        raise PeerRefused(
            "not-listening", f"{host} is not a known host name: {error.strerror}", "write its address, or fix its name"
        ) from error
    except OSError as error:
        raise PeerRefused(
            "not-listening",
            f"nothing listens at {address}: {os.strerror(error.errno) if error.errno else error}",
            "start the daemon there: realign-launch --hostfile FILE up, or on that machine realignd run",
        ) from error
    _check_host(address, node_id, certificate)
    return fingerprint


async def _handshake(host: str, port: int, bundle: CertificateBundle) -> tuple[x509.Certificate, str]:
    reader, writer = await asyncio.open_connection(host, port, ssl=_client_context(bundle))
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
        assert der is not None  # CERT_REQUIRED
        # With TLS 1.3 a server judges our certificate after our side is done: only what it sends next tells.
        # A gRPC server opens with its HTTP/2 settings frame.
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        try:
            await reader.readexactly(9)
        except ConnectionResetError as error:
            raise asyncio.IncompleteReadError(b"", 9) from error
        return x509.load_der_x509_certificate(der), fingerprint_of_der(der)
    finally:
        writer.transport.abort()  # a TLS goodbye would wait for the peer's, which may never come


def _client_context(bundle: CertificateBundle) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the id is checked afterwards, to be able to say who answered instead
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=bundle.authority_pem.decode())
    # load_cert_chain takes files only: a folder that nobody else may enter, for as long as the call lasts.
    with tempfile.TemporaryDirectory(prefix="realign-") as folder:
        chain = Path(folder) / "chain.pem"
        chain.touch(mode=0o600)
        chain.write_bytes(bundle.key_pem + bundle.certificate_pem)
        context.load_cert_chain(chain)
    return context


def _check_own(bundle: CertificateBundle) -> None:
    expires = bundle.not_after
    now = datetime.datetime.now(datetime.UTC)
    if parse_certificate(bundle.certificate_pem).not_valid_before_utc > now:
        raise PeerRefused(
            "not-yet-valid",
            f"our own certificate ({bundle.identity.id}) is not valid yet: this machine's clock is behind",
            "set the clock: sudo sntp -sS time.apple.com (macOS), timedatectl set-ntp true (Linux)",
        )
    if expires < now:
        raise PeerRefused(
            "expired",
            f"our own certificate ({bundle.identity.id}) expired on {expires:%Y-%m-%d %H:%M} UTC",
            "realign cluster init",
        )


def _check_host(address: str, node_id: str, certificate: x509.Certificate) -> None:
    try:
        answered = identity_of(certificate).id
    except CertificateError:
        answered = "somebody without a node id"
    if answered != node_id:
        raise PeerRefused(
            "wrong-host",
            f"{address} is {answered}, not {node_id}",
            "correct the address in the hostfile, or enrol that machine again: realign-launch --hostfile FILE up",
        )


_EXPIRED, _NOT_YET_VALID = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


def _refused_certificate(address: str, node_id: str, error: ssl.SSLCertVerificationError) -> PeerRefused:
    if error.verify_code == _EXPIRED:
        return PeerRefused(
            "expired",
            f"the certificate of {node_id} at {address} has expired",
            "enrol it again: realign-launch --hostfile FILE up (or set this clock right, if it is ahead)",
        )
    if error.verify_code == _NOT_YET_VALID:
        return PeerRefused(
            "not-yet-valid",
            f"the certificate of {node_id} at {address} is not valid yet: this machine's clock is behind",
            "set the clock: sudo sntp -sS time.apple.com (macOS), timedatectl set-ntp true (Linux)",
        )
    return PeerRefused(
        "foreign",
        f"{address} belongs to another cluster: its certificate is not of our authority ({error.verify_message})",
        "enrol it into this one: on that machine realignd reset, then realign-launch --hostfile FILE up",
    )


def _refused_by_peer(address: str, error: ssl.SSLError) -> PeerRefused:
    reason = (error.reason or str(error)).upper()
    if "EXPIRED" in reason:
        return PeerRefused(
            "expired",
            f"{address} says that our certificate has expired: its clock or our certificate is wrong",
            "compare the clocks (date -u on both), then realign cluster init",
        )
    if "ALERT" in reason:
        return PeerRefused(
            "foreign",
            f"{address} does not accept our certificate: it belongs to another cluster ({error.reason})",
            "enrol it into this one: on that machine realignd reset, then realign-launch --hostfile FILE up",
        )
    return PeerRefused(
        "not-realign",
        f"what listens at {address} is not a realign daemon ({error.reason or error})",
        "correct the port in the hostfile, or see on that machine: realignd status",
    )


def own_certificate_days(bundle: CertificateBundle) -> float:
    """Days until the bundle's certificate expires; negative when it has."""
    left = parse_certificate(bundle.certificate_pem).not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.total_seconds() / 86_400
