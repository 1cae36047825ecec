"""Training states on this node's disk: a folder of part files for each run, and the cache of tokenised data.

Parts come from the rank of this node, from peers and from the coordinator, and count once every byte is checked. What
older runs left goes when it is old or room is needed. A run has a folder here once it had this node. Must not know what
is in a part.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import structlog

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import StatePart
from realign_cluster.store.part_manifest import PART_NAME, decode
from realign_cluster.store.part_stream import draw, part_chunks
from realign_cluster.store.space import RESERVE_BYTES, free_bytes
from realign_cluster.store.state_part import (
    Corrupt,
    data_path,
    list_parts,
    read_header,
    receive_part,
    remove_part,
    sweep,
    verify_part,
)

log = structlog.get_logger()

FORGET_AFTER_SECONDS = 14 * 86_400.0
LOW_FRACTION = 0.1  # of the disk: with less free, older runs make room before a training begins
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{32}")


class StateRefused(RealignError):
    """A run or part that cannot be one of this node's. `passing`: the same may work later."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class StateStore:
    """Files are read and written in threads; the store itself belongs to one event loop."""

    def __init__(self, root: Path) -> None:
        self._runs = root / "runs"
        self.cache = root / "cache"
        self._arriving: set[Path] = set()
        self._turn = asyncio.Lock()  # fair: what is dropped first and looked for then is not found

    def knows(self, run_id: str) -> bool:
        """Whether the run has or had this node for a training. Raises StateRefused."""
        return self.folder(run_id).is_dir()

    def folder(self, run_id: str) -> Path:
        """Where the parts of a run are. Raises StateRefused for an id that no run has."""
        if not _RUN_ID.fullmatch(run_id):
            raise StateRefused(f"{run_id[:80]!r} cannot be the id of a run")
        return self._runs / run_id

    async def open(self, run_id: str, *, writing: bool) -> list[StatePart]:
        """The run's parts with an intact manifest, after housekeeping. `writing`: whether a rank of it may be at work.

        Raises StateRefused.
        """
        folder = self.folder(run_id)
        return await asyncio.to_thread(self._open, folder, writing or bool(self._arriving))

    def _open(self, folder: Path, writing: bool) -> list[StatePart]:
        for each in (folder, self.cache):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._forget(folder, time.time() - FORGET_AFTER_SECONDS)
        self._make_room(folder, int(shutil.disk_usage(folder).total * LOW_FRACTION))
        if not writing and (removed := sweep(folder)):
            log.info("half-written parts removed", files=[path.name for path in removed])
        return list_parts(folder)

    async def drop(self, run_id: str, parts: Iterable[StatePart]) -> None:
        """Forgets these, and none that has taken the place of one of them. Raises StateRefused."""
        folder = self.folder(run_id)
        async with self._turn:
            for part in parts:
                _check(part)
                await asyncio.to_thread(_remove_part, folder, part)

    async def intact(self, run_id: str, part: StatePart) -> bool:
        """Whether exactly this part is here, every byte of it as it was written. Raises StateRefused."""
        _check(part)
        async with self._turn:
            found = await asyncio.to_thread(verify_part, data_path(self.folder(run_id), part))
        if isinstance(found, Corrupt):
            log.info("a part is not here", part=part.name, why=found.reason)
        return found == part

    def chunks(self, run_id: str, part: StatePart, offset: int) -> Iterator[bytes]:
        """The part's manifest, then its data from `offset` on; reads the disk. Raises StateRefused and Corrupt."""
        _check(part)
        return part_chunks(self.folder(run_id), part, offset)

    async def receive(self, run_id: str, part: StatePart, chunks: AsyncIterator[bytes]) -> None:
        """Takes a part: its manifest, then its data. Raises StateRefused, Corrupt, StorageFull, OSError.

        Durable if it is of a checkpoint. Nothing is left of a part that is not what was announced.
        """
        _check(part)
        folder = self.folder(run_id)
        path = data_path(folder, part)
        if path in self._arriving:
            raise StateRefused(f"{part.name} is on its way to this node already", passing=True)
        self._arriving.add(path)
        try:
            manifest = await anext(chunks, b"")
            _check_manifest(manifest, part, path)
            await asyncio.to_thread(self._make_room, folder, part.bytes + RESERVE_BYTES)
            await draw(lambda drawn: receive_part(folder, manifest, drawn, durable=part.kind == "checkpoint"), chunks)
        finally:
            self._arriving.discard(path)

    # --- housekeeping -----------------------------------------------------------------------------------------------

    def _forget(self, folder: Path, before: float) -> None:
        """Removes other runs' states, and tokenised data, that have not changed since `before` (Unix time)."""
        for changed, path in (*self._others(folder), *_by_age(self.cache)):
            if changed < before:
                _remove(path, "it is old")

    def _make_room(self, folder: Path, needed_bytes: int) -> None:
        """Removes other runs' states, the oldest first, until so much is free; who writes says if it is not enough."""
        others = self._others(folder)
        while others and free_bytes(folder) < needed_bytes:
            _remove(others.pop(0)[1], "room is needed")

    def _others(self, folder: Path) -> list[tuple[float, Path]]:
        return [(changed, path) for changed, path in _by_age(self._runs) if path != folder]


def _by_age(folder: Path) -> list[tuple[float, Path]]:
    """What is in it with the time of its last change, the oldest first."""
    found = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # a rank is at work in there
            found.append((path.stat().st_mtime, path))
    return sorted(found)


def _check_manifest(manifest: bytes, part: StatePart, path: Path) -> None:
    """Raises Corrupt unless it is of exactly this part."""
    try:
        announced = decode(manifest).state
    except ValueError as error:
        raise Corrupt(path, f"a manifest was received that is damaged: {error}") from error
    if announced != part:
        raise Corrupt(path, f"{announced.name} with digest {announced.digest} came in its place")


def _remove_part(folder: Path, part: StatePart) -> None:
    with contextlib.suppress(Corrupt):  # then it is of use to nobody
        if read_header(data_path(folder, part)).state != part:
            return
    remove_part(folder, part)


def _check(part: StatePart) -> None:
    """Raises StateRefused for a part whose name could be something else's path."""
    if not PART_NAME.fullmatch(part.name) or not _DIGEST.fullmatch(part.digest):
        raise StateRefused(f"{part.name[:120]!r} cannot be the name of a part")


def _remove(path: Path, why: str) -> None:
    log.info("removed", path=str(path), why=why)
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
