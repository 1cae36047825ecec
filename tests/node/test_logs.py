from __future__ import annotations

import asyncio
from pathlib import Path

from realign_cluster.node.logs import OutputLog, follow, tail


def test_a_worker_that_prints_without_end_fills_no_disk(tmp_path: Path) -> None:
    log = OutputLog(tmp_path / "worker.log", max_bytes=1000, kept=2)
    for number in range(200):
        log.write(f"line {number} {'x' * 50}\n".encode())
    log.write(b"last words")
    assert log.last_lines().splitlines()[-1] == "last words"
    assert len(log.last_lines().splitlines()) == 21
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker.log", "worker.log.1", "worker.log.2"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4000


def test_each_process_has_last_lines_of_its_own(tmp_path: Path) -> None:
    log = OutputLog(tmp_path / "worker.log")
    log.write(b"of the first\n")
    log.begin_process("worker 2")
    log.write(b"of the second\n")
    assert log.last_lines() == "of the second"


def test_tail_begins_at_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path, 10) == b""
    path.write_bytes(b"first\nsecond\nthird\n")
    assert tail(path, 10) == b"third\n"
    assert tail(path, 1000) == b"first\nsecond\nthird\n"


async def test_follow_goes_on_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    seen: asyncio.Queue[bytes] = asyncio.Queue()

    async def read() -> None:
        async for data in follow(path, 100, on=True):
            seen.put_nowait(data)

    reader = asyncio.create_task(read())
    async with asyncio.timeout(10):
        assert await seen.get() == b"old\n"
        with path.open("ab") as file:
            file.write(b"more\n")
        assert await seen.get() == b"more\n"
        path.replace(tmp_path / "log.1")
        path.write_bytes(b"new\n")
        assert await seen.get() == b"new\n"
    reader.cancel()
