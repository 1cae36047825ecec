"""A training's session and part transfers with real daemons over mTLS; the ranks are played by real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator.inbox import Connected, Disconnected, Inbox, Incoming
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.node_address import NodeAddress
from realign_cluster.coordinator.part_transfer import read_part, send_part
from realign_cluster.coordinator.training_session import TrainingSession, open_training_session
from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.job import ModelFileSpec, ModelSpec
from realign_cluster.domain.world import StatePart
from realign_cluster.rpc.part_stream import PartUnfit
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.store.checkpoints import CheckpointManifest, CheckpointStore
from realign_cluster.store.model_files import hash_file, hash_of_files
from realign_cluster.store.state_part import Corrupt, data_path, list_parts
from tests.cluster.kit import CurateCluster
from tests.cluster_kit import DaemonProcess, wait_until
from tests.node.cut_proxy import CutProxy, cut_proxy
from tests.node.training_stream import JOB, NOTHING, RANK_DAEMON, gone, spec

pytestmark = pytest.mark.cluster


class Node:
    """A session with one daemon, and what it handed to the engine."""

    def __init__(self, session: TrainingSession, inbox: Inbox) -> None:
        self.session = session
        self._inbox = inbox

    async def heard(self, kind: type | str) -> Any:
        """The next thing of this kind; beats and other things before it are passed over."""
        async with asyncio.timeout(20):
            while True:
                item = await self._inbox.get()
                assert isinstance(item, Incoming)
                match item.report:
                    case pb.NodeMessage() as message if isinstance(kind, str) and message.HasField(kind):
                        return getattr(message, kind)
                    case report if isinstance(kind, type) and isinstance(report, kind):
                        return report

    async def said(self, op: str) -> dict[str, Any]:
        while (found := json.loads((await self.heard("rank_report")).body))["op"] != op:
            pass
        return found  # type: ignore[no-any-return]

    async def steps(self, count: int) -> list[int]:
        return [(await self.said("step"))["step"] for _ in range(count)]

    async def kept(self, generation: int, **frame: Any) -> StatePart:
        self.session.tell_rank(generation, {"op": "keep", **frame})
        return StatePart.model_validate((await self.said("kept"))["part"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[CurateCluster]:
    made = CurateCluster(tmp_path)
    yield made
    made.close()


def address_of(cluster: CurateCluster, daemon: DaemonProcess, address: str = "") -> NodeAddress:
    return NodeAddress(
        name=NodeName(daemon.name),
        node_id=daemon.node_id,
        address=address or daemon.address,
        bundle=cluster.home.bundle(),
        home=cluster.home,
        environment={"MLX_METAL_FAST_SYNCH": "1"},
    )


@contextlib.asynccontextmanager
async def training(
    address: NodeAddress, *, model: ModelSource | None = None, data: ModelSource | None = None, epoch: int = 1
) -> AsyncIterator[Node]:
    inbox: Inbox = asyncio.Queue()
    nothing = ModelSource(folder=Path(), spec=NOTHING)
    model, data = model or nothing, data or nothing
    job = JOB.model_copy(update={"model": model.spec, "data": data.spec})
    session = open_training_session(
        address, run_id="run-1", epoch=epoch, job=job, model=model, data=data, inbox=inbox, nice=1
    )
    running = asyncio.create_task(session.run())
    try:
        yield Node(session, inbox)
        await session.release("done")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@contextlib.asynccontextmanager
async def behind_proxy(cluster: CurateCluster, daemon: DaemonProcess) -> AsyncIterator[tuple[Node, CutProxy]]:
    async with cut_proxy(daemon.port) as proxy, training(address_of(cluster, daemon, proxy.address)) as node:
        yield node, proxy


def source(folder: Path, name: str, **files: bytes) -> ModelSource:
    folder.mkdir()
    described = []
    for stem, content in files.items():
        path = folder / stem.replace("_", ".")
        path.write_bytes(content)
        described.append(ModelFileSpec(path=path.name, size=len(content), blake2b=hash_file(path)))
    spec = ModelSpec(name=name, hash=hash_of_files(described), files=tuple(described))
    return ModelSource(folder=folder, spec=spec)


async def test_model_and_data_are_brought_before_a_node_is_ready(cluster: CurateCluster, tmp_path: Path) -> None:
    daemon = cluster.start("studio", module=RANK_DAEMON)
    model = source(tmp_path / "m", "tiny", config_json=b"{}", model_safetensors=os.urandom(3 << 20))
    data = source(tmp_path / "d", "rows", train_jsonl=b'{"text": "a"}\n' * 9)
    for _ in range(2):  # the second time they are there
        async with training(address_of(cluster, daemon), model=model, data=data) as node:
            ready = await node.heard("training_ready")
            assert (ready.generation, ready.running) == (0, False)
            for each in (model, data):
                stored = daemon.folder.models / each.spec.hash
                for file in each.spec.files:
                    assert (stored / file.path).read_bytes() == (each.folder / file.path).read_bytes()
            node.session.start_rank(spec(1))
            here = await node.said("here")
            assert here["frame"]["model_dir"] == str(daemon.folder.models / model.spec.hash)
            assert here["frame"]["data_dir"] == str(daemon.folder.models / data.spec.hash)
            assert here["environment"]["MLX_METAL_FAST_SYNCH"] == "1"
            assert os.getpriority(os.PRIO_PROCESS, here["pid"]) == 1


async def test_a_generation_from_start_to_end_and_the_next(cluster: CurateCluster) -> None:
    daemon = cluster.start("studio", module=RANK_DAEMON)
    async with training(address_of(cluster, daemon)) as node:
        session = node.session
        await node.heard("training_ready")
        session.start_rank(spec(3))
        await node.said("here")
        session.go(3, ("10.0.0.1:5", "10.0.0.2:6"))
        assert (await node.said("joined"))["addresses"] == ["10.0.0.1:5", "10.0.0.2:6"]
        session.tell_rank(3, {"op": "say", "first": 1, "count": 2})
        assert await node.steps(2) == [1, 2]
        session.stop_rank(3, kill=False, reason="paused")
        exited = await node.heard("rank_exited")
        assert (exited.generation, exited.reason, exited.asked) == (3, "paused (exit status 0)", True)
        session.acknowledge_report(3, exited.sequence)
        session.start_rank(spec(4))
        here = await node.said("here")
        os.kill(here["pid"], signal.SIGSTOP)
        await asyncio.to_thread(wait_until, lambda: not gone(here["pid"]))
        session.start_rank(spec(5))
        exited = await node.heard("rank_exited")
        assert (exited.generation, exited.asked) == (4, True)
        await node.said("here")
        session.stop_rank(5, kill=True, reason="over", grace_seconds=0.5)
        assert (await node.heard("rank_exited")).reason == "over (killed by signal 15)"
        session.stop_rank(9, kill=True, reason="never was")
        exited = await node.heard("rank_exited")
        assert (exited.generation, exited.sequence) == (9, 0)


async def test_orders_and_reports_survive_a_cut_and_come_once(cluster: CurateCluster) -> None:
    daemon = cluster.start("studio", module=RANK_DAEMON)
    async with behind_proxy(cluster, daemon) as (node, proxy):
        await node.heard("training_ready")
        node.session.start_rank(spec(1))
        await node.said("here")
        node.session.tell_rank(1, {"op": "say", "first": 1, "count": 2})
        assert await node.steps(2) == [1, 2]
        for at in (3, 6):
            node.session.tell_rank(1, {"op": "say", "first": at, "count": 1})  # may be under way
            proxy.cut()
            node.session.tell_rank(1, {"op": "say", "first": at + 1, "count": 1})
            await node.heard(Disconnected)
            node.session.tell_rank(1, {"op": "say", "first": at + 2, "count": 1})
            proxy.mend()
            ready = await node.heard("training_ready")
            assert (ready.generation, ready.running) == (1, True)
            assert await node.steps(3) == [at, at + 1, at + 2]
        node.session.stop_rank(1, kill=True, reason="over")
        exited = await node.heard("rank_exited")
        assert exited.sequence == 2 + 8 + 1
        node.session.acknowledge_report(1, exited.sequence)
    async with training(address_of(cluster, daemon), epoch=2) as node:
        await node.heard("training_ready")
        node.session.start_rank(spec(2))
        here = await node.heard("rank_report")  # nothing of generation 1 was left to be recorded
        assert (here.generation, here.sequence) == (2, 1)


async def test_a_start_that_met_no_connection_is_said_after_it_is_back(cluster: CurateCluster) -> None:
    daemon = cluster.start("studio", module=RANK_DAEMON)
    async with behind_proxy(cluster, daemon) as (node, proxy):
        await node.heard("training_ready")
        proxy.cut()
        await node.heard(Disconnected)
        node.session.start_rank(spec(1))
        node.session.tell_rank(1, {"op": "say", "first": 1, "count": 1})
        node.session.start_rank(spec(2))
        node.session.tell_rank(2, {"op": "say", "first": 7, "count": 1})
        proxy.mend()
        report = await node.heard("rank_report")
        assert report.generation == 2  # the older one was void before it began
        assert await node.steps(1) == [7]


async def test_a_node_that_was_given_up_is_told_nothing_old_and_says_again_what_was_not_recorded(
    cluster: CurateCluster,
) -> None:
    daemon = cluster.start("studio", module=RANK_DAEMON)
    async with behind_proxy(cluster, daemon) as (node, proxy):
        await node.heard("training_ready")
        node.session.start_rank(spec(1))
        await node.said("here")
        node.session.tell_rank(1, {"op": "say", "first": 1, "count": 3})
        assert await node.steps(3) == [1, 2, 3]
        node.session.acknowledge_report(1, 3)  # two reports at its start, and the first step
        proxy.cut()
        await node.heard(Disconnected)
        node.session.tell_rank(1, {"op": "say", "first": 4, "count": 1})
        node.session.start_over()
        proxy.mend()
        await node.heard(Connected)
        assert await node.steps(2) == [2, 3]
        ready = await node.heard("training_ready")
        assert ready.running
        node.session.tell_rank(1, {"op": "say", "first": 5, "count": 1})
        assert await node.steps(1) == [5]


async def test_a_daemon_that_begins_anew_knows_of_no_rank(cluster: CurateCluster) -> None:
    daemon = cluster.start("studio", module=RANK_DAEMON)
    async with training(address_of(cluster, daemon)) as node:
        before = await node.heard("training_ready")
        node.session.start_rank(spec(1))
        here = await node.said("here")
        node.session.tell_rank(1, {"op": "say", "first": 1, "count": 1})
        await node.steps(1)
        while (await node.heard("beat")).rank.orders != 2:
            pass
        daemon.kill()
        await node.heard(Disconnected)
        node.session.tell_rank(1, {"op": "say", "first": 2, "count": 1})
        daemon.start()
        ready = await node.heard("training_ready")
        assert (ready.generation, ready.running, ready.boot) == (0, False, before.boot)
        assert gone(here["pid"])
        node.session.stop_rank(1, kill=True, reason="whatever is left of it")
        exited = await node.heard("rank_exited")
        assert (exited.generation, exited.sequence) == (1, 0)
        node.session.start_rank(spec(2))
        await node.said("here")


async def test_a_checkpoint_comes_into_the_run_folder_and_goes_to_another_node(
    cluster: CurateCluster, tmp_path: Path
) -> None:
    one, two = (cluster.start(name, module=RANK_DAEMON) for name in ("one", "two"))
    store = CheckpointStore(tmp_path / "checkpoints")
    async with training(address_of(cluster, one)) as first, training(address_of(cluster, two)) as second:
        await first.heard("training_ready")
        await second.heard("training_ready")
        first.session.start_rank(spec(1))
        await first.said("here")
        part = await first.kept(1, step=8, size=12 << 20, kind="checkpoint")
        assert store.begin(8) is None
        async with cut_proxy(one.port, 4 << 20) as proxy:
            through = replace(first.session.address, address=proxy.address)
            assert await read_part(through, "run-1", part, store.receive) == part
            assert not proxy.allowances
        manifest = CheckpointManifest(step=8, layout="whole", parts=(part,))
        assert store.commit(manifest) == manifest
        assert store.verify(manifest) == manifest
        async with cut_proxy(two.port) as proxy:
            through = replace(second.session.address, address=proxy.address)
            await send_part(through, "run-1", part, store.path(8))
        assert list_parts(two.folder.training / "runs" / "run-1") == [part]

        other = part.model_copy(update={"step": 9})
        with pytest.raises(PartUnfit, match="No such file"):
            await read_part(first.session.address, "run-1", other, store.receive)
        with pytest.raises(Corrupt):
            await send_part(second.session.address, "run-1", other, store.path(8))
        path = data_path(store.path(8), part)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(Corrupt, match="cannot be brought to two"):
            await send_part(second.session.address, "run-1", part, store.path(8))
        with pytest.raises(RealignError, match="does not hold"):
            await send_part(second.session.address, "run-2", part, store.path(8))
        second.session.drop_parts([part])
        second.session.fetch_part(part)
        assert "not here" in (await second.heard("part_fetched")).error
        second.session.fetch_part(part, one.address, one.node_id)
        assert (await second.heard("part_fetched")).error == ""
