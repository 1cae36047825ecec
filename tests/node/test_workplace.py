"""A workplace without its server, with a real worker: what is too slow or too rare to see through a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from realign_cluster.node import session, work_queue
from realign_cluster.node.logs import OutputLog
from realign_cluster.node.models import ModelStore
from realign_cluster.node.outbox import Outbox
from realign_cluster.node.probe import HealthSampler, quick_device
from realign_cluster.node.serving import Serving
from realign_cluster.node.session import RunStream
from realign_cluster.node.spool import Spool
from realign_cluster.node.state_folder import StateFolder
from realign_cluster.node.states import StateStore
from realign_cluster.node.tenancy import Granted, Tenant
from realign_cluster.node.workplace import Workplace
from realign_cluster.rpc.certificates import Authority, PeerIdentity, Role
from realign_cluster.rpc.pb import node_pb2 as pb
from realign_cluster.rpc.versions import local_versions
from tests.cluster_kit import wait_until
from tests.node.stream import NOOP, rows


@pytest.fixture
async def workplace(tmp_path: Path) -> AsyncIterator[Workplace]:
    folder = StateFolder.at(tmp_path / "state")
    made = Workplace(
        node_name="studio",
        models=ModelStore(folder.models),
        spool=Spool(folder.spool),
        states=StateStore(folder.training),
        bundle=Authority.create(tmp_path / "node-authority").issue("n-1", Role.NODE),
        output=OutputLog(folder.worker_log),
        cores=1,
        clock=time.monotonic,
        idle_worker_seconds=0.2,
    )
    house = asyncio.create_task(made.keep_house())
    yield made
    house.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await house
    await made.supervisor.stop_worker(kill=True)


def arrive(workplace: Workplace, run: str = "r") -> tuple[Outbox, Tenant]:
    granted = workplace.tenancy.claim(run_id=run, epoch=1, coordinator="c", lease_seconds=30, now=time.monotonic())
    assert isinstance(granted, Granted)
    outbox = Outbox()
    workplace.attach(outbox, granted.tenant)
    return outbox, granted.tenant


async def next_message(outbox: Outbox) -> pb.NodeMessage:
    assert await outbox.wait(20)
    message = outbox.next_message()
    assert message is not None
    return message


def assignment(attempt: int) -> pb.CoordinatorMessage:
    return pb.CoordinatorMessage(assign=pb.Assign(lease=1, attempt=attempt, unit=attempt, rows=rows(), count=3, cost=1))


PREPARE = pb.CoordinatorMessage(prepare=pb.Prepare(job=NOOP.model_dump_json().encode(), measure="none"))


async def test_a_worker_that_nobody_wants_is_ended(workplace: Workplace) -> None:
    outbox, tenant = arrive(workplace)
    await workplace.obey(PREPARE, tenant)
    pid = (await next_message(outbox)).worker_ready.pid
    assert pid == workplace.supervisor.pid
    await asyncio.sleep(1.2)
    assert workplace.supervisor.pid == pid  # held, so it stays
    await workplace.obey(pb.CoordinatorMessage(release=pb.Release()), tenant)
    workplace.detach(outbox)
    await asyncio.to_thread(wait_until, lambda: workplace.supervisor.pid == 0, 10, "the worker's end")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_more_work_than_a_node_may_be_given_ends_the_stream(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_queue, "MAX_UNITS", 5)
    outbox, tenant = arrive(workplace)
    for attempt in range(1, 6):
        await workplace.obey(assignment(attempt), tenant)
    assert not outbox.ended.is_set()
    await workplace.obey(assignment(6), tenant)
    assert outbox.ended.is_set()


async def test_units_that_came_before_the_worker_was_ready_are_computed(workplace: Workplace) -> None:
    outbox, tenant = arrive(workplace)
    await workplace.obey(PREPARE, tenant)
    await workplace.obey(assignment(7), tenant)
    assert (await next_message(outbox)).HasField("worker_ready")
    assert await outbox.wait(20)
    assert outbox.next_result() == 7


async def test_a_warm_worker_keeps_two_runs_apart(workplace: Workplace) -> None:
    """Attempt numbers begin at 1 in every run; what the first run left in the worker must not answer the second."""
    first_outbox, first = arrive(workplace, "first")
    await workplace.obey(PREPARE, first)
    await next_message(first_outbox)
    await workplace.obey(assignment(1), first)
    workplace.detach(first_outbox)  # its coordinator died; the unit may be in hand
    workplace.tenancy.release("first", 1)
    second_outbox, second = arrive(workplace, "second")
    await workplace.obey(PREPARE, second)
    await workplace.obey(assignment(1), second)
    assert (await next_message(second_outbox)).HasField("worker_ready")
    assert await second_outbox.wait(20)
    assert second_outbox.next_result() == 1
    assert workplace.spool.holds("second", 1)
    assert second_outbox.empty


async def test_a_job_that_was_refused_is_refused_again_to_the_next_sitting(workplace: Workplace) -> None:
    """Whoever asks later is told too, and the worker has another look: what was missing may be there by now."""
    job = NOOP.model_copy(update={"kind_versions": {"noop": 99}})
    prepare = pb.CoordinatorMessage(prepare=pb.Prepare(job=job.model_dump_json().encode(), measure="none"))
    for run in ("first", "second"):
        outbox, tenant = arrive(workplace, run)
        await workplace.obey(prepare, tenant)
        refused = (await next_message(outbox)).worker_refused
        assert "version 99" in refused.message
        await workplace.obey(pb.CoordinatorMessage(release=pb.Release()), tenant)
        workplace.detach(outbox)


async def test_what_an_older_stream_still_says_is_not_obeyed(workplace: Workplace) -> None:
    """Read late, the goodbye of a sitting that is over would take the next one's work away."""
    old_outbox, old = arrive(workplace)
    await workplace.obey(PREPARE, old)
    await next_message(old_outbox)
    granted = workplace.tenancy.claim(run_id="r", epoch=2, coordinator="c", lease_seconds=30, now=time.monotonic())
    assert isinstance(granted, Granted)
    outbox = Outbox()
    workplace.attach(outbox, granted.tenant)
    await workplace.obey(assignment(1), granted.tenant)
    await workplace.obey(pb.CoordinatorMessage(release=pb.Release()), old)
    await workplace.obey(assignment(2), old)
    assert await outbox.wait(20)
    assert outbox.next_result() == 1
    assert workplace.tenancy.current(time.monotonic()) is not None
    assert workplace.spool.attempts("r") == [1]
    assert not workplace.supervisor.queue.busy


async def test_a_node_without_disk_refuses_a_run(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = asyncio.ensure_future(quick_device())
    serving = Serving(
        node_id="n-1",
        name="studio",
        folder=StateFolder.at(tmp_path / "state"),
        bundle=Authority.create(tmp_path / "authority").issue("n-1", Role.NODE),
        workplace=workplace,
        models=ModelStore(tmp_path / "state" / "models"),
        health=HealthSampler(tmp_path),
        device=device,
        versions=local_versions(),
        pid=1,
        started_at=0.0,
    )
    stream = RunStream(serving, None, PeerIdentity(role=Role.COORDINATOR, id="c"))
    hello = pb.Hello(run_id="r", epoch=1, versions=local_versions(), lease_seconds=3, node_id="n-1")
    monkeypatch.setattr(session, "free_disk_bytes", lambda _: 1_000_000)
    refusal = stream.admit(hello)
    assert isinstance(refusal, pb.Refusal)
    assert refusal.code == pb.Refusal.DISK_FULL
    assert "studio has 1 MB of disk left" in refusal.message
    monkeypatch.undo()
    workplace.stopping = True
    refusal = stream.admit(hello)
    assert isinstance(refusal, pb.Refusal)
    assert refusal.code == pb.Refusal.STOPPING
    workplace.stopping = False
    assert isinstance(stream.admit(hello), Tenant)
    await device
