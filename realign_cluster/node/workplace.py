"""What this node does for the run that holds it: units to the worker, results through the spool to its stream.

Outlives streams. When the coordinator falls silent or its stream breaks, waiting units are dropped, the unit in hand is
finished and spooled, and the worker stays warm for the run's return. A training's rank ends instead: its peers may be
gone, and nobody would tell it. What a training asks is the desk's in `training`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import structlog

from realign_cluster.domain.job import ScoreJob
from realign_cluster.node.logs import OutputLog
from realign_cluster.node.models import ModelStore
from realign_cluster.node.orders import SCORING_MODULE, JobRefused, WorkOrder, launch_of, read_job
from realign_cluster.node.outbox import Outbox
from realign_cluster.node.spool import Spool
from realign_cluster.node.states import StateStore
from realign_cluster.node.supervisor import Supervisor
from realign_cluster.node.tenancy import Tenancy, Tenant
from realign_cluster.node.training import TrainingDesk
from realign_cluster.node.work_queue import Held, QueueFull
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.pb import node_pb2 as pb

log = structlog.get_logger()

IDLE_WORKER_SECONDS = 300.0
STALL_SECONDS = 1.0
_HOUSEKEEPING_SECONDS = 0.5


class Workplace:
    """Implements supervisor.WorkerListener. Not thread-safe: one event loop owns it."""

    def __init__(
        self,
        *,
        node_name: str,
        models: ModelStore,
        spool: Spool,
        states: StateStore,
        bundle: CertificateBundle,
        output: OutputLog,
        cores: int,
        clock: Callable[[], float],
        idle_worker_seconds: float = IDLE_WORKER_SECONDS,
    ) -> None:
        self.tenancy = Tenancy(node_name)
        self.spool = spool
        self.supervisor = Supervisor(output=output, cores=cores, listener=self)
        self.training = TrainingDesk(
            models=models,
            states=states,
            bundle=bundle,
            output=output,
            cores=cores,
            send=self._send,
            make_way=self._end_worker,
        )
        self._models = models
        self._clock = clock
        self._idle_worker_seconds = idle_worker_seconds
        self._outbox: Outbox | None = None
        self._tenant: Tenant | None = None  # whose messages are obeyed: the stream's own, set with it
        self._awaiting_model: tuple[str, ScoreJob, pb.Prepare] | None = None
        self._last_used = self._looked = clock()
        self._preparing = asyncio.Lock()
        self._changed = asyncio.Event()  # something was finished or acknowledged: `finish` looks again
        self.stopping = False

    # --- streams ----------------------------------------------------------------------------------------------------

    def holder(self) -> Tenant | None:
        """Who has this node now. Asked several times a second: a longer gap means that this process did not run, and
        that what was sent meanwhile has yet to be read.
        """
        now = self._clock()
        gap, self._looked = now - self._looked, now
        if gap > STALL_SECONDS:
            self.tenancy.stalled(gap, now)
        return self.tenancy.current(now)

    def attach(self, outbox: Outbox, tenant: Tenant) -> list[int]:
        """Makes this the one stream; an older one ends. Returns the run's spooled attempts, which are offered again."""
        if self._outbox is not None:
            before = self._tenant
            refusal = None
            if before is not None and before.run_id == tenant.run_id and before.epoch < tenant.epoch:
                refusal = pb.Refusal(
                    code=pb.Refusal.STALE_EPOCH,
                    message=f"sitting {tenant.epoch} of run {tenant.run_id} has taken this node over",
                )
            self._outbox.end(refusal)
            self.supervisor.drop_all_but_computing()
        self._outbox, self._tenant = outbox, tenant
        attempts = self.spool.attempts(tenant.run_id)
        for attempt in attempts:
            outbox.offer(attempt)
        for message in self.training.serve(tenant.run_id, tenant.epoch):
            outbox.put(message)
        return attempts

    def detach(self, outbox: Outbox) -> None:
        """The stream is gone, for whatever reason. Its run may come back; what waited for it is dropped."""
        if self._outbox is not outbox:
            return
        self._outbox = None
        self._changed.set()
        self._awaiting_model = None
        self.supervisor.drop_all_but_computing()
        self.spool.spill(self._clock(), everything=True)

    def _send(self, message: pb.NodeMessage) -> None:
        if self._outbox is not None:
            self._outbox.put(message)

    # --- what the coordinator says ----------------------------------------------------------------------------------

    async def obey(self, message: pb.CoordinatorMessage, tenant: Tenant) -> None:
        """One message of the current stream, beats excepted. What an older one still says comes too late."""
        if tenant is not self._tenant:
            return
        match message.WhichOneof("body"):
            case "assign":
                self._assign(message.assign, tenant)
            case "ack":
                self.spool.acknowledge(tenant.run_id, message.ack.attempts)
                self._changed.set()
            case "revoke":
                self.supervisor.revoke(tenant.run_id, message.revoke.attempts)
                self.spool.acknowledge(tenant.run_id, message.revoke.attempts)
            case "prepare":
                await self._prepare(message.prepare)
            case "join_group":
                self.supervisor.join(message.join_group.generation, message.join_group.addresses)
            case "restart_worker":
                self.supervisor.restart(message.restart_worker.reason, message.restart_worker.generation)
            case "release":
                self.release(tenant)
            case "rank_ack" | "fetch_part" | "drop_parts":
                self.training.obey(message)
                self._changed.set()
            case _ if not self.stopping:
                self.training.obey(message)

    def release(self, tenant: Tenant) -> None:
        self.tenancy.release(tenant.run_id, tenant.epoch)
        self.supervisor.silence(tenant.run_id)
        self.spool.forget(tenant.run_id)  # a later sitting would not take results of this one
        self.training.serve("", 0)
        self._last_used = self._clock()

    def _assign(self, assign: pb.Assign, tenant: Tenant) -> None:
        if self.stopping or self.spool.holds(tenant.run_id, assign.attempt):
            return  # we leave, or its result is on its way already
        try:
            self.supervisor.submit(
                run_id=tenant.run_id,
                epoch=tenant.epoch,
                attempt=assign.attempt,
                unit=assign.unit,
                lease=assign.lease,
                count=assign.count,
                cost=assign.cost,
                rows=assign.rows,
                row_ids=assign.row_ids,
            )
        except QueueFull as error:
            log.error("more work than a node may be given", why=str(error))
            if self._outbox is not None:
                self._outbox.end()

    async def _prepare(self, prepare: pb.Prepare) -> None:
        try:
            job = read_job(ScoreJob, prepare)
        except JobRefused as refused:
            self.worker_refused(refused.code, str(refused))
            return
        await self._ask_or_start(job, prepare)

    async def _ask_or_start(self, job: ScoreJob, prepare: pb.Prepare) -> None:
        """Asks for the first of the job's folders that is not here; what it asked for arrives by `model_arrived`."""
        missing = next((spec.hash for spec in job.stored if self._models.find(spec.hash) is None), None)
        if missing is None:
            self._awaiting_model = None
            await self._start(job, prepare)
            return
        self._awaiting_model = (missing, job, prepare)
        self._send(pb.NodeMessage(model_needed=pb.ModelNeeded(model_hash=missing)))

    async def model_arrived(self, model_hash: str) -> None:
        if self._awaiting_model is not None and self._awaiting_model[0] == model_hash:
            _, job, prepare = self._awaiting_model
            await self._ask_or_start(job, prepare)
        self.training.model_arrived(model_hash)

    async def _start(self, job: ScoreJob, prepare: pb.Prepare) -> None:
        folders = {spec.hash: str(self._models.find(spec.hash)) for spec in job.stored}
        order = WorkOrder(
            job=job,
            job_json=prepare.job,
            model_dir=folders.pop(job.model.hash, ""),
            other_dirs=folders,
            group=prepare.group,
            measure=prepare.measure or "none",
            samples=tuple(prepare.samples),
            launch=launch_of(SCORING_MODULE, job, prepare),
        )
        await self.training.vacate("a scoring job has this node")
        async with self._preparing:
            if not self.stopping:
                await self.supervisor.prepare(order)

    async def _end_worker(self) -> None:
        async with self._preparing:
            await self.supervisor.stop_worker(kill=True)

    # --- what the worker says ---------------------------------------------------------------------------------------

    def worker_waiting(self, port: int, pid: int, generation: int) -> None:
        log.info("worker waits to join its group", pid=pid, generation=generation, port=port)
        self._send(pb.NodeMessage(worker_waiting=pb.WorkerWaiting(generation=generation, pid=pid, port=port)))

    def worker_ready(self, report: bytes, pid: int, generation: int) -> None:
        log.info("worker ready", pid=pid, generation=generation)
        self._send(pb.NodeMessage(worker_ready=pb.WorkerReady(report=report, pid=pid, generation=generation)))

    def worker_exited(
        self,
        *,
        generation: int,
        reason: str,
        computing: Held | None,
        lost: list[Held],
        asked: bool,
        back_off_seconds: float,
        last_lines: str,
    ) -> None:
        self._changed.set()
        log.warning("worker exited", generation=generation, reason=reason, asked=asked, back_off=back_off_seconds)
        self._send(
            pb.NodeMessage(
                worker_exited=pb.WorkerExited(
                    generation=generation,
                    reason=reason,
                    computing_attempt=computing.attempt if computing and self._ours(computing) else 0,
                    lost_attempts=[held.attempt for held in lost if self._ours(held)],
                    asked=asked,
                    back_off_seconds=back_off_seconds,
                    last_lines=last_lines,
                )
            )
        )

    def worker_refused(self, code: str, message: str) -> None:
        log.error("the job is refused", code=code, why=message)
        self._send(pb.NodeMessage(worker_refused=pb.WorkerRefused(code=code, message=message)))

    def measuring(self, what: str, fraction: float) -> None:
        self._send(pb.NodeMessage(measuring=pb.Measuring(what=what, fraction=fraction)))

    def result(self, held: Held, frame: dict[str, Any]) -> None:
        payload: bytes = frame["payload"]
        result = pb.Result(
            attempt=held.attempt,
            unit=held.unit,
            epoch=held.epoch,
            lease=held.lease,
            payload=payload,
            checksum=hashlib.blake2b(payload, digest_size=16).digest(),
            compute_seconds=float(frame.get("compute_seconds", 0.0)),
            tokens=int(frame.get("tokens", 0)),
            rows=int(frame.get("rows", held.count)),
            shape=str(frame.get("shape", "")),
        )
        self.spool.add(held.run_id, result, self._clock())
        self._changed.set()
        if self._outbox is not None and self._ours(held):
            self._outbox.offer(held.attempt)

    def unit_failed(self, held: Held, frame: dict[str, Any]) -> None:
        self._changed.set()
        if self._ours(held):
            self._send(
                pb.NodeMessage(
                    unit_failed=pb.UnitFailed(
                        attempt=held.attempt,
                        unit=held.unit,
                        epoch=held.epoch,
                        code=str(frame.get("code", "failed")),
                        message=str(frame.get("message", "")),
                        row=max(0, int(frame.get("row") or 0)),
                    )
                )
            )

    def _ours(self, held: Held) -> bool:
        """Whether it belongs to the run of the current stream: a warm worker may still finish another run's unit."""
        return self._tenant is not None and held.run_id == self._tenant.run_id

    # --- housekeeping -----------------------------------------------------------------------------------------------

    @property
    def computing_attempt(self) -> int:
        computing = self.supervisor.queue.computing
        return computing.attempt if computing is not None and self._ours(computing) else 0

    async def keep_house(self) -> None:
        """Runs until cancelled: writes out what has waited too long, ends a worker that nobody has used for long, and
        at once a rank or a worker of a group whose coordinator is gone: the others do not wait for it.
        """
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            now = self._clock()
            holder = self.holder()
            self.spool.spill(now, everything=self._outbox is None)
            if holder is None and self._tenant is not None:
                self.training.keeper.end(f"nothing heard from the coordinator for {self._tenant.lease_seconds:g} s")
            if holder is not None or self.supervisor.queue.computing is not None:
                self._last_used = now
            elif self.supervisor.in_group:
                log.info("worker ended: its group is over")
                await self._end_worker()
            elif self.supervisor.pid and now - self._last_used > self._idle_worker_seconds:
                log.info("worker ended: unused", seconds=self._idle_worker_seconds)
                async with self._preparing:
                    await self.supervisor.stop_worker()

    async def finish(self, seconds: float) -> None:
        """For an orderly end: takes nothing new, lets the unit in hand be finished and acknowledged, keeps the rest."""
        self.stopping = True
        self.supervisor.drop_all_but_computing()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._until(lambda: self.supervisor.queue.computing is None)
                await self.training.vacate("this daemon was told to stop")
                if self._outbox is not None and self._tenant is not None:
                    await self._acknowledged(self._tenant.run_id)
        if self._outbox is not None:
            self._outbox.end(pb.Refusal(code=pb.Refusal.STOPPING, message="this daemon was told to stop"))
        self.spool.spill(self._clock(), everything=True)
        async with self._preparing:
            await self.supervisor.stop_worker()

    async def _acknowledged(self, run_id: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._until(
                    lambda: (
                        self._outbox is None or not (self.spool.attempts(run_id) or self.training.keeper.unrecorded())
                    )
                )

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
