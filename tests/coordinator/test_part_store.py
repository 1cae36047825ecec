"""Checkpoints on their way from real daemons into a real run folder, and what is said of those that do not arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from realign_cluster.coordinator.part_store import PartStore, manifest_of
from realign_cluster.coordinator.train_record import TrainRun, open_train_run
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.domain.ids import NodeName, RunId
from realign_cluster.domain.recovery_codec import encode
from realign_cluster.domain.recovery_commands import Remember
from realign_cluster.domain.recovery_events import CheckpointStored, StoreFailed
from realign_cluster.domain.run_memory import GoBack, RunMemory
from realign_cluster.domain.standing import best_of
from realign_cluster.domain.training import TrainSettings
from realign_cluster.domain.world import StatePart, WorldPlan
from realign_cluster.store.state_part import data_path, remove_part
from realign_cluster.store.train_ledger import Measurement
from tests.cluster.kit import TINY_MODEL, CurateCluster, write_rows
from tests.coordinator.test_training_session import address_of, training
from tests.node.training_stream import RANK_DAEMON, spec

pytestmark = pytest.mark.cluster

ONE = NodeName("one")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[CurateCluster]:
    made = CurateCluster(tmp_path / "cluster")
    yield made
    made.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TrainRun]:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"q{index}", "completion": "a"} for index in range(8)])
    settings = TrainSettings(steps=20, global_batch=4, keep_checkpoints=2)
    request = TrainRequest(data=(str(rows),), model=str(TINY_MODEL), out=tmp_path / "run", settings=settings)
    opened = open_train_run(request)
    opened.run_id = RunId("run-1")  # whose ranks the played ones say to be
    yield opened
    opened.close()


async def test_what_is_damaged_or_missing_on_its_node_is_named_and_the_next_is_stored(
    cluster: CurateCluster, run: TrainRun
) -> None:
    daemon = cluster.start("one", module=RANK_DAEMON)
    async with training(address_of(cluster, daemon)) as node:
        await node.heard("training_ready")
        node.session.start_rank(spec(1))
        await node.said("here")
        parts = [await node.kept(1, step=step, size=1 << 20, kind="checkpoint") for step in (4, 8, 12)]
        store = PartStore(run, {ONE: node.session})
        folder = daemon.folder.training / "runs" / "run-1"
        path = data_path(folder, parts[0])
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        remove_part(folder, parts[1])
        for part in parts[:2]:
            failed = await store.store(part.step, [(ONE, part)])
            assert isinstance(failed, StoreFailed)
            assert failed.corrupt == ((ONE, part),)
            assert not list(run.folder.checkpoints.iterdir())
        stored = await store.store(12, [(ONE, parts[2])])
        assert isinstance(stored, CheckpointStored)
        assert [manifest.step for manifest in run.checkpoints.manifests()] == [12]
        daemon.kill()
        gone = await store.store(12, [(ONE, parts[2])])
        assert isinstance(gone, StoreFailed)
        assert gone.corrupt == ()  # the way is to blame
        assert [manifest.step for manifest in run.checkpoints.manifests()] == [12]


def test_the_best_checkpoint_is_the_best_of_the_course_that_counts(run: TrainRun) -> None:
    """The model before training was better than all; a course that was given up after step 4 was better too."""

    def evaluated(generation: int, **losses: float) -> list[Measurement]:
        return [
            Measurement(kind="evaluated", step=int(at[2:]), generation=generation, node="one", wall=0.0, body=body)
            for at, body in ((at, {"metrics": {"loss": loss}}) for at, loss in losses.items())
        ]

    world = WorldPlan(parallel="single", nodes=("one",), shares=(1.0,))
    memory = RunMemory(
        generation=2, world=world, learning_rate_factor=0.5, beta_factor=2.0, go_backs=(GoBack(generation=1, step=4),)
    )
    run.ledger.record(
        0.0,
        measurements=[
            *evaluated(1, at0=1.0, at4=3.0, at8=1.5),
            Measurement(kind="divergence", step=8, generation=1, node="one", wall=0.0, body={"kl": 0.5}),
            *evaluated(2, at8=2.5, at12=2.0, at16=2.2),
        ],
        memory=encode(Remember(memory=memory)),
    )
    part = StatePart(kind="checkpoint", step=0, part=0, parts=1, layout="whole", digest="0" * 32, bytes=1, generation=2)
    found = [manifest_of(run, step, [part.model_copy(update={"step": step})]) for step in (4, 8, 10, 12, 16)]
    bests = [best_of(earlier.judged for earlier in found[: at + 1]) for at in range(len(found))]
    is_best = [best is not None and best.step == manifest.step for best, manifest in zip(bests, found, strict=True)]
    losses = [manifest.validation_loss for manifest in found]
    assert list(zip(is_best, losses, strict=True)) == [
        (True, 3.0), (True, 2.5), (False, 2.5), (True, 2.0), (False, 2.2),
    ]  # fmt: skip
    assert [manifest.kl for manifest in found] == [None] * 5
    assert (found[0].world, found[0].learning_rate_factor, found[0].beta_factor) == (world, 0.5, 2.0)
