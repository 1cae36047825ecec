"""The training rank of a real daemon over mTLS, played by a real process: started, told, killed, reported, replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from realign_cluster.domain.job import ModelSpec
from realign_cluster.node import rank as rank_module
from realign_cluster.node import worker_process
from realign_cluster.node.logs import OutputLog
from realign_cluster.node.orders import RankStart
from realign_cluster.node.rank import RankKeeper
from realign_cluster.node.worker_process import Launch
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.pb.common_pb2 import WorkerState
from realign_cluster.training.orders import Orders
from tests.cluster.train_kit import held
from tests.cluster_kit import DaemonProcess, TestCluster, wait_until
from tests.node.stream import dialled, hello
from tests.node.training_stream import JOB, RANK_DAEMON, gone, spec, training

pytestmark = pytest.mark.cluster


def stop_process(pid: int) -> None:
    """Returns once it is stopped: a signal that comes before would still be handled."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


@pytest.fixture(scope="module")
def trainer(shared_cluster: TestCluster) -> DaemonProcess:
    return shared_cluster.start("trainer", module=RANK_DAEMON, cores=3)


@pytest.fixture
async def daemon(shared_cluster: TestCluster, trainer: DaemonProcess) -> AsyncIterator[DaemonProcess]:
    """Free, whatever an earlier test left: short leases are waited out."""
    yield trainer
    async with asyncio.timeout(20):
        while True:
            async with dialled(trainer, shared_cluster.coordinator, hello(trainer, run="cleaner")) as stream:
                answer = await stream.next()
                if answer is not None and answer.HasField("welcome"):
                    await stream.release()
                    return
            await asyncio.sleep(0.1)


async def test_a_rank_gets_its_orders_and_is_heard(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with training(daemon, shared_cluster.coordinator, run="orders") as run:
        job = JOB.model_copy(update={"blas_threads": 2})
        ready = await run.prepare(job, environment={"MLX_METAL_FAST_SYNCH": "1"})
        assert (ready.generation, ready.running, ready.orders, list(ready.parts)) == (0, False, 0, [])
        assert ready.boot
        here = await run.start(4, rank=1, start_step=7)
        assert here["environment"] == {"OPENBLAS_NUM_THREADS": "2", "MLX_METAL_FAST_SYNCH": "1"}
        frame = here["frame"]
        folder = daemon.folder.training
        assert frame["state_dir"] == str(folder / "runs" / "orders")
        assert frame["cache_dir"] == str(folder / "cache")
        assert Path(frame["state_dir"]).is_dir()
        assert Path(frame["cache_dir"]).is_dir()
        orders = Orders.from_frame(frame)
        assert (orders.job, orders.spec, orders.run_id) == (job, spec(4, rank=1, start_step=7), "orders")
        assert orders.cores == 3
        await run.order(4, go=pb.Go(addresses=["10.0.0.1:5", "10.0.0.2:6"]))
        joined = await run.report("joined")
        assert (joined["generation"], joined["addresses"]) == (4, ["10.0.0.1:5", "10.0.0.2:6"])
        await run.tell(4, op="say", first=8, count=3)
        assert [(await run.reported())["step"] for _ in range(3)] == [8, 9, 10]
        assert run.sequence == 6  # section, here, joined and three steps
        beat = (await run.stream.until_beat()).rank
        assert (beat.generation, beat.rank, beat.section, beat.step) == (4, 1, "load", 10)
        assert (beat.pid, beat.progress, beat.orders) == (here["pid"], 6, 3)
        await run.order(4, stop=pb.StopRank(reason="the run is paused"))
        await run.report("ended")
        exited = await run.exited()
        assert (exited.generation, exited.rank, exited.asked, exited.wedged) == (4, 1, True, False)
        assert exited.reason == "the run is paused (exit status 0)"
        assert run.sequence == 8
        assert gone(here["pid"])
        assert (await run.stream.until_beat()).rank.pid == 0
        await run.release()


async def test_a_killed_rank_is_reported_within_half_a_second(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with training(daemon, shared_cluster.coordinator) as run:
        await run.prepare()
        for generation in (1, 2, 3):
            here = await run.start(generation)
            killed_at = time.monotonic()
            os.kill(here["pid"], signal.SIGKILL)
            exited = await run.exited()
            assert time.monotonic() - killed_at < 0.5
            assert (exited.reason, exited.asked) == ("killed by signal 9", False)
        assert (await run.stream.until_beat()).health.worker == WorkerState.WORKER_ABSENT
        await run.release()


async def test_a_rank_that_ends_by_itself_leaves_its_last_words(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with training(daemon, shared_cluster.coordinator) as run:
        await run.prepare()
        await run.start(1)
        await run.tell(1, op="exit", status=3)
        exited = await run.exited()
        assert (exited.reason, exited.asked, exited.last_lines) == ("exit status 3", False, "the last words")
        for generation, fault, reason in ((2, "hang up", "killed by signal 9"), (3, "babble", "unknown op 'babble'")):
            here = await run.start(generation)
            await run.tell(generation, op=fault)
            exited = await run.exited()
            assert reason in exited.reason
            assert gone(here["pid"])
        await run.release()


async def test_a_stopped_rank_is_killed_after_the_grace(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with training(daemon, shared_cluster.coordinator) as run:
        await run.prepare()
        here = await run.start(1)
        stop_process(here["pid"])
        asked_at = time.monotonic()
        await run.kill(1, grace_seconds=0.4)
        exited = await run.exited()
        assert 0.4 <= time.monotonic() - asked_at < 1.5
        assert (exited.reason, exited.asked) == ("enough (killed by signal 9)", True)
        await run.release()


async def test_a_rank_that_hears_nothing_dies_with_all_it_started(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    """Neither the order nor SIGTERM reaches it, and a helper of it holds its pipes."""
    async with training(daemon, shared_cluster.coordinator) as run:
        await run.prepare()
        here = await run.start(1)
        await run.tell(1, op="sit tight")
        helper = (await run.report("sitting"))["helper"]
        await run.order(1, stop=pb.StopRank(reason="enough", grace_seconds=0.2))
        await run.kill(1, grace_seconds=0.2)
        exited = await run.exited()
        assert exited.reason == "enough (killed by signal 9)"
        assert gone(here["pid"])
        await asyncio.to_thread(wait_until, lambda: gone(helper), 5, "the helper's end")
        await run.release()


async def test_a_newer_generation_waits_for_the_end_of_the_older(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with training(daemon, shared_cluster.coordinator, run="newer") as run:
        await run.prepare()
        old = await run.start(3)
        await run.tell(3, op="sit tight")
        await run.report("sitting")
        await run.begin(5)
        exited = await run.exited()
        assert (exited.generation, exited.asked) == (3, True)
        assert exited.reason == "generation 5 takes over (killed by signal 9)"
        new = await run.report("here")
        assert gone(old["pid"])
        for generation in (3, 4, 5):  # older ones, and the same by another order
            await run.begin(generation)
            refused = await run.exited()
            assert (refused.generation, refused.sequence) == (generation, 0)
            assert "generation 5 was started here already" in refused.reason
        await run.kill(3)  # what is said to an older one comes too late
        await run.order(9, stop=pb.StopRank(kill=True, reason="never was"))
        assert (await run.exited()).generation == 9
        assert not gone(new["pid"])
        await run.release()
        await asyncio.to_thread(wait_until, lambda: gone(new["pid"]), 5, "the rank's end with its run")


async def test_what_was_not_recorded_is_said_again_and_orders_are_taken_once(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with training(daemon, shared_cluster.coordinator, run="again") as run:
        await run.prepare()
        here = await run.start(1)
        await run.tell(1, op="say", first=1, count=5)
        for _ in range(3):
            await run.reported()
        await run.acknowledge(1)
        said = await run.order(1, tell=pb.TellRank())
        await run.stream.until_beat()
        run.stream.close()
    async with training(daemon, shared_cluster.coordinator, run="again") as run:
        assert [(await run.reported())["step"] for _ in range(2)] == [4, 5]
        assert run.sequence == 7
        ready = await run.prepare()
        assert (ready.generation, ready.running, ready.orders) == (1, True, said.number)
        start = pb.RankOrder(generation=1, number=1, start=pb.StartRank(spec=spec(1).model_dump_json().encode()))
        await run.stream.send(rank_order=start)  # said again: no refusal, no second rank
        os.kill(here["pid"], signal.SIGKILL)
        assert (await run.exited()).generation == 1
        run.stream.close()
    async with training(daemon, shared_cluster.coordinator, run="again", epoch=2) as run:
        assert [(await run.reported())["step"] for _ in range(2)] == [4, 5]
        assert (await run.exited()).reason == "killed by signal 9"
        await run.acknowledge(1)
        assert not (await run.prepare()).running
        await run.begin(1)  # a new sitting that does not know of the generation
        assert "started here already" in (await run.exited()).reason
        await run.start(2)
        await run.release()


async def test_a_rank_dies_with_its_coordinators_lease(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with training(daemon, shared_cluster.coordinator, run="silent") as run:
        await run.prepare()
        here = await run.start(1)
        await run.tell(1, op="sit tight")
        await run.report("sitting")
        silent_at = time.monotonic()
        run.stream.close()  # as a coordinator that is killed
        await asyncio.to_thread(wait_until, lambda: gone(here["pid"]), 6, "the rank's end")
        assert 2.5 < time.monotonic() - silent_at < 5.0
    async with training(daemon, shared_cluster.coordinator, run="silent", lease=1.0) as run:
        await run.report("sitting")
        exited = await run.exited()
        assert exited.reason == "nothing heard from the coordinator for 3 s (killed by signal 9)"
        await run.prepare()
        here = await run.start(2)
        run.stream.fall_silent()  # connected, but stopped or stuck
        await asyncio.to_thread(wait_until, lambda: gone(here["pid"]), 3, "the rank's end")


async def test_a_daemon_that_did_not_run_for_a_while_blames_nobody(
    shared_cluster: TestCluster, daemon: DaemonProcess
) -> None:
    async with training(daemon, shared_cluster.coordinator, lease=1.0) as run:
        await run.prepare()
        here = await run.start(1)
        daemon.signal(signal.SIGSTOP)
        await asyncio.sleep(2.0)
        daemon.signal(signal.SIGCONT)
        await asyncio.sleep(1.0)
        assert not gone(here["pid"])
        await run.tell(1, op="say", first=1, count=1)
        await run.report("step")
        await run.release()


async def test_scoring_and_training_make_way_for_each_other(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with training(daemon, shared_cluster.coordinator) as run:
        worker = (await run.stream.prepare()).pid
        await run.prepare()
        here = await run.start(1)
        assert gone(worker)
        health = (await run.stream.until_beat()).health
        assert (health.worker, health.worker_pid) == (WorkerState.WORKER_TRAINING, here["pid"])
        again = asyncio.create_task(run.stream.send(prepare=pb.Prepare(job=NOOP_JOB, measure="none")))
        exited = await run.exited()
        assert exited.reason == "a scoring job has this node (killed by signal 15)"
        assert (await run.stream.expect("worker_ready")).pid not in (worker, here["pid"])
        assert gone(here["pid"])
        await again
        await run.release()


async def test_what_a_node_cannot_do_is_refused(shared_cluster: TestCluster, daemon: DaemonProcess) -> None:
    async with training(daemon, shared_cluster.coordinator) as run:
        for asked, says in (
            (pb.PrepareTraining(job=b'{"steps": 1}'), "does not understand the job"),
            (pb.PrepareTraining(job=JOB_JSON, environment={"PATH": "/tmp"}), "PATH may not be set"),
        ):
            await run.stream.send(prepare_training=asked)
            assert says in (await run.stream.expect("worker_refused")).message
        await run.begin(1)
        assert "was not prepared on this node" in (await run.exited()).reason
        lacking = JOB.model_copy(update={"data": ModelSpec(name="data", hash="ab" * 16)})
        await run.stream.send(prepare_training=pb.PrepareTraining(job=lacking.model_dump_json().encode()))
        assert (await run.stream.expect("model_needed")).model_hash == "ab" * 16
        await run.begin(1)
        assert "not on this node" in (await run.exited()).reason
        await run.prepare()
        await run.order(1, start=pb.StartRank(spec=spec(2).model_dump_json().encode()))
        assert "are for generation 2" in (await run.exited()).reason
        await run.release()
    async with training(daemon, shared_cluster.coordinator, run="../../etc") as run:
        await run.stream.send(prepare_training=pb.PrepareTraining(job=JOB_JSON))
        assert "cannot be the id of a run" in (await run.stream.expect("worker_refused")).message
        await run.release()


@pytest.mark.parametrize("state", ["running", "stopped"])
async def test_a_rank_dies_with_a_killed_daemon(cluster: TestCluster, state: str) -> None:
    if state == "stopped" and sys.platform != "linux":
        pytest.skip("only Linux ends a stopped process with its parent")
    daemon = cluster.start("trainer", module=RANK_DAEMON)
    async with training(daemon, cluster.coordinator) as run:
        await run.prepare()
        here = await run.start(1)
        if state == "stopped":
            stop_process(here["pid"])
        daemon.kill()
        await asyncio.to_thread(wait_until, lambda: gone(here["pid"]), 5, "the rank's end")


async def test_a_daemon_that_is_told_to_stop_ends_its_rank_first(cluster: TestCluster) -> None:
    daemon = cluster.start("trainer", module=RANK_DAEMON)
    async with training(daemon, cluster.coordinator) as run:
        await run.prepare()
        here = await run.start(1)
        daemon.signal(signal.SIGTERM)
        exited = await run.exited()
        assert (exited.reason, exited.asked) == ("this daemon was told to stop (killed by signal 15)", True)
        await run.acknowledge(1)
        assert (await run.stream.expect("refusal")).code == pb.Refusal.STOPPING
        assert gone(here["pid"])
    assert await asyncio.to_thread(daemon.stop) == 0


# --- what would take too long, or too much, through a daemon ----------------------------------------------------------


class Heard:
    """What a keeper sends."""

    def __init__(self) -> None:
        self.all: list[pb.NodeMessage] = []
        self._new: asyncio.Queue[pb.NodeMessage] = asyncio.Queue()

    def send(self, message: pb.NodeMessage) -> None:
        self.all.append(message)
        self._new.put_nowait(message)

    async def exited(self) -> pb.RankExited:
        async with asyncio.timeout(10):
            while not (message := await self._new.get()).HasField("rank_exited"):
                pass
            return message.rank_exited

    async def report(self, op: str) -> None:
        async with asyncio.timeout(10):
            while json.loads((await self._new.get()).rank_report.body)["op"] != op:
                pass


@pytest.fixture
def output(tmp_path: Path) -> Iterator[OutputLog]:
    log = OutputLog(tmp_path / "worker.log")
    yield log
    log.close()


@pytest.fixture
async def heard() -> Heard:
    return Heard()


@pytest.fixture
async def keeper(output: OutputLog, heard: Heard) -> AsyncIterator[RankKeeper]:
    async def make_way() -> None:
        """No scoring worker is here."""

    made = RankKeeper(output=output, cores=1, send=heard.send, make_way=make_way)
    made.serve("r")
    yield made
    made.end("the test is over")
    await made.ended()


def start_of(generation: int, folder: Path) -> RankStart:
    return RankStart(
        run_id="r",
        spec=spec(generation),
        spec_json=spec(generation).model_dump_json().encode(),
        job_json=JOB_JSON,
        model_dir="",
        data_dir="",
        state_dir=str(folder),
        cache_dir=str(folder),
        launch=Launch(module="tests.node.rank_child"),
    )


async def test_a_rank_that_nobody_records_is_ended(
    tmp_path: Path, keeper: RankKeeper, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_module, "MAX_WAITING", 100)
    keeper.start(start_of(1, tmp_path))
    keeper.tell({"op": "say", "first": 1, "count": 1000})
    exited = await heard.exited()
    assert exited.reason.startswith("100 reports wait for the coordinator")
    assert exited.sequence == 101
    assert keeper.unrecorded() == heard.all
    keeper.acknowledge(1, 40)
    assert len(keeper.unrecorded()) == 61
    keeper.acknowledge(1, exited.sequence)
    assert keeper.unrecorded() == []


async def test_a_rank_that_is_stopped_by_a_signal_is_killed_whatever_it_was_doing(
    tmp_path: Path, keeper: RankKeeper, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_module, "STOPPED_SECONDS", 0.5)
    monkeypatch.setattr(rank_module, "STOPPED_LOOK_SECONDS", 0.1)
    keeper.start(start_of(1, tmp_path))
    await heard.report("here")
    os.kill(keeper.pid, signal.SIGSTOP)
    exited = await heard.exited()
    assert exited.reason == "it was stopped by a signal for 0.5 s (killed by signal 9)"
    assert not exited.asked


async def test_a_rank_that_is_stopped_now_and_then_is_left_alone(
    tmp_path: Path, keeper: RankKeeper, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_module, "STOPPED_SECONDS", 0.5)
    monkeypatch.setattr(rank_module, "STOPPED_LOOK_SECONDS", 0.1)
    keeper.start(start_of(1, tmp_path))
    await heard.report("here")
    with held(keeper.pid, 0.3):
        await asyncio.sleep(1.5)
    assert keeper.running
    keeper.tell({"op": "say", "first": 1, "count": 1})
    await heard.report("step")


async def test_bytes_of_reports_are_bounded_too(
    tmp_path: Path, keeper: RankKeeper, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_module, "MAX_WAITING_BYTES", 100_000)
    for generation, padding, reason in ((1, 9_000, "reports wait"), (2, 200_000, "is larger than 100000")):
        keeper.start(start_of(generation, tmp_path))
        keeper.tell({"op": "say", "first": 1, "count": 50, "padding": padding})
        assert reason in (await heard.exited()).reason
        keeper.acknowledge(generation, 1000)
        assert keeper.unrecorded() == []


TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), None, None) != 0:  # PTRACE_SEIZE
    raise OSError(ctypes.get_errno(), "ptrace")
print("seized", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="needs a process that outlives SIGKILL, which ptrace makes on Linux"
)
async def test_a_rank_that_outlives_sigkill_is_wedged_and_none_follows(
    tmp_path: Path, keeper: RankKeeper, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose GPU driver does not let go of it: dead to all, and not to be reaped while it is traced."""
    monkeypatch.setattr(worker_process, "WEDGED_SECONDS", 0.3)
    monkeypatch.setattr(rank_module, "TERM_SECONDS", 0.1)
    keeper.start(start_of(1, tmp_path))
    keeper.tell({"op": "let anybody trace me"})
    await heard.report("traceable")
    pid = keeper.pid
    tracer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TRACER, str(pid)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert tracer.stdout is not None
        assert await tracer.stdout.readline() == b"seized\n"
        keeper.end("enough")
        exited = await heard.exited()
        assert exited.wedged
        assert exited.reason.startswith("enough (still there")
        assert keeper.start(start_of(2, tmp_path))
        refused = await heard.exited()
        assert (refused.generation, refused.wedged) == (2, True)
        assert "cannot be killed" in refused.reason
    finally:
        tracer.kill()
        await tracer.wait()
    await asyncio.to_thread(wait_until, lambda: not psutil.pid_exists(pid), 5, "its end")
    assert keeper.start(start_of(3, tmp_path))  # the kernel has let go of it
    await heard.report("here")


JOB_JSON = JOB.model_dump_json().encode()
NOOP_JOB = b'{"kinds": ["noop"], "model": {"name": "none", "hash": "none"}}'


@pytest.mark.parametrize(("after", "wedged"), [([60, 60, 5], False), ([60], True)])
async def test_wired_memory_that_does_not_come_back_needs_a_reboot(
    tmp_path: Path,
    output: OutputLog,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    after: list[int],
    wedged: bool,
) -> None:
    monkeypatch.setattr(rank_module, "WIRED_SECONDS", 0.1)
    monkeypatch.setattr(rank_module, "WIRED_LOOK_SECONDS", 0.02)
    readings = [5, *after]

    async def make_way() -> None:
        """No scoring worker is here."""

    def wired() -> int:
        return (readings.pop(0) if len(readings) > 1 else readings[0]) * 10**9

    keeper = RankKeeper(output=output, cores=1, send=heard.send, make_way=make_way, wired=wired)
    keeper.serve("r")
    keeper.start(start_of(1, tmp_path))
    keeper.tell({"op": "exit", "status": 0})
    exited = await heard.exited()
    assert exited.wedged is wedged
    assert ("55.0 GB of its wired memory did not come back" in exited.reason) is wedged
    await keeper.ended()
