"""A run's artifacts: rows, values and model folders, each named by the hash of what it holds.

What is here is whole: it is written beside, synced and renamed. Writing the same content again changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.domain.errors import RunFailed
from realign_cluster.store.durable import TEMPORARY_SUFFIX, sync_descriptor, sync_folder, write_durably
from realign_cluster.store.model_files import HASH_BYTES, hash_file

ROWS_SUFFIX = ".jsonl"
COPY_BYTES = 1 << 20


class ArtifactStore:
    """Everything under one folder: `ID.jsonl` for rows, `ID/` for folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put_rows(self, rows: Iterable[Mapping[str, Any]]) -> str:
        """One JSON object a line, keys in the order they have. Returns the artifact's id."""
        lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        return self._put_bytes(lines)

    def put_file(self, path: Path) -> str:
        """A copy of a file of rows, as its bytes are."""
        name = hash_file(path)
        target = self.rows_path(name)
        if not target.exists():
            making = target.with_name(target.name + TEMPORARY_SUFFIX)
            with path.open("rb") as source, making.open("wb") as copy:
                shutil.copyfileobj(source, copy, COPY_BYTES)
                copy.flush()
                sync_descriptor(copy.fileno())
            making.replace(target)
            sync_folder(self.folder)
        return name

    def put_folder(self, path: Path) -> str:
        """Takes a folder in: it is moved here (or copied across file systems). Returns the id of its content."""
        name = hash_of_folder(path)
        target = self.folder / name
        if not target.exists():
            making = target.with_name(name + TEMPORARY_SUFFIX)
            shutil.rmtree(making, ignore_errors=True)
            shutil.move(path, making)
            _sync_tree(making)
            making.rename(target)
            sync_folder(self.folder)
        return name

    def rows_path(self, name: str) -> Path:
        return self.folder / (name + ROWS_SUFFIX)

    def folder_path(self, name: str) -> Path:
        return self.folder / name

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Raises RunFailed where the artifact is not there any more."""
        try:
            with self.rows_path(name).open("rb") as lines:
                for line in lines:
                    if line.strip():
                        yield orjson.loads(line)
        except FileNotFoundError:
            raise RunFailed(
                f"the artifact {self.rows_path(name)} is gone", "restore it, or start the run again in a new folder"
            ) from None

    def holds(self, name: str) -> bool:
        return self.rows_path(name).exists() or (self.folder / name).is_dir()

    def size_bytes(self, name: str) -> int:
        if (path := self.rows_path(name)).exists():
            return path.stat().st_size
        return sum(path.stat().st_size for path in (self.folder / name).rglob("*") if path.is_file())

    def _put_bytes(self, data: bytes) -> str:
        name = hashlib.blake2b(data, digest_size=HASH_BYTES).hexdigest()
        path = self.rows_path(name)
        if not path.exists():
            write_durably(path, data)
        return name


def hash_of_folder(path: Path) -> str:
    """BLAKE2b-128, hex, over (relative path, hash) of every file, sorted."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def link_or_copy(source: str, target: str) -> str:
    """For shutil.copytree: files that nobody writes to again need no second copy, where the file system can link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _sync_tree(folder: Path) -> None:
    for entry in [*folder.rglob("*"), folder]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            sync_descriptor(descriptor)
        finally:
            os.close(descriptor)
