"""Part files: every damaged bit is noticed; a writer that is killed, or finds no room, leaves what was there before."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from realign_cluster.store.space import StorageFull
from realign_cluster.store.state_part import (
    Corrupt,
    PartHeader,
    PieceOf,
    data_path,
    list_parts,
    manifest_path,
    open_part,
    read_header,
    receive_part,
    remove_part,
    sweep,
    verify_part,
    write_part,
)
from tests.store.killed_writer import tensors_of

SCRIPT = Path(__file__).with_name("killed_writer.py")
ROOT = Path(__file__).parents[2]


def header(step=7, **fields):
    return PartHeader(kind="snapshot", step=step, run="run", config="c0ffee", **fields)


def small_tensors(seed=0):
    rng = np.random.default_rng(seed)
    return [
        ("rng", "U32", (2,), rng.integers(0, 2**32, 2, np.uint32)),
        ("optimizer/step", "U64", (), np.uint64(12)),
        ("weights/half", "BF16", (3, 5), rng.integers(0, 2**16, (3, 5), np.uint16)),
        ("weights/flags", "BOOL", (3,), np.array([True, False, True])),
        ("weights/none", "F32", (0, 4), np.zeros((0, 4), np.float32)),
        ("weights/full", "F32", (4, 6), rng.standard_normal((4, 6), np.float32)),
    ]


def same_tensors(path, tensors):
    opened = open_part(path)
    assert sorted(opened) == sorted(name for name, *_ in tensors)
    for name, dtype, shape, array in tensors:
        assert (opened[name].dtype, opened[name].shape, bytes(opened[name].data)) == (dtype, shape, array.tobytes())


def test_a_part_comes_back_as_it_was_written(tmp_path):
    pieces = {"weights/full": PieceOf(whole=(9, 6), axis=0, ranges=((1, 3), (7, 9)))}
    scalars = {"learning_rate_factor": 0.5, "best_loss": None, "seen": 3, "note": "ä"}
    given = header(pieces=pieces, scalars=scalars, part=1, parts=2, layout="tensor-2")
    part = write_part(tmp_path / "new", given, small_tensors(), durable=True)
    assert part.name == "snapshot-00000007.tensor-2.1-of-2"
    assert verify_part(data_path(tmp_path / "new", part)) == part
    assert list_parts(tmp_path / "new") == [part]
    manifest = read_header(manifest_path(tmp_path / "new", part))
    assert (manifest.state, manifest.run, manifest.config, manifest.scalars) == (part, "run", "c0ffee", scalars)
    assert manifest.tensors["weights/full"].piece == pieces["weights/full"]
    assert manifest.tensors["rng"].piece == PieceOf(whole=(2,))
    same_tensors(data_path(tmp_path / "new", part), small_tensors())
    assert json.loads(manifest_path(tmp_path / "new", part).read_text())["manifest"]["state"]["step"] == 7


def test_the_same_state_gives_the_same_file(tmp_path):
    first = write_part(tmp_path / "a", header(), small_tensors(), durable=False)
    assert first == write_part(tmp_path / "b", header(), iter(small_tensors()), durable=True)
    assert first.digest != write_part(tmp_path / "c", header(), small_tensors(1), durable=False).digest


def test_wide_items_lie_aligned(tmp_path):
    part = write_part(tmp_path, header(), small_tensors(), durable=False)
    for name, entry in read_header(data_path(tmp_path, part)).tensors.items():
        assert entry.offset % {"U64": 8, "F32": 4, "U32": 4, "BF16": 2, "BOOL": 1}[entry.dtype] == 0, name


def test_a_part_without_tensors(tmp_path):
    part = write_part(tmp_path, header(), [], durable=False)
    assert verify_part(data_path(tmp_path, part)) == part
    assert open_part(data_path(tmp_path, part)) == {}


@pytest.mark.parametrize(
    ("tensors", "fields", "reason"),
    [
        ([("a", "F32", (2, 2), np.zeros(3, np.float32))], {}, "a: shape, piece and place do not agree"),
        ([("a", "F31", (3,), np.zeros(3, np.float32))], {}, "a: dtype F31 is not known"),
        ([("a", "F32", (2, 2), np.zeros((2, 4), np.float32)[:, ::2])], {}, "a: not contiguous"),
        ([("a", "F32", (1,), np.zeros(1, np.float32))] * 2, {}, "a: a name for one tensor only"),
        ([], {"pieces": {"a": PieceOf(whole=(3,))}}, "a: a piece, but no tensor"),
        (
            [("a", "F32", (3,), np.zeros(3, np.float32))],
            {"pieces": {"a": PieceOf(whole=(9,), axis=0, ranges=((0, 2),))}},
            "a: shape, piece and place do not agree",
        ),
        (
            [("a", "F32", (3,), np.zeros(3, np.float32))],
            {"pieces": {"a": PieceOf(whole=(9,), axis=0, ranges=((0, 2), (1, 2)))}},
            r"ranges \(\(0, 2\), \(1, 2\)\) of 9",
        ),
    ],
)
def test_tensors_that_are_not_what_they_are_said_to_be_are_refused(tmp_path, tensors, fields, reason):
    with pytest.raises(ValueError, match=reason):
        write_part(tmp_path / "in", header(**fields), tensors, durable=False)
    assert list((tmp_path / "in").glob("*")) == []
    assert [path.name for path in tmp_path.iterdir()] in ([], ["in"])


def test_a_layout_is_no_path():
    with pytest.raises(ValueError, match="layout"):
        header(layout="../up")
    with pytest.raises(ValueError, match="learning_rate_factor"):
        header(scalars={"learning_rate_factor": float("nan")})


def test_a_part_is_replaced_by_one_of_the_same_name(tmp_path):
    write_part(tmp_path, header(), small_tensors(0), durable=False)
    part = write_part(tmp_path, header(), small_tensors(1), durable=False)
    assert list_parts(tmp_path) == [part]
    same_tensors(data_path(tmp_path, part), small_tensors(1))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_thousand_bit_flips_and_truncations_are_all_noticed(tmp_path):
    rng = random.Random(3)
    part = write_part(tmp_path, header(), small_tensors(), durable=False)
    for path in (data_path(tmp_path, part), manifest_path(tmp_path, part)):
        intact = path.read_bytes()
        for at in range(500):
            damaged = bytearray(intact)
            match at % 5:
                case 0:
                    del damaged[rng.randrange(len(intact)) :]
                case 1:
                    damaged += rng.randbytes(rng.randint(1, 9))
                case _:
                    for _ in range(rng.choice((1, 1, 2, 30))):
                        bit = rng.randrange(len(intact) * 8)
                        damaged[bit // 8] ^= 1 << bit % 8
            if damaged == intact:  # a bit turned twice
                damaged[0] ^= 1
            path.write_bytes(damaged)
            found = verify_part(path)
            assert isinstance(found, Corrupt), f"damage {at} of {path.name}"
            assert found.path in (data_path(tmp_path, part), manifest_path(tmp_path, part))
            assert found.reason
            with pytest.raises(Corrupt):
                open_part(path)
            if path.suffix == ".json":
                assert list_parts(tmp_path) == []
        path.write_bytes(intact)
        assert verify_part(path) == part


def test_every_byte_counts(tmp_path):
    rng = random.Random(4)
    part = write_part(tmp_path, header(), small_tensors()[:2], durable=False)
    for path in (data_path(tmp_path, part), manifest_path(tmp_path, part)):
        intact = path.read_bytes()
        for at in range(len(intact)):
            damaged = bytearray(intact)
            damaged[at] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            assert isinstance(verify_part(path), Corrupt), f"byte {at} of {path.name}"
        path.write_bytes(intact)


def test_the_damaged_tensor_is_named(tmp_path):
    part = write_part(tmp_path, header(), small_tensors(), durable=False)
    path = data_path(tmp_path, part)
    entry = read_header(path).tensors["weights/half"]
    with path.open("r+b") as file:
        file.seek(entry.offset + 3)
        file.write(b"\xff\x00\xff")
    found = verify_part(path)
    assert (found.path, found.reason) == (path, "tensor weights/half is damaged")
    assert str(path) in str(found)
    with path.open("r+b") as file:
        file.write(b"\x01")
    assert verify_part(manifest_path(tmp_path, part)).path == path
    path.unlink()
    assert verify_part(path).reason == "No such file or directory"
    assert list_parts(tmp_path) == []


def test_a_part_under_another_name_is_refused(tmp_path):
    part = write_part(tmp_path, header(), small_tensors(), durable=False)
    for path in (data_path(tmp_path, part), manifest_path(tmp_path, part)):
        path.rename(path.with_name(path.name.replace("00007", "00008")))
    assert list_parts(tmp_path) == []
    found = verify_part(tmp_path / "snapshot-00000008.whole.0-of-1.json")
    assert found.reason == "it is of snapshot-00000007.whole.0-of-1"


def test_data_and_manifest_of_two_writes_are_no_part(tmp_path):
    part = write_part(tmp_path / "a", header(), small_tensors(0), durable=False)
    write_part(tmp_path / "b", header(), small_tensors(1), durable=False)
    shutil.copy(data_path(tmp_path / "b", part), data_path(tmp_path / "a", part))
    assert isinstance(verify_part(data_path(tmp_path / "a", part)), Corrupt)


def test_parts_are_listed_newest_first_and_strangers_left_alone(tmp_path):
    parts = [write_part(tmp_path, header(step), small_tensors(), durable=False) for step in (3, 20, 11)]
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "mine.part").write_text("precious")
    assert [part.step for part in list_parts(tmp_path)] == [20, 11, 3]
    remove_part(tmp_path, parts[1])
    manifest_path(tmp_path, parts[0]).unlink()
    (tmp_path / (data_path(tmp_path, parts[2]).name + ".part")).write_bytes(b"half")
    assert list_parts(tmp_path) == [parts[2]]
    assert [path.name for path in sweep(tmp_path)] == [
        data_path(tmp_path, parts[0]).name,
        data_path(tmp_path, parts[2]).name + ".part",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.part",
        "notes.json",
        manifest_path(tmp_path, parts[2]).name,
        data_path(tmp_path, parts[2]).name,
    ]
    assert list_parts(tmp_path / "nowhere") == []
    assert sweep(tmp_path / "nowhere") == []


def test_tensors_stay_readable_after_their_file_is_gone(tmp_path):
    part = write_part(tmp_path, header(), small_tensors(), durable=False)
    opened = open_part(data_path(tmp_path, part))
    remove_part(tmp_path, part)
    assert bytes(opened["weights/full"].data) == small_tensors()[-1][-1].tobytes()
    with pytest.raises(TypeError, match="read-only"):
        opened["weights/full"].data[0] = 1


def test_verification_takes_no_memory_of_the_size_of_the_part(tmp_path):
    large = np.zeros(32 << 20, np.uint8)
    part = write_part(tmp_path, header(), [("weights/large", "U8", large.shape, large)], durable=False)
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom realign_cluster.store.state_part import verify_part\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "print(verify_part(Path(sys.argv[1])).digest, peak() - before)"
    )
    command = [sys.executable, "-c", script, str(data_path(tmp_path, part))]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    unit = 1 if sys.platform == "darwin" else 1024
    assert said[0] == part.digest
    assert int(said[1]) * unit < 8 << 20


class TestReceived:
    @pytest.fixture
    def sent(self, tmp_path):
        part = write_part(tmp_path / "there", header(), small_tensors(), durable=False)
        folder = tmp_path / "there"
        return part, manifest_path(folder, part).read_bytes(), data_path(folder, part).read_bytes()

    def test_whole_it_is_a_part(self, tmp_path, sent):
        part, manifest, data = sent
        chunks = [data[:1], data[1:100], b"", data[100:]]
        assert receive_part(tmp_path / "here", manifest, chunks, durable=True) == part
        same_tensors(data_path(tmp_path / "here", part), small_tensors())

    @pytest.mark.parametrize("damage", ["short", "long", "flipped", "manifest", "path"])
    def test_damaged_nothing_is_left_of_it(self, tmp_path, sent, damage):
        _, manifest, data = sent
        match damage:
            case "short":
                data = data[:-1]
            case "long":
                data += b"\0"
            case "flipped":
                data = data[:50] + bytes([data[50] ^ 1]) + data[51:]
            case "manifest":
                manifest = manifest.replace(b"c0ffee", b"c0ffef")
            case "path":
                manifest = manifest.replace(b'"whole"', b'"../up"', 1)
        with pytest.raises(Corrupt):
            receive_part(tmp_path / "here", manifest, [data], durable=False)
        assert list(tmp_path.glob("here/*")) == []
        assert not (tmp_path / "up").exists()

    def test_a_peer_that_is_lost_leaves_what_was_there(self, tmp_path, sent):
        _, manifest, data = sent
        older = write_part(tmp_path / "here", header(6), small_tensors(), durable=False)

        def chunks():
            yield data[:60]
            raise ConnectionResetError("the peer is gone")

        with pytest.raises(ConnectionResetError, match="the peer is gone"):
            receive_part(tmp_path / "here", manifest, chunks(), durable=False)
        assert list_parts(tmp_path / "here") == [older]
        assert len(list((tmp_path / "here").iterdir())) == 2


@pytest.mark.timeout(300)
def test_killed_at_any_instant_a_writer_leaves_whole_parts_only(tmp_path):
    rng = random.Random(5)
    step, kills, leftovers = 0, 0, 0
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    while kills < 8 or leftovers < 3 or step < 5:  # leftovers: of kills that fell within a write
        command = [sys.executable, str(SCRIPT), str(tmp_path), str(step)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout.readline() == b"begin\n"
        timer = threading.Timer(rng.uniform(0, 0.1), process.kill)
        timer.start()
        said = process.stdout.read().split(b"\n")[:-1]
        timer.join()
        process.wait()
        process.stdout.close()
        assert process.returncode == -9
        kills += 1
        parts = list_parts(tmp_path)
        # what was said to be there is there, and until then what was there before it
        acknowledged = int(said[-1]) if said else step - 1
        assert acknowledged < 0 or parts[0].step >= acknowledged
        for part in parts:
            assert verify_part(data_path(tmp_path, part)) == part
            same_tensors(data_path(tmp_path, part), tensors_of(part.step))
        leftovers += len(sweep(tmp_path))
        names = {path.name for part in parts for path in (data_path(tmp_path, part), manifest_path(tmp_path, part))}
        assert {path.name for path in tmp_path.iterdir()} == names
        # the next one begins by replacing the newest, as after a step that is done again, unless it is the only one
        step = parts[0].step + (len(parts) == 1) if parts else 0


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


class TestFullDisk:
    def older(self, disk):
        return write_part(disk / "state", header(6), small_tensors(), durable=True)

    def only(self, disk, part):
        assert list_parts(disk / "state") == [part]
        assert verify_part(data_path(disk / "state", part)) == part
        assert len(list((disk / "state").iterdir())) == 2

    def test_no_room_is_said_before_anything_is_written(self, disk):
        older = self.older(disk)
        large = np.zeros(30 << 20, np.uint8)
        with pytest.raises(StorageFull, match=f"{disk / 'state'} is full: 98,"):
            write_part(disk / "state", header(), [("a", "U8", large.shape, large)], durable=False)
        self.only(disk, older)

    def test_a_disk_that_fills_up_meanwhile(self, disk, tmp_path):
        older = self.older(disk)
        large = np.random.default_rng(0).integers(0, 255, 10 << 20, np.uint8)
        part = write_part(tmp_path / "there", header(), [("a", "U8", large.shape, large)], durable=False)
        manifest = manifest_path(tmp_path / "there", part).read_bytes()

        def chunks():
            data = data_path(tmp_path / "there", part).read_bytes()
            yield data[: 1 << 20]
            with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * (1 << 20))
            yield data[1 << 20 :]

        with pytest.raises(StorageFull):
            receive_part(disk / "state", manifest, chunks(), durable=True)
        self.only(disk, older)
        (disk / "ballast").unlink()
        assert receive_part(disk / "state", manifest, [data_path(tmp_path / "there", part).read_bytes()], durable=True)

    @pytest.mark.parametrize("spare", [0, 1])
    def test_no_room_for_another_file(self, disk, spare):
        """None for the data, then one for the data and none for the manifest."""
        older = self.older(disk)
        ballast = []
        with contextlib.suppress(OSError):
            for at in range(100):
                (disk / f"ballast-{at}").touch()
                ballast.append(disk / f"ballast-{at}")
        for path in ballast[:spare]:
            path.unlink()
        with pytest.raises(StorageFull):
            write_part(disk / "state", header(), small_tensors(), durable=False)
        self.only(disk, older)
        ballast[-1].unlink()
        ballast[-2].unlink()
        assert list_parts(disk / "state") == [older]
        assert write_part(disk / "state", header(), small_tensors(), durable=False).step == 7


def test_a_file_that_may_not_grow_is_named(tmp_path):
    """Another failure of the file system than a full disk, as the kernel gives it."""
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from realign_cluster.store.state_part import PartHeader, write_part\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "header = PartHeader(kind='snapshot', step=1)\n"
        "try:\n    write_part(Path(sys.argv[1]), header, [('a', 'U8', (9000,), b'0' * 9000)], durable=False)\n"
        "except OSError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert "File too large" in said
    assert str(tmp_path / "snapshot-00000001.whole.0-of-1.safetensors") in said
    assert list(tmp_path.iterdir()) == []
