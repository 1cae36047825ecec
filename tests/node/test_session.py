"""Sessions with a real daemon over mTLS and a real worker: greetings, leases, takeover, reconnects, faults."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator

import grpc
import psutil
import pytest

from realign_cluster.rpc.certificates import Authority, Role
from realign_cluster.rpc.channel import open_channel
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb.common_pb2 import WorkerState
from realign_cluster.rpc.pb.node_pb2_grpc import NodeStub
from tests.cluster_kit import DaemonProcess, TestCluster
from tests.node.stream import dialled, hello, rows, session, until_worker_is

pytestmark = pytest.mark.cluster

Codes = pb.Refusal


@pytest.fixture
async def daemon(shared_cluster: TestCluster, shared_daemon: DaemonProcess) -> AsyncIterator[DaemonProcess]:
    """Free, whatever an earlier test left: short leases are waited out."""
    yield shared_daemon
    async with asyncio.timeout(20):
        while True:
            async with dialled(
                shared_daemon, shared_cluster.coordinator, hello(shared_daemon, run="cleaner")
            ) as stream:
                answer = await stream.next()
                if answer is not None and answer.HasField("welcome"):
                    await stream.release()
                    return
            await asyncio.sleep(0.1)


async def test_units_come_back_as_results(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        assert stream.welcome.info.node_id == daemon.node_id
        ready = await stream.prepare()
        assert ready.pid in daemon.worker_pids()
        assert json.loads(ready.report)["model_hash"] == "none"
        for attempt in range(1, 51):
            await stream.assign(attempt)
        for attempt in range(1, 51):
            result = await stream.expect("result")
            assert (result.attempt, result.unit, result.epoch, result.lease) == (attempt, attempt + 1000, 1, 1)
            assert result.checksum == hashlib.blake2b(result.payload, digest_size=16).digest()
            assert len(result.payload.split(b"\n")) == result.rows == 3
        await stream.acknowledge(range(1, 51))
        beat = await stream.until_beat(computing_attempt=0)
        assert beat.progress > 50
        assert beat.health.worker_pid == ready.pid
        assert beat.health.memory_available_bytes > 0
        await stream.release()


async def test_a_wrong_node_id_and_a_wrong_protocol_are_refused(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    wrong_id, wrong_protocol = hello(daemon), hello(daemon)
    wrong_id.node_id = "n-somebody-else"
    wrong_protocol.versions.protocol = 99
    for greeting, code, says in (
        (wrong_id, Codes.IDENTITY, daemon.node_id),
        (wrong_protocol, Codes.VERSION, "the coordinator 99"),
    ):
        async with dialled(daemon, shared_cluster.coordinator, greeting) as stream:
            refusal = await stream.expect("refusal")
            assert refusal.code == code
            assert says in refusal.message
            assert "fix:" in refusal.message
            await stream.expect("end")


async def test_only_a_coordinator_of_this_cluster_gets_in(
    shared_cluster: TestCluster, daemon: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = shared_cluster.authority.issue("n-other", Role.NODE)
    async with open_channel(daemon.address, node, daemon.node_id) as channel:
        stub = NodeStub(channel)
        assert (await stub.Describe(pb.DescribeRequest(), timeout=10)).node_id == daemon.node_id
        with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
            await stub.Session().read()
        with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
            await stub.ModelStatus(pb.ModelManifest(), timeout=10)
    foreign = Authority.create(tmp_path_factory.mktemp("foreign")).issue("coordinator-1", Role.COORDINATOR)
    async with open_channel(daemon.address, foreign, daemon.node_id) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await NodeStub(channel).Describe(pb.DescribeRequest(), timeout=3)


async def test_a_stream_that_does_not_greet_is_ended(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with open_channel(daemon.address, shared_cluster.coordinator, daemon.node_id) as channel:
        call = NodeStub(channel).Session()
        await call.write(pb.CoordinatorMessage(beat=pb.CoordinatorBeat()))
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await call.read()


async def test_a_second_coordinator_is_told_who_has_the_node(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with session(daemon, shared_cluster.coordinator, run="first", epoch=4, lease=1.0) as first:
        async with dialled(daemon, shared_cluster.coordinator, hello(daemon, run="second")) as second:
            refusal = await second.expect("refusal")
        assert refusal.code == Codes.HELD
        assert (refusal.holder.run_id, refusal.holder.epoch) == ("first", 4)
        assert "held by run first of ada@mac pid 4" in refusal.message
        first.close()
        async with dialled(daemon, shared_cluster.coordinator, hello(daemon, run="second")) as second:
            assert (await second.expect("refusal")).code == Codes.HELD  # still within the first one's lease
        await asyncio.sleep(1.1)
        async with session(daemon, shared_cluster.coordinator, run="second") as second:
            await second.release()


async def test_the_same_run_with_a_higher_epoch_takes_over_a_warm_worker(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with session(daemon, shared_cluster.coordinator, "taken-over", epoch=1) as old:
        ready = await old.prepare()
        await old.assign(1, rows("hang"))
        await old.until_beat(computing_attempt=1)
        await old.assign(2)
        async with session(daemon, shared_cluster.coordinator, "taken-over", epoch=2) as new:
            refusal = await old.expect("refusal")
            assert refusal.code == Codes.STALE_EPOCH
            again = await new.prepare()
            assert (again.pid, again.generation) == (ready.pid, ready.generation)
            await new.send(restart_worker=pb.RestartWorker(reason="stalled"))
            exited = await new.expect("worker_exited")
            assert exited.asked
            assert exited.computing_attempt == 1
            assert list(exited.lost_attempts) == []  # the second unit was dropped at the takeover
            assert exited.back_off_seconds == 0.0
            assert (await new.expect("worker_ready")).generation == ready.generation + 1
            async with dialled(daemon, shared_cluster.coordinator, hello(daemon, "taken-over", epoch=1)) as stale:
                assert (await stale.expect("refusal")).code == Codes.STALE_EPOCH
            await new.release()


async def test_silence_ends_the_stream_and_keeps_the_worker(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator, lease=1.0) as stream:
        ready = await stream.prepare()
        stream.fall_silent()
        await stream.expect("end")
        assert stream.ended is not None
        assert "nothing heard for 1 s" in (stream.ended.details() or "")
    async with session(daemon, shared_cluster.coordinator) as stream:
        assert (await stream.prepare()).pid == ready.pid
        await stream.release()


async def test_results_of_a_broken_stream_are_offered_again(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        await stream.prepare()
        await stream.assign(1)
        first = await stream.expect("result")
        await stream.assign(2)
        second = await stream.expect("result")
        await stream.acknowledge([1])
        await stream.until_beat(computing_attempt=0)
        stream.close()
    async with session(daemon, shared_cluster.coordinator) as stream:
        assert list(stream.welcome.spooled_attempts) == [2]
        assert await stream.expect("result") == second != first
        await stream.prepare()
        await stream.assign(2)  # a coordinator that missed the offer assigns it again: it is not computed twice
        await stream.assign(3)
        assert (await stream.expect("result")).attempt == 3
        await stream.acknowledge([2, 3])
        await stream.release()
    async with session(daemon, shared_cluster.coordinator) as stream:
        assert list(stream.welcome.spooled_attempts) == []
        await stream.release()


async def test_the_unit_in_hand_is_finished_and_what_waited_is_dropped(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        ready = await stream.prepare()
        os.kill(ready.pid, signal.SIGSTOP)
        for attempt in range(1, 9):
            await stream.assign(attempt, rows(count=100_000))
        in_hand = await stream.settled_computing_attempt()
        while not in_hand:  # stopped between two units it has none
            os.kill(ready.pid, signal.SIGCONT)
            await until_worker_is(daemon, shared_cluster.coordinator, WorkerState.WORKER_COMPUTING)
            os.kill(ready.pid, signal.SIGSTOP)
            in_hand = await stream.settled_computing_attempt()
        stream.close()
    os.kill(ready.pid, signal.SIGCONT)
    async with session(daemon, shared_cluster.coordinator) as stream:
        await stream.assign(9)
        computed = []
        while 9 not in computed:
            computed.append((await stream.expect("result")).attempt)
        assert computed == [*range(1, in_hand + 1), 9]
        await stream.release()


async def test_revoked_units_are_not_computed_and_not_answered(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        ready = await stream.prepare()
        os.kill(ready.pid, signal.SIGSTOP)
        for attempt in range(1, 41):  # more than the worker is handed at once
            await stream.assign(attempt)
        await stream.send(revoke=pb.Revoke(attempts=range(1, 40), reason="test"))
        await stream.until_beat(computing_attempt=0)
        os.kill(ready.pid, signal.SIGCONT)
        seen = (await stream.expect("result")).attempt
        assert seen == 40
        await stream.release()
    async with session(daemon, shared_cluster.coordinator) as stream:
        assert list(stream.welcome.spooled_attempts) == []
        await stream.release()


@pytest.mark.parametrize("fault", ["kill", "kill -9 from outside"])
async def test_a_dead_worker_is_reported_and_started_again(
    shared_cluster: TestCluster, daemon: DaemonProcess, fault: str
) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        ready = await stream.prepare()
        await stream.assign(1, rows("kill" if fault == "kill" else "hang"))
        for attempt in (2, 3):
            await stream.assign(attempt)
        if fault != "kill":
            await stream.until_beat(computing_attempt=1)
            os.kill(ready.pid, signal.SIGKILL)
        exited = await stream.expect("worker_exited")
        assert exited.reason == "killed by signal 9"
        assert not exited.asked
        assert exited.computing_attempt == 1
        assert set(exited.lost_attempts) <= {2, 3}
        assert exited.back_off_seconds == pytest.approx(0.2)
        again = await stream.expect("worker_ready")
        assert again.pid != ready.pid
        await stream.assign(4)
        while (result := await stream.expect("result")).attempt != 4:
            assert result.attempt in {2, 3}  # came after the death was noticed, before it was told
        await stream.release()


async def test_back_off_doubles_until_something_succeeds(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        ready = await stream.prepare()
        waits = []
        for _ in range(3):
            os.kill(ready.pid, signal.SIGKILL)
            waits.append((await stream.expect("worker_exited")).back_off_seconds)
            ready = await stream.expect("worker_ready")
        assert waits == pytest.approx([0.2, 0.4, 0.8])
        await stream.assign(1)
        await stream.expect("result")
        os.kill(ready.pid, signal.SIGKILL)
        assert (await stream.expect("worker_exited")).back_off_seconds == pytest.approx(0.2)
        await stream.release()


async def test_a_hung_worker_hangs_nothing_else(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        await stream.prepare()
        await stream.assign(1, rows("hang"))
        first = await stream.until_beat(computing_attempt=1)
        later = await stream.until_beat(computing_attempt=1)
        assert later.sequence > first.sequence
        assert later.progress == first.progress
        await stream.send(restart_worker=pb.RestartWorker(reason="no progress for 30 s"))
        exited = await stream.expect("worker_exited")
        assert exited.reason == "restart asked: no progress for 30 s"
        await stream.expect("worker_ready")
        await stream.release()


async def test_a_row_that_raises_fails_its_unit_only(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        ready = await stream.prepare()
        await stream.assign(1, rows("raise"))
        failed = await stream.expect("unit_failed")
        assert (failed.attempt, failed.unit, failed.epoch, failed.row) == (1, 1001, 1, 3)
        await stream.assign(2)
        assert (await stream.expect("result")).attempt == 2
        assert (await stream.prepare()).pid == ready.pid
        await stream.release()


async def test_a_job_that_is_not_understood_is_refused(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        await stream.send(prepare=pb.Prepare(job=b'{"kinds": 3}'))
        refused = await stream.expect("worker_refused")
        assert refused.code == "job"
        assert "fix:" in refused.message
        await stream.send(prepare=pb.Prepare(job=b"{}", environment={"LD_PRELOAD": "/tmp/x.so"}))
        assert (await stream.expect("worker_refused")).code in ("job", "environment")
        await stream.release()


async def test_the_environment_reaches_the_worker(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with session(daemon, shared_cluster.coordinator) as stream:
        before = await stream.prepare()
        ready = await stream.prepare(environment={"MLX_METAL_FAST_SYNCH": "1"})
        assert ready.pid != before.pid  # another environment is another worker
        environment = psutil.Process(ready.pid).environ()
        assert environment["MLX_METAL_FAST_SYNCH"] == "1"
        assert environment["TOKENIZERS_PARALLELISM"] == "false"
        assert environment["OPENBLAS_NUM_THREADS"] == "1"
        await stream.release()
