"""State parts: kept and forgotten on a disk, and brought from daemon to daemon over mTLS, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
import pytest

from realign_cluster.domain.world import StatePart
from realign_cluster.node import states as states_module
from realign_cluster.node.states import FORGET_AFTER_SECONDS, StateRefused, StateStore
from realign_cluster.rpc.certificates import CertificateBundle, Role
from realign_cluster.rpc.channel import open_channel
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb.node_pb2_grpc import NodeStub
from realign_cluster.store.part_stream import draw, part_chunks
from realign_cluster.store.state_part import Corrupt, PartHeader, data_path, list_parts, verify_part, write_part
from tests.cluster_kit import DaemonProcess, TestCluster
from tests.node.cut_proxy import cut_proxy
from tests.node.training_stream import RANK_DAEMON, TrainingStream, training

MEGABYTE = 1 << 20


def make_part(folder: Path, step: int = 3, size: int = 1000, **header: object) -> StatePart:
    folder.mkdir(parents=True, exist_ok=True)
    data = os.urandom(size)
    described = PartHeader.model_validate({"kind": "snapshot", "step": step, "run": "r", **header})
    return write_part(folder, described, [("weights/w", "U8", (size,), data)], durable=False)


async def given(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "training")


# --- one node's disk --------------------------------------------------------------------------------------------------


async def test_a_runs_parts_are_listed_and_half_written_ones_removed(store: StateStore) -> None:
    assert await store.open("one", writing=False) == []
    assert store.knows("one")
    assert not store.knows("two")
    folder = store.folder("one")
    older, newer = make_part(folder, step=3), make_part(folder, step=4)
    half = folder / f"{newer.name}.safetensors.part"
    half.write_bytes(b"half")
    assert await store.open("one", writing=True) == [newer, older]
    assert half.exists()  # a rank may be at it
    assert await store.open("one", writing=False) == [newer, older]
    assert not half.exists()
    replaced = newer.model_copy(update={"digest": "0" * 32, "generation": 1})
    await store.drop("one", [replaced])  # decided on before the next generation did the step again
    assert await store.open("one", writing=False) == [newer, older]
    await store.drop("one", [newer])
    assert await store.open("one", writing=False) == [older]


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", "../x", "a\0b", "x" * 65, "-x"])
def test_an_id_that_would_lead_elsewhere_is_refused(store: StateStore, run_id: str) -> None:
    with pytest.raises(StateRefused):
        store.folder(run_id)


@pytest.mark.parametrize(
    "changed", [{"layout": "../../../evil"}, {"layout": "a/b"}, {"digest": "../x"}, {"digest": ""}, {"step": -1}]
)
async def test_a_part_that_would_lie_elsewhere_is_refused(store: StateStore, changed: dict[str, object]) -> None:
    await store.open("one", writing=False)
    part = make_part(store.folder("one")).model_copy(update=changed)
    with pytest.raises(StateRefused):
        await store.intact("one", part)
    with pytest.raises(StateRefused):
        store.chunks("one", part, 0)
    with pytest.raises(StateRefused):
        await store.drop("one", [part])
    with pytest.raises(StateRefused):
        await store.receive("one", part, given([b""]))


async def test_what_arrives_counts_only_if_it_is_what_was_announced(store: StateStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    part, other = make_part(source, step=3, size=3 * MEGABYTE), make_part(source, step=4)
    manifest, *data = part_chunks(source, part)
    await store.open("one", writing=False)
    flipped = bytearray(data[1])
    flipped[7] ^= 4
    for chunks in (
        [manifest, data[0], bytes(flipped), *data[2:]],
        [manifest, *data[:-1]],
        [manifest, *data, b"more"],
        [manifest[:-2], *data],
        list(part_chunks(source, other)),
        [],
    ):
        with pytest.raises(Corrupt):
            await store.receive("one", part, given(chunks))
        assert list(store.folder("one").iterdir()) == []
    await store.receive("one", part, given([manifest, *data]))
    assert verify_part(data_path(store.folder("one"), part)) == part
    assert await store.intact("one", part)
    assert not await store.intact("one", other)


async def test_a_part_arrives_once_at_a_time_and_one_that_is_given_up_leaves_nothing(
    store: StateStore, tmp_path: Path
) -> None:
    part = make_part(tmp_path / "source", size=2 * MEGABYTE)
    manifest, first, *rest = part_chunks(tmp_path / "source", part)
    reached = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield manifest
        yield first
        reached.set()
        await asyncio.Event().wait()

    await store.open("one", writing=False)
    arriving = asyncio.create_task(store.receive("one", part, stuck()))
    await asyncio.wait_for(reached.wait(), 10)
    with pytest.raises(StateRefused, match="already"):
        await store.receive("one", part, given([manifest, first, *rest]))
    assert await store.open("one", writing=False) == []
    assert len(list(store.folder("one").iterdir())) == 1  # not swept away under the one that writes it
    arriving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await arriving
    assert list(store.folder("one").iterdir()) == []
    await store.receive("one", part, given([manifest, first, *rest]))


async def test_what_the_chunks_raise_reaches_the_caller() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        await draw(b"".join, broken())
    assert await draw(b"".join, given([b"a", b"b"])) == b"ab"


async def test_old_runs_are_forgotten_and_make_room(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("old", "middle", "recent"):
        await store.open(name, writing=False)
        make_part(store.folder(name))
    cached = store.cache / "tokens"
    cached.write_bytes(b"1")
    now = store.folder("recent").stat().st_mtime
    for path, age in ((store.folder("old"), FORGET_AFTER_SECONDS + 60), (store.folder("middle"), 3600.0)):
        os.utime(path, (now - age, now - age))
    await store.open("recent", writing=False)
    assert (store.knows("old"), store.knows("middle"), cached.exists()) == (False, True, True)
    os.utime(cached, (now - FORGET_AFTER_SECONDS - 60,) * 2)
    os.utime(store.folder("recent"), (now - FORGET_AFTER_SECONDS - 60,) * 2)
    part = make_part(tmp_path / "source")
    await store.open("recent", writing=False)  # the run itself stays, however old
    assert (store.knows("recent"), cached.exists()) == (True, False)
    monkeypatch.setattr(states_module, "free_bytes", lambda _: 0)
    await store.receive("recent", part, given(part_chunks(tmp_path / "source", part)))
    assert (store.knows("recent"), store.knows("middle")) == (True, False)


# --- from daemon to daemon --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alpha(shared_cluster: TestCluster) -> DaemonProcess:
    return shared_cluster.start("alpha", module=RANK_DAEMON)


@pytest.fixture(scope="module")
def beta(shared_cluster: TestCluster) -> DaemonProcess:
    return shared_cluster.start("beta", module=RANK_DAEMON)


@contextlib.asynccontextmanager
async def run_on(
    bundle: CertificateBundle, one: DaemonProcess, two: DaemonProcess, run: str
) -> AsyncIterator[tuple[TrainingStream, TrainingStream]]:
    """The run's streams to both; a rank of it is on the first."""
    async with training(one, bundle, run) as source, training(two, bundle, run) as sink:
        await source.prepare()
        await sink.prepare()
        await source.start(1)
        try:
            yield source, sink
        finally:
            await source.release()
            await sink.release()


def held(daemon: DaemonProcess, run: str) -> list[StatePart]:
    return list_parts(daemon.folder.training / "runs" / run)


@pytest.mark.cluster
async def test_a_part_is_pulled_from_a_peer(
    shared_cluster: TestCluster, alpha: DaemonProcess, beta: DaemonProcess
) -> None:
    async with run_on(shared_cluster.coordinator, alpha, beta, "pulled") as (source, sink):
        part = await source.kept(1, step=5, size=5 * MEGABYTE)
        assert held(alpha, "pulled") == [part]
        assert "is not here" in await sink.fetch(part, corrupt=True)
        assert await sink.fetch(part, alpha.address, alpha.node_id) == ""
        assert held(beta, "pulled") == [part]
        assert await sink.fetch(part) == ""
        assert await sink.fetch(part, "127.0.0.1:1", alpha.node_id) == ""  # it is here: nobody is asked
        ready = await sink.prepare()
        assert [StatePart.model_validate_json(each) for each in ready.parts] == [part]
        durable = await source.kept(1, step=6, size=1000, kind="checkpoint")
        assert await sink.fetch(durable, alpha.address, alpha.node_id) == ""
        drop = pb.DropParts(parts=[part.model_dump_json().encode()])
        await sink.stream.send(drop_parts=drop)
        while (await sink.prepare()).parts != [durable.model_dump_json().encode()]:
            pass


@pytest.mark.cluster
async def test_a_transfer_goes_on_where_the_connection_broke(
    shared_cluster: TestCluster, alpha: DaemonProcess, beta: DaemonProcess
) -> None:
    size = 24 * MEGABYTE
    async with (
        run_on(shared_cluster.coordinator, alpha, beta, "cut") as (source, sink),
        cut_proxy(alpha.port, 8 * MEGABYTE, 8 * MEGABYTE) as proxy,
    ):
        part = await source.kept(1, step=5, size=size)
        assert await sink.fetch(part, proxy.address, alpha.node_id) == ""
        assert held(beta, "cut") == [part]
        assert proxy.allowances == []
        assert size < sum(proxy.carried) < 2 * size  # three connections, none of which began anew


@pytest.mark.cluster
async def test_a_damaged_part_of_a_peer_is_refused(
    shared_cluster: TestCluster, alpha: DaemonProcess, beta: DaemonProcess
) -> None:
    async with run_on(shared_cluster.coordinator, alpha, beta, "damaged") as (source, sink):
        part = await source.kept(1, step=5, size=3 * MEGABYTE)
        path = data_path(alpha.folder.training / "runs" / "damaged", part)
        data = bytearray(path.read_bytes())
        data[2 * MEGABYTE] ^= 1
        path.write_bytes(data)
        assert part.digest in await sink.fetch(part, alpha.address, alpha.node_id, corrupt=True)
        assert list((beta.folder.training / "runs" / "damaged").iterdir()) == []
        assert "is not here as it was written" in await source.fetch(part, corrupt=True)


@pytest.mark.cluster
async def test_a_peer_that_does_not_have_it_is_not_it_or_is_not_there(
    shared_cluster: TestCluster, cluster: TestCluster, alpha: DaemonProcess, beta: DaemonProcess
) -> None:
    stranger = cluster.start("stranger", module=RANK_DAEMON)
    async with run_on(shared_cluster.coordinator, alpha, beta, "lost") as (source, sink):
        part = await source.kept(1, step=5, size=1000)
        absent = part.model_copy(update={"step": 6})
        replaced = part.model_copy(update={"digest": "0" * 32})
        for wanted, address, node_id, corrupt, says in (
            (absent, alpha.address, alpha.node_id, True, "No such file"),
            (replaced, alpha.address, alpha.node_id, True, f"it has digest {part.digest}"),
            (part, alpha.address, beta.node_id, False, f"{alpha.node_id}, not {beta.node_id}"),
            (part, stranger.address, stranger.node_id, False, "another cluster"),
            (part, "127.0.0.1:1", alpha.node_id, False, "nothing listens"),
        ):
            assert says in await sink.fetch(wanted, address, node_id, corrupt=corrupt)
        assert held(beta, "lost") == []


@pytest.mark.cluster
async def test_who_may_read_and_write_what(
    shared_cluster: TestCluster, cluster: TestCluster, alpha: DaemonProcess, beta: DaemonProcess, tmp_path: Path
) -> None:
    brought = make_part(tmp_path / "source", step=9, size=2 * MEGABYTE, kind="checkpoint")
    manifest, *data = part_chunks(tmp_path / "source", brought)

    def written(run: str, *, damage: bool = False) -> list[pb.PartChunk]:
        first = pb.PartChunk(run_id=run, part=brought.model_dump_json().encode(), manifest=manifest)
        return [first, *(pb.PartChunk(data=bytes(len(each)) if damage else each) for each in data)]

    def read(run: str, part: StatePart) -> pb.PartRequest:
        return pb.PartRequest(run_id=run, part=part.model_dump_json().encode())

    async with run_on(shared_cluster.coordinator, alpha, beta, "rights") as (source, _):
        part = await source.kept(1, step=5, size=1000)
        node = shared_cluster.authority.issue("n-other", Role.NODE)
        async with open_channel(alpha.address, node, alpha.node_id) as channel:
            stub = NodeStub(channel)
            chunks = [chunk async for chunk in stub.ReadPart(read("rights", part), timeout=10)]
            assert (
                b"".join(chunk.data for chunk in chunks)
                == data_path(alpha.folder.training / "runs" / "rights", part).read_bytes()
            )
            for request, code in (
                (read("another", part), grpc.StatusCode.PERMISSION_DENIED),
                (read("../rights", part), grpc.StatusCode.INVALID_ARGUMENT),
                (read("rights", part.model_copy(update={"layout": "../x"})), grpc.StatusCode.INVALID_ARGUMENT),
                (pb.PartRequest(run_id="rights", part=b"{}"), grpc.StatusCode.INVALID_ARGUMENT),
                (read("rights", brought), grpc.StatusCode.NOT_FOUND),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await anext(aiter(stub.ReadPart(request, timeout=10)))
                assert refused.value.code() == code
            with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
                await stub.WritePart(iter(written("rights")[:1]), timeout=10)
        async with open_channel(alpha.address, shared_cluster.coordinator, alpha.node_id) as channel:
            stub = NodeStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="does not hold this node"):
                await stub.WritePart(iter(written("another")[:1]), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match="DATA_LOSS"):
                await stub.WritePart(iter(written("rights", damage=True)), timeout=10)
            assert held(alpha, "rights") == [part]
            await stub.WritePart(iter(written("rights")), timeout=10)
            assert held(alpha, "rights") == [brought, part]
        foreign = cluster.authority.issue("n-foreign", Role.NODE)
        async with open_channel(alpha.address, foreign, alpha.node_id) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await anext(aiter(NodeStub(channel).ReadPart(read("rights", part), timeout=3)))


@pytest.mark.cluster
async def test_what_a_run_left_is_there_after_a_restart_and_read_by_its_next_sitting(
    cluster: TestCluster,
) -> None:
    daemon = cluster.start("restarted", module=RANK_DAEMON)
    async with training(daemon, cluster.coordinator, run="left") as run:
        await run.prepare()
        await run.start(1)
        part = await run.kept(1, step=5, size=1000)
        daemon.kill()
    daemon.start()
    async with training(daemon, cluster.coordinator, run="left", epoch=2) as run:
        ready = await run.prepare()
        assert [StatePart.model_validate_json(each) for each in ready.parts] == [part]
        assert ready.generation == 0
        await run.release()
