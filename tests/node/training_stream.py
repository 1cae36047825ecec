"""A training's end of a stream, by hand: orders are numbered, reports come as objects in the order they were made."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import psutil

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import RankSpec, StatePart, WorldPlan
from realign_cluster.rpc.certificates import CertificateBundle
from realign_cluster.rpc.frames import pack_frame
from realign_cluster.rpc.pb import node_pb2 as pb
from tests.cluster_kit import DaemonProcess
from tests.node.stream import Stream, session

NOTHING = ModelSpec(name="none", hash="none")
JOB = TrainJob(model=NOTHING, data=NOTHING, steps=10, global_batch=4)
RANK_DAEMON = "tests.node.realignd_with_rank_child"


def spec(generation: int, rank: int = 0, start_step: int = 0) -> RankSpec:
    world = WorldPlan(parallel="data", nodes=("a", "b"), shares=(0.5, 0.5))
    return RankSpec(generation=generation, rank=rank, world=world, start_step=start_step)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class TrainingStream:
    """`sequence` is of the last message that shares a generation's numbering."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.sequence = 0
        self._numbers: dict[int, int] = {}

    async def prepare(self, job: TrainJob = JOB, **more: Any) -> pb.TrainingReady:
        asked = pb.PrepareTraining(job=job.model_dump_json().encode(), **more)
        await self.stream.send(prepare_training=asked)
        return await self.stream.expect("training_ready")

    async def order(self, generation: int, **order: Any) -> pb.RankOrder:
        number = self._numbers[generation] = self._numbers.get(generation, 0) + 1
        made = pb.RankOrder(generation=generation, number=number, **order)
        await self.stream.send(rank_order=made)
        return made

    async def begin(self, generation: int, **more: Any) -> None:
        described = spec(generation, **more).model_dump_json().encode()
        await self.order(generation, start=pb.StartRank(spec=described))

    async def start(self, generation: int, **more: Any) -> dict[str, Any]:
        """What the rank found when it was there."""
        await self.begin(generation, **more)
        return await self.report("here")

    async def tell(self, generation: int, **frame: Any) -> None:
        await self.order(generation, tell=pb.TellRank(message=pack_frame(frame)))

    async def kill(self, generation: int, grace_seconds: float = 0.0) -> None:
        await self.order(generation, stop=pb.StopRank(kill=True, reason="enough", grace_seconds=grace_seconds))

    async def reported(self) -> dict[str, Any]:
        """The next message, which must be a report."""
        message = await self.stream.expect("rank_report")
        self.sequence = message.sequence
        return json.loads(message.body)  # type: ignore[no-any-return]

    async def report(self, op: str) -> dict[str, Any]:
        """The next report of this kind; there may be others before it, but nothing else."""
        while (found := await self.reported())["op"] != op:
            pass
        return found

    async def exited(self) -> pb.RankExited:
        message = await self.stream.expect("rank_exited")
        self.sequence = message.sequence
        return message

    async def acknowledge(self, generation: int) -> None:
        await self.stream.send(rank_ack=pb.RankAck(generation=generation, sequence=self.sequence))

    async def kept(self, generation: int, step: int, size: int, **more: Any) -> StatePart:
        """A part that the rank was told to leave."""
        await self.tell(generation, op="keep", step=step, size=size, **more)
        return StatePart.model_validate((await self.report("kept"))["part"])

    async def fetch(self, part: StatePart, address: str = "", node_id: str = "", *, corrupt: bool = False) -> str:
        """What was wrong, "" for nothing. `corrupt`: whether it has to be the part itself."""
        described = part.model_dump_json().encode()
        await self.stream.send(fetch_part=pb.FetchPart(part=described, address=address, node_id=node_id))
        fetched = await self.stream.expect("part_fetched")
        assert (StatePart.model_validate_json(fetched.part), fetched.corrupt) == (part, corrupt)
        return str(fetched.error)

    async def release(self) -> None:
        """The rest of what a rank said may come first."""
        await self.stream.send(release=pb.Release(reason="done"))
        async with asyncio.timeout(20):
            while await self.stream.next() is not None:
                pass


@contextlib.asynccontextmanager
async def training(
    daemon: DaemonProcess, bundle: CertificateBundle, run: str = "run-1", epoch: int = 1, lease: float = 3.0
) -> AsyncIterator[TrainingStream]:
    async with session(daemon, bundle, run, epoch, lease) as stream:
        yield TrainingStream(stream)
