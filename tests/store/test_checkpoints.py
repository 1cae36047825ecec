"""Checkpoints: whole or skipped with a reason; none lost to a kill, a full disk or the retention."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from realign_cluster.domain.run_memory import GoBack
from realign_cluster.domain.world import WorldPlan
from realign_cluster.store.checkpoints import CheckpointManifest, CheckpointStore
from realign_cluster.store.space import StorageFull
from realign_cluster.store.state_part import (
    Corrupt,
    PartHeader,
    PieceOf,
    data_path,
    manifest_path,
    open_part,
    write_part,
)

ROOT = Path(__file__).parents[2]
WORLD = WorldPlan(parallel="sharded", nodes=("a", "b"), shares=(0.7, 0.3))


def written(folder, step, parts=2, seed=0, generation=1):
    """Parts as ranks leave them on their nodes: each with its manifest's bytes and its data's."""
    sent = []
    for index in range(parts):
        array = np.random.default_rng((step, index, seed)).standard_normal((4, 3), np.float32)
        piece = PieceOf(whole=(4 * parts, 3), axis=0, ranges=((4 * index, 4 * index + 4),))
        header = PartHeader(
            kind="checkpoint", step=step, part=index, parts=parts, layout=f"sharded-{parts}", generation=generation,
            pieces={"weights/a": piece},
        )  # fmt: skip
        part = write_part(folder, header, [("weights/a", "F32", (4, 3), array)], durable=False)
        sent.append((part, manifest_path(folder, part).read_bytes(), data_path(folder, part).read_bytes()))
    return sent


def manifest_of(sent, **fields):
    parts = tuple(part for part, _, _ in sent)
    return CheckpointManifest(step=parts[0].step, layout=parts[0].layout, parts=parts, world=WORLD, **fields)


def kept(store, folder, step, seed=0, generation=1, **fields):
    sent = written(folder, step, seed=seed, generation=generation)
    assert store.begin(step) is None
    for part, manifest, data in sent:
        assert store.receive(part, manifest, [data[:30], data[30:]]) == part
    manifest = manifest_of(sent, **fields)
    assert store.commit(manifest) == manifest
    return manifest


@pytest.fixture
def nodes(tmp_path):
    return tmp_path / "nodes"


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run" / "checkpoints")


def steps(store):
    return [manifest.step for manifest in store.manifests()]


def names(store):
    return sorted(path.name for path in store.path(0).parent.glob("*"))


def damage(store, manifest, index=1):
    path = data_path(store.path(manifest.step), manifest.parts[index])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def test_a_checkpoint_is_there_once_it_is_committed(store, nodes):
    sent = written(nodes, 100)
    assert store.begin(100) is None
    for part, manifest, data in sent:
        assert store.manifests() == []
        assert store.receive(part, manifest, [data]) == part
    assert store.newest_intact() == (None, ())
    manifest = manifest_of(
        sent,
        config="c0ffee",
        versions={"mlx": "0.32"},
        validation_loss=1.5,
        kl=0.02,
        validation_step=100,
        learning_rate_factor=0.5,
    )
    assert store.commit(manifest) == manifest
    assert store.newest_intact() == (manifest, ())
    assert names(store) == ["step-00000100"]
    for part, _, _ in sent:
        assert open_part(data_path(store.path(100), part))["weights/a"].shape == (4, 3)


def test_nothing_is_there_where_there_never_was_anything(store):
    assert store.newest_intact() == (None, ())
    assert store.prune(3) == []
    store.sweep()
    store.abandon(5)


@pytest.mark.parametrize("missing", ["part", "manifest", "other", "count", "generation"])
def test_an_incomplete_checkpoint_is_not_committed(store, nodes, missing):
    older = kept(store, nodes, 50)
    sent = written(nodes, 100)
    assert store.begin(100) is None
    for part, manifest, data in sent[: 1 if missing == "part" else 2]:
        assert store.receive(part, manifest, [data]) == part
    manifest = manifest_of(sent)
    match missing:
        case "manifest":
            manifest_path(store.path(100).with_name("step-00000100.part"), sent[0][0]).unlink()
        case "other":
            manifest = manifest_of(written(nodes, 100, seed=1))
        case "generation":
            manifest = manifest_of([sent[0], written(nodes, 100, generation=2)[1]])
        case "count":
            manifest = manifest_of(sent[:1])
    assert isinstance(store.commit(manifest), Corrupt)
    assert store.newest_intact() == (older, ())
    store.abandon(100)
    assert names(store) == ["step-00000050"]


def test_a_part_that_arrives_damaged_is_answered(store, nodes):
    (part, manifest, data), (_, other_manifest, other_data) = written(nodes, 100)
    assert store.begin(100) is None
    assert isinstance(store.receive(part, manifest, [data[:-1]]), Corrupt)
    assert isinstance(store.receive(part, manifest, [data[:-1], b"!"]), Corrupt)
    assert isinstance(store.receive(part, manifest[:-3] + b"0" + manifest[-2:], [data]), Corrupt)
    assert isinstance(store.receive(part, other_manifest, [other_data]), Corrupt)
    assert store.receive(part, manifest, [data]) == part


def test_torn_and_corrupt_ones_are_skipped_with_a_reason(store, nodes):
    oldest, *newer = [kept(store, nodes, step) for step in (10, 20, 30, 40, 50)]
    damaged = damage(store, newer[3])
    (store.path(40) / "manifest.json").unlink()
    text = (store.path(30) / "manifest.json").read_bytes()
    (store.path(30) / "manifest.json").write_bytes(text.replace(b'"step":30', b'"step":31'))
    data_path(store.path(20), newer[0].parts[0]).unlink()
    found = store.newest_intact()
    assert found.manifest == oldest
    assert [(problem.path, problem.reason) for problem in found.skipped] == [
        (damaged, "tensor weights/a is damaged"),
        (store.path(40) / "manifest.json", "No such file or directory"),
        (store.path(30) / "manifest.json", f"the digest over its {len(text)} bytes is wrong"),
        (data_path(store.path(20), newer[0].parts[0]), "No such file or directory"),
    ]
    assert all(str(problem.path) in str(problem) for problem in found.skipped)


def test_a_part_of_another_run_in_its_place_is_noticed(store, nodes):
    older, newer = kept(store, nodes, 10), kept(store, nodes, 20)
    part, manifest, data = written(nodes, 20, seed=1)[0]
    data_path(store.path(20), part).write_bytes(data)
    manifest_path(store.path(20), part).write_bytes(manifest)
    found = store.newest_intact()
    assert found.manifest == older
    assert found.skipped[0].reason == f"it has digest {part.digest}, not {newer.parts[0].digest}"


def test_every_damage_to_a_manifest_is_noticed(store, nodes):
    rng = random.Random(2)
    older, newer = kept(store, nodes, 10), kept(store, nodes, 20)
    path = store.path(20) / "manifest.json"
    intact = path.read_bytes()
    for at in range(300):
        damaged = bytearray(intact[: rng.randrange(len(intact))] if at % 3 == 0 else intact)
        if at % 3:
            bit = rng.randrange(len(intact) * 8)
            damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert store.manifests() == [older]
    path.write_bytes(intact)
    assert store.manifests() == [newer, older]


def test_only_the_newest_intact_checkpoint_is_read_before_a_start(store, nodes, monkeypatch):
    manifests = [kept(store, nodes, step) for step in (10, 20, 30, 40)]
    for step in (10, 40):
        path = data_path(store.path(step), manifests[step // 10 - 1].parts[0])
        path.write_bytes(path.read_bytes()[:-1])
    read = []
    verify = store.verify
    monkeypatch.setattr(store, "verify", lambda manifest: read.append(manifest.step) or verify(manifest))
    found, skipped = store.to_start_from()
    assert found == manifests[2::-1]  # that step 10 is damaged is seen by who is sent it
    assert [corrupt.path.parent.name for corrupt in skipped] == ["step-00000040"]
    assert read == [40, 30]


def test_retention(store, nodes):
    for step, loss in ((10, 3.0), (20, 2.0), (30, 2.5), (40, 2.6), (50, 2.7)):
        kept(store, nodes, step, validation_loss=loss, validation_step=step)
    assert store.prune(2, within_budget_step=35) == [10]
    assert steps(store) == [50, 40, 30, 20]  # two newest, the newest up to step 35, the best
    assert store.prune(1, within_budget_step=25) == [40, 30]
    assert steps(store) == [50, 20]
    assert store.prune(1) == []
    assert names(store) == ["step-00000020", "step-00000050"]


def test_retention_never_removes_the_only_intact_one(store, nodes):
    manifests = [kept(store, nodes, step) for step in (10, 20, 30, 40)]
    for manifest in manifests[2:]:
        damage(store, manifest)
    assert store.prune(1) == [30, 10]
    assert steps(store) == [40, 20]
    assert store.newest_intact().manifest == manifests[1]
    assert store.prune(1) == []


def test_a_run_that_goes_back_forgets_what_it_leaves(store, nodes):
    first = kept(store, nodes, 10)
    kept(store, nodes, 20)
    kept(store, nodes, 30)
    back = GoBack(generation=1, step=10)
    assert store.forget([back]) == [30, 20]
    assert store.newest_intact() == (first, ())
    again = kept(store, nodes, 20, seed=1, generation=2)
    assert store.forget([back]) == []
    assert store.newest_intact() == (again, ())


def test_a_step_that_is_done_again_replaces_its_checkpoint(store, nodes):
    kept(store, nodes, 10)
    again = kept(store, nodes, 10, seed=1)
    assert store.newest_intact() == (again, ())
    assert names(store) == ["step-00000010"]


@pytest.mark.parametrize("moved", [False, True])
def test_a_kill_while_one_is_replaced_leaves_one(store, nodes, moved):
    """`moved`: the old one already has its other name; the new one is not in its place yet, or is."""
    old = kept(store, nodes, 10)
    path = store.path(10)
    aside = path.with_name(path.name + ".replaced")
    if moved:
        shutil.copytree(path, aside)
    else:
        path.rename(aside)
        path.with_name(path.name + ".part").mkdir()
    store.sweep()
    assert store.newest_intact() == (old, ())
    assert names(store) == ["step-00000010"]


KILLED = """
import sys
from pathlib import Path
from realign_cluster.store.checkpoints import CheckpointStore
from tests.store.test_checkpoints import kept
root, step = Path(sys.argv[1]), int(sys.argv[2])
store = CheckpointStore(root / "run" / "checkpoints")
print("begin", flush=True)
while True:
    kept(store, root / "nodes", step, validation_loss=-step // 5, validation_step=step)
    print(step, flush=True)
    store.prune(2)
    step += 1
"""


def test_killed_at_any_instant_the_newest_that_was_committed_is_there(store, tmp_path):
    rng = random.Random(8)
    step, kills, leftovers = 1, 0, 0
    while kills < 5 or leftovers < 2 or step < 4:  # leftovers: of kills that fell within a checkpoint
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(step)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout.readline() == b"begin\n"
        timer = threading.Timer(rng.uniform(0, 0.15), process.kill)
        timer.start()
        said = process.stdout.read().split(b"\n")[:-1]
        timer.join()
        process.wait()
        process.stdout.close()
        assert process.returncode == -9
        kills += 1
        leftovers += any("." in name for name in names(store))
        store.sweep()
        found = store.newest_intact()
        acknowledged = int(said[-1]) if said else step - 1
        assert found.skipped == ()
        assert acknowledged == 0 or found.manifest.step >= acknowledged
        assert all(name.startswith("step-") and "." not in name for name in names(store))
        step = found.manifest.step + 1 if found.manifest else 1


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, 80 MiB large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        pytest.skip("a disk of its own needs root on Linux")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m,nr_inodes=64", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("no tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


def fill(disk):
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * (1 << 20))
    with contextlib.suppress(OSError):
        for at in range(100):
            (disk / f"ballast-{at}").touch()


def make_room(disk):
    for path in disk.glob("ballast*"):
        path.unlink()


@pytest.mark.parametrize("when", ["begin", "receive", "receiving", "commit"])
def test_a_full_disk_is_answered_and_the_older_checkpoint_stays(disk, nodes, when):
    store = CheckpointStore(disk / "run" / "checkpoints")
    older = kept(store, nodes, 10)
    sent = written(nodes, 20)
    part, manifest, data = sent[0]

    def chunks():
        yield data[:40]
        fill(disk)
        yield data[40:]

    if when == "begin":
        fill(disk)
        assert isinstance(store.begin(20), StorageFull)
    else:
        assert store.begin(20) is None
    if when == "receive":
        fill(disk)
        assert isinstance(store.receive(part, manifest, [data]), StorageFull)
    if when == "receiving":
        large = np.zeros(6 << 20, np.uint8)
        header = PartHeader(kind="checkpoint", step=20)
        part = write_part(nodes, header, [("a", "U8", large.shape, large)], durable=False)
        data = data_path(nodes, part).read_bytes()
        assert isinstance(store.receive(part, manifest_path(nodes, part).read_bytes(), chunks()), StorageFull)
    if when == "commit":
        for part, manifest, data in sent:
            assert store.receive(part, manifest, [data]) == part
        fill(disk)
        assert isinstance(store.commit(manifest_of(sent)), StorageFull)
    assert store.newest_intact() == (older, ())
    store.abandon(20)
    assert names(store) == ["step-00000010"]
    make_room(disk)
    assert kept(store, nodes, 20) == store.newest_intact().manifest
