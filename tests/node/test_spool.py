from __future__ import annotations

from pathlib import Path

import pytest

from realign_cluster.node.spool import SPILL_AFTER_SECONDS, Spool
from realign_cluster.rpc.pb.node_pb2 import Result


def result(attempt: int, payload: bytes = b"{}") -> Result:
    return Result(attempt=attempt, unit=attempt, epoch=1, payload=payload, rows=1, shape="1x8")


def test_what_is_acknowledged_in_time_never_touches_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for attempt in range(1, 4):
        spool.add("r", result(attempt), now=0.0)
    spool.spill(SPILL_AFTER_SECONDS / 2)
    spool.acknowledge("r", [1, 2, 3, 99])
    spool.spill(100.0)
    assert list(tmp_path.iterdir()) == []
    assert len(spool) == 0


def test_what_waits_survives_the_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add("r", result(1, b"one"), now=0.0)
    spool.add("other", result(1, b"three"), now=0.0)
    spool.add("r", result(2, b"two"), now=0.9)
    spool.spill(SPILL_AFTER_SECONDS)
    assert len(list(tmp_path.iterdir())) == 2
    assert spool.get("r", 1) == result(1, b"one")
    spool.spill(SPILL_AFTER_SECONDS, everything=True)
    again = Spool(tmp_path)
    assert again.attempts("r") == [1, 2]
    assert again.get("r", 2) == result(2, b"two")
    assert again.get("other", 1) == result(1, b"three")
    again.acknowledge("r", [1, 2])
    again.forget("other")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "alien"])
def test_a_torn_or_altered_file_is_skipped(tmp_path: Path, damage: str) -> None:
    spool = Spool(tmp_path)
    for attempt in (1, 2):
        spool.add("r", result(attempt, b"x" * 100), now=0.0)
    spool.spill(9.0)
    path = next(path for path in tmp_path.iterdir() if path.name.endswith("-1.result"))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[:-5]
    elif damage == "flip":
        data[-5] ^= 1
    elif damage == "empty":
        data = bytearray()
    else:
        data = bytearray(b"something else altogether, and long enough to hold a header")
    path.write_bytes(data)
    assert spool.get("r", 1) is None
    assert spool.attempts("r") == [2]
    path.write_bytes(data)
    assert Spool(tmp_path).attempts("r") == [2]
    assert not path.exists()


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "abc-1.part").write_bytes(b"half")
    assert len(Spool(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_spool_is_bounded_on_disk_and_in_memory(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1000, max_memory_bytes=700)
    for attempt in range(1, 10):
        spool.add("r", result(attempt, b"x" * 300), now=0.0)
    spool.spill(9.0)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    assert spool.attempts("r") == [1, 2, 8, 9]


def test_what_finds_no_room_stays_in_memory_until_there_is(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=500)
    spool.add("r", result(1, b"x" * 400), now=0.0)
    spool.add("r", result(2, b"y" * 400), now=0.0)
    spool.spill(9.0)
    spool.spill(9.5, everything=True)
    assert len(list(tmp_path.iterdir())) == 1
    assert spool.get("r", 2) == result(2, b"y" * 400)
    spool.acknowledge("r", [1])
    spool.spill(10.0)
    assert [path.name.endswith("-2.result") for path in tmp_path.iterdir()] == [True]
    assert Spool(tmp_path).get("r", 2) == result(2, b"y" * 400)
