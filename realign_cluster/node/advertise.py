"""Says on the local network that this daemon is here. A hint only: who it is, its certificate says."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

import psutil
import structlog
from zeroconf import IPVersion, NonUniqueNameException, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from realign_cluster.rpc.pb.common_pb2 import NodeInfo

log = structlog.get_logger()

SERVICE_TYPE = "_realign._tcp.local."
_LOOK_AGAIN_SECONDS = 15.0
_MAX_TEXT_BYTES = 200


def reachable_addresses(bound_to: str) -> list[str]:
    """IPv4 addresses under which others reach a server bound so; loopback only when nothing else is there."""
    if bound_to not in ("0.0.0.0", "::", ""):
        return [bound_to]
    found = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    }
    outside = sorted(each for each in found if not ipaddress.ip_address(each).is_loopback)
    return outside or ["127.0.0.1"]


def service_info(info: NodeInfo, port: int, addresses: list[str]) -> ServiceInfo:
    device, versions = info.device, info.versions
    properties: dict[str, str] = {
        "id": info.node_id,
        "name": info.name,
        "chip": device.chip,
        "gpu_cores": str(device.gpu_cores),
        "memory": str(device.memory_bytes),
        "project": versions.project,
        "protocol": str(versions.protocol),
        "mlx": versions.mlx,
        "mlx_lm": versions.mlx_lm,
        "fingerprint": info.certificate_fingerprint,
    }
    return ServiceInfo(
        SERVICE_TYPE,
        f"{info.node_id}.{SERVICE_TYPE}",
        port=port,
        addresses=[socket.inet_aton(address) for address in addresses],
        properties={key: value.encode()[:_MAX_TEXT_BYTES] for key, value in properties.items()},
        server=f"{info.node_id}.local.",
    )


class Advertiser:
    """Registers in the background, again whenever the machine's addresses change; says goodbye in `close`."""

    def __init__(self, info: NodeInfo, port: int, bound_to: str) -> None:
        self._info = info
        self._port = port
        self._bound_to = bound_to
        self._zeroconf: AsyncZeroconf | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_registered())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._goodbye()

    async def _keep_registered(self) -> None:
        known: list[str] = []
        while True:
            addresses = reachable_addresses(self._bound_to)
            if addresses != known:
                await self._goodbye()
                try:
                    await self._register(addresses)
                    known = addresses
                    log.info("advertised", service=SERVICE_TYPE, addresses=addresses, port=self._port)
                except (OSError, NonUniqueNameException) as error:
                    log.warning("cannot be advertised now, hostfiles still work", why=str(error) or repr(error))
                    await self._goodbye()
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def _register(self, addresses: list[str]) -> None:
        # Only on the interfaces it can be reached through: a daemon on loopback is nobody else's business.
        self._zeroconf = AsyncZeroconf(interfaces=addresses, ip_version=IPVersion.V4Only)
        registered = await self._zeroconf.async_register_service(service_info(self._info, self._port, addresses))
        await registered

    async def _goodbye(self) -> None:
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            with contextlib.suppress(OSError):
                await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()
