"""What this node does for a training run that holds it: orders to its rank, reports up, parts of its state to and fro.

Never waits for a process or a disk on the way of a message: the coordinator's next beat comes behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import structlog
from pydantic import ValidationError

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.job import NO_MODEL, ModelSpec
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import RankSpec, StatePart
from realign_cluster.node import orders
from realign_cluster.node.logs import OutputLog
from realign_cluster.node.models import ModelStore
from realign_cluster.node.orders import JobRefused, RankStart, launch_of, read_job
from realign_cluster.node.part_pull import PartPuller
from realign_cluster.node.probe import boot_session
from realign_cluster.node.rank import GRACE_SECONDS, TERM_SECONDS, RankKeeper
from realign_cluster.node.states import StateStore
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.frames import FrameError, unpack_frame
from realign_cluster.rpc.pb import node_pb2 as pb

log = structlog.get_logger()


class TrainingDesk:
    """`send` reaches the coordinator if a stream is there; `make_way` ends the node's scoring worker."""

    def __init__(
        self,
        *,
        models: ModelStore,
        states: StateStore,
        bundle: CertificateBundle,
        output: OutputLog,
        cores: int,
        send: Callable[[pb.NodeMessage], None],
        make_way: Callable[[], Awaitable[None]],
    ) -> None:
        self.states = states
        self.keeper = RankKeeper(output=output, cores=cores, send=send, make_way=make_way)
        self._models = models
        self._puller = PartPuller(states, bundle, self._fetched)
        self._send = send
        self._run_id = ""
        self._epoch = 0
        self._orders = 0  # of the keeper's generation that have come in this sitting
        self._job: TrainJob | None = None
        self._asked = pb.PrepareTraining()
        self._awaiting = ""  # hash of the model or data that was asked for
        self._tasks: set[asyncio.Task[None]] = set()

    # --- who is served ----------------------------------------------------------------------------------------------

    def serve(self, run_id: str, epoch: int) -> list[pb.NodeMessage]:
        """From now on this run, "" for none. What is left of another one ends. Returns what it has yet to record."""
        if run_id != self._run_id:
            self._puller.cancel()
            self.keeper.serve(run_id)
            self._job, self._awaiting = None, ""
        if (run_id, epoch) != (self._run_id, self._epoch):
            self._orders = 0  # a new sitting numbers its orders anew
        self._run_id, self._epoch = run_id, epoch
        return self.keeper.unrecorded()

    async def vacate(self, reason: str) -> None:
        """Returns once no rank is here."""
        self.keeper.end(reason)
        await self.keeper.ended()

    def beat(self) -> pb.RankBeat | None:
        if (beat := self.keeper.beat()) is not None:
            beat.orders = self._orders
        return beat

    # --- what the coordinator says ----------------------------------------------------------------------------------

    def obey(self, message: pb.CoordinatorMessage) -> None:
        """A message of the run that is served."""
        match message.WhichOneof("body"):
            case "prepare_training":
                self._prepare(message.prepare_training)
            case "rank_order":
                self._order(message.rank_order)
            case "rank_ack":
                self.keeper.acknowledge(message.rank_ack.generation, message.rank_ack.sequence)
            case "fetch_part":
                self._fetch(message.fetch_part)
            case "drop_parts":
                self._spawn(self._drop(self._run_id, message.drop_parts.parts))

    def _prepare(self, asked: pb.PrepareTraining) -> None:
        try:
            self._job, self._asked = read_job(TrainJob, asked), asked
        except JobRefused as refused:
            self._refuse(refused.code, str(refused))
            return
        self._ask_or_be_ready(self._job)

    def model_arrived(self, model_hash: str) -> None:
        if self._job is not None and model_hash == self._awaiting:
            self._ask_or_be_ready(self._job)

    def _ask_or_be_ready(self, job: TrainJob) -> None:
        self._awaiting = next((spec.hash for spec in (job.model, job.data) if self._folder_of(spec) is None), "")
        if self._awaiting:
            self._send(pb.NodeMessage(model_needed=pb.ModelNeeded(model_hash=self._awaiting)))
        else:
            self._spawn(self._say_ready(self._run_id))

    def _folder_of(self, spec: ModelSpec) -> str | None:
        if spec.hash == NO_MODEL:
            return ""
        folder = self._models.find(spec.hash)
        return str(folder) if folder is not None else None

    async def _say_ready(self, run_id: str) -> None:
        boot = await boot_session()
        try:  # last: what the rank keeps between this look and the answer is missing there, though it was said
            parts = await self.states.open(run_id, writing=self.keeper.busy)
        except (RealignError, OSError) as error:
            self._refuse("state", f"there is no place for the training's state on this node: {error}")
            return
        if run_id == self._run_id:
            ready = pb.TrainingReady(
                parts=[part.model_dump_json().encode() for part in parts],
                generation=self.keeper.generation,
                running=self.keeper.running,
                orders=self._orders,
                boot=boot,
            )
            self._send(pb.NodeMessage(training_ready=ready))

    def _refuse(self, code: str, message: str) -> None:
        log.error("the training is refused", code=code, why=message)
        self._send(pb.NodeMessage(worker_refused=pb.WorkerRefused(code=code, message=message)))

    # --- orders to the rank -----------------------------------------------------------------------------------------

    def _order(self, order: pb.RankOrder) -> None:
        if order.generation == self.keeper.generation and order.number <= self._orders:
            return  # said again after a reconnect
        if order.HasField("start"):
            if refused := self._start(order.generation, order.start):
                self._no_such_rank(order.generation, f"not started: {refused}")
                return
        elif order.generation != self.keeper.generation:
            if order.HasField("stop") and order.generation > self.keeper.generation:
                self._no_such_rank(order.generation, "never started here")
            return
        else:
            self._hand_on(order)
        self._orders = order.number

    def _no_such_rank(self, generation: int, why: str) -> None:
        log.warning("there is no such rank", generation=generation, why=why)
        self._send(pb.NodeMessage(rank_exited=pb.RankExited(generation=generation, reason=why)))

    def _start(self, generation: int, start: pb.StartRank) -> str:
        """Why it cannot be, "" if it is."""
        job = self._job
        if job is None:
            return "the training was not prepared on this node"
        model_dir, data_dir = self._folder_of(job.model), self._folder_of(job.data)
        if model_dir is None or data_dir is None:
            return "its model or data are not on this node"
        try:
            spec = RankSpec.model_validate_json(start.spec)
        except ValidationError as error:
            return f"this node does not understand the rank's orders: {error.errors()[0]['msg']}"
        if spec.generation != generation:
            return f"its orders are for generation {spec.generation}"
        begun = self.keeper.start(
            RankStart(
                run_id=self._run_id,
                spec=spec,
                spec_json=start.spec,
                job_json=self._asked.job,
                model_dir=model_dir,
                data_dir=data_dir,
                state_dir=str(self.states.folder(self._run_id)),
                cache_dir=str(self.states.cache),
                launch=launch_of(orders.RANK_MODULE, job, self._asked),
            )
        )
        return "" if begun else f"generation {self.keeper.generation} was started here already"

    def _hand_on(self, order: pb.RankOrder) -> None:
        match order.WhichOneof("order"):
            case "go":
                addresses = list(order.go.addresses)
                self.keeper.tell({"op": "go", "generation": order.generation, "addresses": addresses})
            case "tell":
                try:
                    self.keeper.tell(unpack_frame(order.tell.message))
                except FrameError as error:
                    log.error("what the rank is to be told cannot be read", why=str(error))
            case "stop" if order.stop.kill:
                self.keeper.end(order.stop.reason, order.stop.grace_seconds or TERM_SECONDS)
            case "stop":
                self.keeper.stop(order.stop.reason, order.stop.grace_seconds or GRACE_SECONDS)

    # --- parts of the state -----------------------------------------------------------------------------------------

    def _fetch(self, fetch: pb.FetchPart) -> None:
        try:
            part = StatePart.model_validate_json(fetch.part)
        except ValidationError as error:
            self._say_fetched(fetch.part, f"this node does not understand the part: {error.errors()[0]['msg']}", False)
            return
        self._puller.fetch(self._run_id, part, fetch.address, fetch.node_id)

    def _fetched(self, part: StatePart, error: str, corrupt: bool) -> None:
        self._say_fetched(part.model_dump_json().encode(), error, corrupt)

    def _say_fetched(self, part: bytes, error: str, corrupt: bool) -> None:
        self._send(pb.NodeMessage(part_fetched=pb.PartFetched(part=part, error=error, corrupt=corrupt)))

    async def _drop(self, run_id: str, parts: Sequence[bytes]) -> None:
        try:
            await self.states.drop(run_id, [StatePart.model_validate_json(part) for part in parts])
        except (RealignError, ValidationError, OSError) as error:
            log.error("parts could not be dropped", why=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
