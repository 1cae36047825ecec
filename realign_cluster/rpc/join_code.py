"""The one-time code that lets a node join by hand: where to dial, a secret, and which certificate must answer.

The listener's certificate is pinned by its SHA-256, so nobody between the two learns the secret. Four bytes of checksum
tell a badly copied code from a refused one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from realign_cluster.domain.errors import UsageError

VALID_SECONDS = 600.0
SECRET_BYTES = 16
_PREFIX = "realign1-"
_FINGERPRINT_BYTES = 32
_CHECK_BYTES = 4
_FIX = "copy the whole code again, or ask for a new one: realign cluster join-code"


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCode:
    """`address` is "host:port" as the node can reach it; `listener_sha256` is of the listener's DER certificate."""

    address: str
    secret: bytes
    listener_sha256: bytes


def encode_join_code(code: JoinCode) -> str:
    if len(code.secret) != SECRET_BYTES or len(code.listener_sha256) != _FINGERPRINT_BYTES:
        raise ValueError("a join code holds a secret of 16 bytes and a SHA-256")
    body = code.secret + code.listener_sha256 + code.address.encode()
    check = hashlib.blake2b(body, digest_size=_CHECK_BYTES).digest()
    return _PREFIX + base64.urlsafe_b64encode(check + body).rstrip(b"=").decode()


def decode_join_code(text: str) -> JoinCode:
    """Raises UsageError for anything that encode_join_code did not make."""
    compact = "".join(text.split())
    if not compact.startswith(_PREFIX):
        raise UsageError(f"this is not a join code: it does not begin with {_PREFIX}", _FIX)
    encoded = compact[len(_PREFIX) :]
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise UsageError("this join code has characters that do not belong into one", _FIX) from error
    check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    head = SECRET_BYTES + _FINGERPRINT_BYTES
    if len(body) <= head or hashlib.blake2b(body, digest_size=_CHECK_BYTES).digest() != check:
        raise UsageError("this join code is damaged: a character is missing or was changed", _FIX)
    return JoinCode(
        address=body[head:].decode(errors="replace"),
        secret=body[:SECRET_BYTES],
        listener_sha256=body[SECRET_BYTES:head],
    )
