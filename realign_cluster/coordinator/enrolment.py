"""The listener behind `realign cluster join-code`: for ten minutes, one node that shows the secret gets a certificate.

The only call without a client certificate, so it has a port of its own, a certificate made for the occasion that the
code pins, a secret that works once, and few guesses. Knows nothing of daemons: what is signed is `home`'s business.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from dataclasses import dataclass
from typing import Self

import grpc
import psutil
import structlog

from realign_cluster.coordinator.home import ClusterHome, NodeRequest
from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.rpc.certificates import fingerprint, make_listener_certificate
from realign_cluster.rpc.join_code import SECRET_BYTES, VALID_SECONDS, JoinCode, encode_join_code
from realign_cluster.rpc.pb import coordinator_pb2 as pb
from realign_cluster.rpc.pb import coordinator_pb2_grpc as pb_grpc

MOST_WRONG_SECRETS = 5
_MOST_MESSAGE_BYTES = 64 * 1024
_AGAIN = "ask for a new code: realign cluster join-code"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    node_id: str
    name: str
    peer: str  # where it called from


class EnrolmentClosed(RealignError):
    """The code ended without a node: it expired, or somebody guessed."""


class Enrolment(pb_grpc.EnrolmentServicer):
    """One code's listener. Use as `async with Enrolment(home, host) as enrolment: await enrolment.joined()`."""

    def __init__(self, home: ClusterHome, host: str, *, port: int = 0, seconds: float = VALID_SECONDS) -> None:
        """`host` is this machine's name or address as the joining node can reach it; `port` 0 takes a free one."""
        self._home = home
        self._host = host
        self._port = port
        self._seconds = seconds
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._wrong = 0
        self._outcome: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", _MOST_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=8,
        )
        self.code = ""

    async def __aenter__(self) -> Self:
        self._home.ensure_authority()
        key_pem, certificate_pem = make_listener_certificate(self._seconds)
        pb_grpc.add_EnrolmentServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        try:
            port = self._server.add_secure_port(
                f"0.0.0.0:{self._port}", grpc.ssl_server_credentials([(key_pem, certificate_pem)])
            )
        except RuntimeError:
            raise UsageError(
                f"port {self._port} is in use here", "give another: --port, or none for a free one"
            ) from None
        await self._server.start()
        self.code = encode_join_code(
            JoinCode(
                address=f"{self._host}:{port}",
                secret=self._secret,
                listener_sha256=bytes.fromhex(fingerprint(certificate_pem)),
            )
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._outcome.cancel()
        await self._server.stop(grace=1.0)  # the reply of the call that ended it must get out

    async def joined(self) -> Joined:
        """Waits for the node. Raises EnrolmentClosed when the code expires or too many wrong secrets were tried."""
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(self._outcome)
        except TimeoutError:
            raise EnrolmentClosed(f"nobody used the code within {self._seconds / 60:.0f} minutes", _AGAIN) from None

    async def Enrol(
        self, request: pb.EnrolRequest, context: grpc.aio.ServicerContext[pb.EnrolRequest, pb.EnrolReply]
    ) -> pb.EnrolReply:
        if self._outcome.done():
            return pb.EnrolReply(error=f"this join code is used up or withdrawn; {_AGAIN}")
        if not hmac.compare_digest(request.secret.encode(), self._secret.hex().encode()):
            self._wrong += 1
            log.warning("enrolment.wrong_secret", peer=context.peer(), attempts=self._wrong)
            if self._wrong >= MOST_WRONG_SECRETS:
                self._outcome.set_exception(
                    EnrolmentClosed(f"{self._wrong} wrong secrets were tried: the code is withdrawn", _AGAIN)
                )
            return pb.EnrolReply(error=f"wrong secret; copy the whole code again, or {_AGAIN}")
        try:
            signed = self._home.sign_node(
                NodeRequest(node_id=request.node_id, name=request.name, request_pem=request.request_pem), readmit=True
            )
        except RealignError as error:
            return pb.EnrolReply(error=str(error))
        self._outcome.set_result(Joined(node_id=request.node_id, name=request.name, peer=context.peer()))
        return pb.EnrolReply(certificate_pem=signed.certificate_pem, authority_pem=signed.authority_pem)


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses, those other machines can reach first; loopback last."""
    found = [
        address.address
        for _, addresses in sorted(psutil.net_if_addrs().items())
        for address in addresses
        if address.family == socket.AF_INET
    ]
    return sorted(dict.fromkeys(found), key=lambda ip: (ip.startswith("127."), ip.startswith("169.254.")))
