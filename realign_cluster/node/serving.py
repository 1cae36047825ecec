"""What every call to a daemon may need, and what the daemon says of itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import grpc

from realign_cluster.node.models import ModelStore
from realign_cluster.node.probe import HealthSampler, quick_device
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.node.tenancy import Tenant
from realign_cluster.node.workplace import Workplace
from realign_cluster.rpc.certificates import CertificateBundle, CertificateError, PeerIdentity, Role
from realign_cluster.rpc.channel import caller_identity
from realign_cluster.rpc.pb import common_pb2

DEVICE_SECONDS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Put together once, by the daemon."""

    node_id: str
    name: str
    folder: StateFolder
    bundle: CertificateBundle
    workplace: Workplace
    models: ModelStore
    health: HealthSampler
    device: asyncio.Future[common_pb2.Device]
    versions: common_pb2.Versions
    pid: int
    started_at: float

    async def describe(self) -> common_pb2.NodeInfo:
        info = common_pb2.NodeInfo(
            node_id=self.node_id,
            name=self.name,
            versions=self.versions,
            device=await self._device(),
            certificate_fingerprint=self.bundle.fingerprint,
            models=self.models.names(),
            uptime_seconds=time.monotonic() - self.started_at,
            pid=self.pid,
        )
        tenant = self.workplace.tenancy.current(time.monotonic())
        if tenant is not None:
            info.holder.CopyFrom(holder_of(tenant))
        return info

    async def _device(self) -> common_pb2.Device:
        """Without what MLX sees while that is still being asked for longer than a greeting may take."""
        try:
            return await asyncio.wait_for(asyncio.shield(self.device), DEVICE_SECONDS)
        except TimeoutError:
            return await quick_device()

    def health_now(self) -> common_pb2.Health:
        workplace = self.workplace
        rank_pid = workplace.training.keeper.pid
        health = self.health.sample(rank_pid or workplace.supervisor.pid)
        health.worker = common_pb2.WorkerState.WORKER_TRAINING if rank_pid else workplace.supervisor.state
        health.spooled_results = len(workplace.spool)
        return health


def holder_of(tenant: Tenant) -> common_pb2.Holder:
    return common_pb2.Holder(
        run_id=tenant.run_id,
        coordinator=tenant.coordinator,
        epoch=tenant.epoch,
        idle_seconds=tenant.silent_for(time.monotonic()),
    )


async def require(context: grpc.aio.ServicerContext, role: Role | None = None) -> PeerIdentity:
    """Aborts the call unless the certificate on the other end has this role (any role of the cluster without one)."""
    try:
        caller = caller_identity(context)
    except CertificateError as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        raise
    if role is not None and caller.role is not role:
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{caller.id} is a {caller.role.value} of this cluster; only a {role.value} may ask for this",
        )
    return caller
