"""Daemons as processes: what survives them, what dies with them, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from realign_cluster.coordinator.model_transfer import ModelSource, send_model
from realign_cluster.domain.job import ModelFileSpec, ModelSpec, ScoreJob
from realign_cluster.node.advertise import SERVICE_TYPE
from realign_cluster.rpc.channel import open_channel
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb.common_pb2 import WorkerState
from realign_cluster.rpc.pb.node_pb2_grpc import NodeStub
from tests.cluster_kit import TestCluster, wait_until
from tests.node.stream import rows, session, until_worker_is

pytestmark = pytest.mark.cluster


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("state", ["idle", "stopped"])
async def test_the_worker_dies_with_a_killed_daemon(cluster: TestCluster, state: str) -> None:
    daemon = cluster.start("studio")
    async with session(daemon, cluster.coordinator) as stream:
        pid = (await stream.prepare()).pid
        if state == "stopped":
            if sys.platform != "linux":
                pytest.skip("only Linux ends a stopped process with its parent")
            os.kill(pid, signal.SIGSTOP)
        daemon.kill()
        wait_until(lambda: gone(pid), what="the worker's end")


async def test_spooled_results_survive_kill_9_of_the_daemon(cluster: TestCluster) -> None:
    daemon = cluster.start("studio")
    async with session(daemon, cluster.coordinator) as stream:
        await stream.prepare()
        for attempt in (1, 2, 3):
            await stream.assign(attempt)
        results = [await stream.expect("result") for _ in range(3)]
        await stream.acknowledge([1])
        wait_until(lambda: len(list(daemon.folder.spool.glob("*.result"))) == 2, what="writing out what waits")
        daemon.kill()
    torn = sorted(daemon.folder.spool.glob("*-3.result"))[0]
    torn.write_bytes(torn.read_bytes()[:-1])
    daemon.start()
    async with session(daemon, cluster.coordinator, epoch=2) as stream:
        assert list(stream.welcome.spooled_attempts) == [2]
        assert await stream.expect("result") == results[1]
        await stream.acknowledge([2])
        await stream.release()
    wait_until(lambda: not list(daemon.folder.spool.iterdir()), what="forgetting what was acknowledged")


async def test_sigterm_lets_the_unit_in_hand_be_finished_and_exits_0(cluster: TestCluster) -> None:
    daemon = cluster.start("studio")
    async with session(daemon, cluster.coordinator) as stream:
        pid = (await stream.prepare()).pid
        os.kill(pid, signal.SIGSTOP)
        for attempt in range(1, 9):
            await stream.assign(attempt, rows(count=100_000))
        await stream.settled_computing_attempt()
        os.kill(pid, signal.SIGCONT)
        await until_worker_is(daemon, cluster.coordinator, WorkerState.WORKER_COMPUTING)
        daemon.signal(signal.SIGTERM)
        computed = []
        while (message := await stream.news()) is not None and message.HasField("result"):
            computed.append(message.result.attempt)
            await stream.acknowledge([message.result.attempt])
        assert message is not None
        assert message.refusal.code == pb.Refusal.STOPPING
        assert computed == list(range(1, len(computed) + 1)) != []
    assert daemon.stop() == 0
    assert gone(pid)
    assert not daemon.folder.daemon.exists()
    assert not list(daemon.folder.spool.iterdir())


async def test_sigterm_spools_what_nobody_takes_and_gives_up_a_hung_unit(cluster: TestCluster) -> None:
    daemon = cluster.start("studio", arguments=["--exit-seconds", "1"], environment={"REALIGN_FAULTS": "1"})
    async with session(daemon, cluster.coordinator) as stream:
        pid = (await stream.prepare()).pid
        await stream.assign(1)
        await stream.expect("result")
        await stream.assign(2, rows("hang"))
        await stream.until_beat(computing_attempt=2)
        assert await asyncio.to_thread(daemon.stop, 10) == 0
    assert gone(pid)
    assert len(list(daemon.folder.spool.glob("*-1.result"))) == 1
    daemon.start()
    async with session(daemon, cluster.coordinator, epoch=2) as stream:
        assert list(stream.welcome.spooled_attempts) == [1]


async def test_a_model_is_asked_for_brought_and_handed_to_the_worker(cluster: TestCluster, tmp_path: Path) -> None:
    """A model that is none: the transfer is the daemon's, the judgement the worker's."""
    import hashlib

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(b'{"model_type": "no such architecture"}')
    (folder / "model.safetensors").write_bytes(os.urandom(3 * 1024 * 1024))
    files = tuple(
        ModelFileSpec(
            path=path.name,
            size=path.stat().st_size,
            blake2b=hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
        )
        for path in sorted(folder.iterdir())
    )
    spec = ModelSpec(name="broken", hash="ab" * 16, files=files)
    job = ScoreJob(kinds=("loglik",), model=spec)
    daemon = cluster.start("studio")
    async with session(daemon, cluster.coordinator) as stream:
        await stream.send(prepare=pb.Prepare(job=job.model_dump_json().encode(), measure="none"))
        assert (await stream.expect("model_needed")).model_hash == spec.hash
        source = ModelSource(folder=folder, spec=spec)
        async with open_channel(daemon.address, cluster.coordinator, daemon.node_id) as channel:
            stub = NodeStub(channel)
            broken_off = send_model(stub, source)
            for _ in range(3):
                await anext(broken_off)
            async with asyncio.timeout(10):
                while not (await stub.ModelStatus(source.manifest(), timeout=10)).received["model.safetensors"]:
                    pass
            await broken_off.aclose()
            progress = [there async for there in send_model(stub, source)]
            assert progress[-1] == (sum(file.size for file in files),) * 2
            assert (await stub.ModelStatus(source.manifest(), timeout=10)).complete
            assert spec.hash in (await stub.Describe(pb.DescribeRequest(), timeout=10)).models
        refused = await stream.expect("worker_refused")
        assert refused.message
        beat = await stream.until_beat(phase="load")
        assert beat.health.worker == WorkerState.WORKER_REFUSED
        await stream.release()


async def test_logs_echo_and_links(cluster: TestCluster) -> None:
    one, two = cluster.start("one"), cluster.start("two")
    async with session(one, cluster.coordinator) as stream:
        await stream.prepare()
        async with open_channel(one.address, cluster.coordinator, one.node_id) as channel:
            stub = NodeStub(channel)
            logs = {
                name: b"".join([chunk.data async for chunk in stub.Logs(pb.LogsRequest(stream=name), timeout=10)])
                for name in ("worker", "daemon")
            }
            assert b"--- worker 1, pid" in logs["worker"]
            assert b'"event": "serving"' in logs["daemon"]
            report = await stub.MeasureLink(
                pb.LinkRequest(address=two.address, node_id=two.node_id, bytes=1024 * 1024, rounds=5), timeout=30
            )
            assert report.error == ""
            assert 0 < report.round_trip_seconds < 1
            assert report.bytes_per_second > 1e6
            wrong = await stub.MeasureLink(pb.LinkRequest(address=two.address, node_id=one.node_id), timeout=30)
            assert "fix:" in wrong.error
        await stream.release()


async def test_a_worker_that_nobody_uses_is_left_in_peace_for_a_while(cluster: TestCluster) -> None:
    """The next run with the same job finds it warm; the daemon's own idle limit is minutes."""
    daemon = cluster.start("studio")
    async with session(daemon, cluster.coordinator, run="one") as stream:
        pid = (await stream.prepare()).pid
        await stream.release()
    async with session(daemon, cluster.coordinator, run="two") as stream:
        assert (await stream.prepare()).pid == pid
        await stream.release()


def test_no_part_of_a_daemon_imports_mlx() -> None:
    code = (
        "import sys, realign_cluster.cli.realignd, realign_cluster.node.daemon, realign_cluster.node.control, "
        "realign_cluster.node.install; "
        "sys.exit(any(name.split('.')[0] in ('mlx', 'mlx_lm', 'transformers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_running_daemon_has_not_loaded_mlx(cluster: TestCluster) -> None:
    daemon = cluster.start("studio")
    async with session(daemon, cluster.coordinator) as stream:
        await stream.prepare()
        mapped = [each.path for each in psutil.Process(daemon.pid).memory_maps()]
        assert not [path for path in mapped if "mlx" in path]
        await stream.release()


async def test_it_is_advertised_and_says_goodbye(cluster: TestCluster) -> None:
    daemon = cluster.start("studio", arguments=["--advertise"])
    seen: asyncio.Queue[tuple[ServiceStateChange, str]] = asyncio.Queue()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        seen.put_nowait((state_change, name))

    zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[changed])
    try:
        async with asyncio.timeout(20):
            name = f"{daemon.node_id}.{SERVICE_TYPE}"
            while await seen.get() != (ServiceStateChange.Added, name):
                pass
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            assert await info.async_request(zeroconf.zeroconf, 3000)
            assert info.port == daemon.port
            assert info.parsed_addresses() == ["127.0.0.1"]
            properties = info.decoded_properties
            assert properties["id"] == daemon.node_id
            assert properties["name"] == "studio"
            assert properties["fingerprint"] == daemon.facts["fingerprint"]
            assert int(properties["memory"] or 0) > 0
            for key in ("chip", "gpu_cores", "project", "protocol", "mlx", "mlx_lm"):
                assert key in properties
            assert await asyncio.to_thread(daemon.stop) == 0
            while await seen.get() != (ServiceStateChange.Removed, name):
                pass
    finally:
        await browser.async_cancel()
        await zeroconf.async_close()


def test_a_port_in_use_is_named(cluster: TestCluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = cluster.daemon("studio", port=port)
        with pytest.raises(AssertionError, match=rf"port {port} on 127\.0\.0\.1 is in use by pid {os.getpid()}"):
            daemon.start()
        assert not daemon.folder.daemon.exists()
