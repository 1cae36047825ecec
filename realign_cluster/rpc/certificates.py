"""The cluster's own authority and the certificates it signs: who a peer is, and in which role.

A certificate names its owner twice: as DNS name (the id, checked by gRPC's target-name override) and as URI
realign://node/ID or realign://coordinator/ID (the role). Keys are made where they are used; only signing
requests travel. Knows nothing of registries or revocation: those are the coordinator's.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from realign_cluster.domain.errors import RealignError
from realign_cluster.rpc.private_files import write_private

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365
CLOCK_SKEW = datetime.timedelta(hours=1)  # a node whose clock is behind must not see its certificate as not yet valid
ENROLMENT_NAME = "realign-enrolment"  # DNS name in the certificate of the listener that join codes pin
_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class CertificateError(RealignError):
    """A certificate, key or signing request that cannot be used."""


class Role(StrEnum):
    NODE = "node"
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerIdentity:
    role: Role
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateBundle:
    """What one end of mTLS needs: its key, its certificate, and the authority both ends trust. PEM throughout."""

    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes

    @classmethod
    def load(cls, folder: Path, stem: str = "node") -> CertificateBundle:
        """Reads STEM.key, STEM.crt, ca.crt. Raises FileNotFoundError, or CertificateError when they do not fit."""
        bundle = cls(
            key_pem=(folder / f"{stem}.key").read_bytes(),
            certificate_pem=(folder / f"{stem}.crt").read_bytes(),
            authority_pem=(folder / "ca.crt").read_bytes(),
        )
        bundle.check()
        return bundle

    def save(self, folder: Path, stem: str = "node") -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / f"{stem}.key", self.key_pem)
        write_private(folder / f"{stem}.crt", self.certificate_pem)
        write_private(folder / "ca.crt", self.authority_pem)

    def check(self) -> None:
        """Raises CertificateError unless the key is the certificate's and the authority signed it. Ignores dates."""
        certificate = parse_certificate(self.certificate_pem)
        if public_bytes(load_key(self.key_pem).public_key()) != public_bytes(certificate.public_key()):
            raise CertificateError("the certificate was made for another key", "enrol this node again")
        if not signed_by(certificate, parse_certificate(self.authority_pem)):
            raise CertificateError(
                "the certificate was not signed by the authority next to it", "enrol this node again"
            )

    @property
    def identity(self) -> PeerIdentity:
        return identity_of(self.certificate_pem)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate_pem)

    @property
    def not_after(self) -> datetime.datetime:
        return parse_certificate(self.certificate_pem).not_valid_after_utc


class Authority:
    """The certificate authority of one cluster: FOLDER/ca.key and FOLDER/ca.crt, both 0600."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, folder: Path, *, now: datetime.datetime | None = None, days: int = AUTHORITY_DAYS) -> Authority:
        """Raises CertificateError when there is one already: replacing it would lock every enrolled node out."""
        if (folder / "ca.key").exists():
            raise CertificateError(f"{folder} holds an authority already", "use it, or choose another REALIGN_HOME")
        now = now or _now()
        key = ec.generate_private_key(ec.SECP256R1())
        # The serial in the name keeps authorities of different clusters apart in TLS's own error messages.
        name = _name(f"realign cluster {secrets.token_hex(4)}")
        certificate = (
            _builder(name, name, key.public_key(), now, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / "ca.crt", _pem(certificate))
        write_private(folder / "ca.key", _key_pem(key))
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        try:
            key = load_key((folder / "ca.key").read_bytes())
            certificate = parse_certificate((folder / "ca.crt").read_bytes())
        except FileNotFoundError as error:
            raise CertificateError(f"there is no authority in {folder}", "realign cluster init") from error
        return cls(key, certificate)

    @property
    def certificate_pem(self) -> bytes:
        return _pem(self._certificate)

    def sign(
        self,
        request_pem: bytes,
        *,
        role: Role,
        id: str,
        now: datetime.datetime | None = None,
        days: int = CERTIFICATE_DAYS,
    ) -> bytes:
        """A certificate for the request's key, with the names given here: the request is not trusted for any.

        Raises CertificateError for a request that is not one, is not signed by its own key, or is for another id.
        """
        _check_id(id)
        try:
            request = x509.load_pem_x509_csr(request_pem)
        except ValueError as error:
            raise CertificateError(f"this is not a signing request: {error}", "realignd request") from error
        if not request.is_signature_valid:
            raise CertificateError("the signing request is not signed by its own key", "realignd request")
        asked = [attribute.value for attribute in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if asked != [id]:
            raise CertificateError(f"the signing request is for {asked}, not for {id}", "realignd request")
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise CertificateError("the signing request's key is not an elliptic-curve P-256 key", "realignd request")
        certificate = (
            _builder(_name(id), self._certificate.subject, key, now or _now(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName(id), x509.UniformResourceIdentifier(f"realign://{role.value}/{id}")]
                ),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(certificate)

    def issue(self, id: str, role: Role) -> CertificateBundle:
        """Key and certificate in one place: for the coordinator, which lives next to the authority."""
        key_pem, request_pem = make_key_and_request(id)
        certificate_pem = self.sign(request_pem, role=role, id=id)
        return CertificateBundle(key_pem=key_pem, certificate_pem=certificate_pem, authority_pem=self.certificate_pem)


def make_key_and_request(id: str, key_pem: bytes | None = None) -> tuple[bytes, bytes]:
    """(key PEM, PKCS#10 PEM). With `key_pem` the request is for that key."""
    _check_id(id)
    key = load_key(key_pem) if key_pem else ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(id)).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def make_listener_certificate(seconds: float = 3600.0) -> tuple[bytes, bytes]:
    """(key PEM, certificate PEM), signed by itself: trusted only by those who hold a join code that pins it."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = _now()
    name = _name(f"{ENROLMENT_NAME} {secrets.token_hex(4)}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1, seconds=seconds))  # the code expires, the pin need not
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(ENROLMENT_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key), _pem(certificate)


def parse_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateError(f"this is not a PEM certificate: {error}", "enrol this node again") from error


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"this is not a PEM private key: {error}", "enrol this node again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the private key is not an elliptic-curve key", "enrol this node again")
    return key


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of the DER certificate, hex."""
    return fingerprint_of_der(parse_certificate(certificate_pem).public_bytes(serialization.Encoding.DER))


def fingerprint_of_der(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def identity_of(certificate: bytes | x509.Certificate) -> PeerIdentity:
    """Role and id from the URI name (PEM or parsed). Raises CertificateError for a certificate that is none of ours."""
    parsed = parse_certificate(certificate) if isinstance(certificate, bytes) else certificate
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise CertificateError("the certificate names nobody", "enrol this node again") from None
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        for role in Role:
            prefix = f"realign://{role.value}/"
            if uri.startswith(prefix):
                return PeerIdentity(role=role, id=uri[len(prefix) :])
    raise CertificateError("the certificate names no node and no coordinator", "enrol this node again")


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def public_bytes(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _check_id(id: str) -> None:
    if not _ID.fullmatch(id):
        raise CertificateError(
            f"{id!r} cannot be a DNS name", "use small letters, digits and inner hyphens, 63 at most"
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
