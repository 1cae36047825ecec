"""An index on disk: a folder with a manifest that names each file by size and hash.

Written under a temporary name and renamed when all of it is durable, so that a folder of the right name is whole. Files
are checked when the folder is opened, then only read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.metrics.retrieval.retriever import fingerprint_of_index
from realign_cluster.store.durable import sync_descriptor, sync_folder, write_durably

MANIFEST = "index.json"
_BLOCK_BYTES = 1 << 20


class IndexedFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    blake2b: str


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    fingerprint: str
    passages: int
    parameters: dict[str, Any]
    files: dict[str, IndexedFile]


class DamagedIndex(RealignError):
    """A file of the index is not what the manifest says."""


def write_index(
    folder: Path,
    write: Callable[[Path], None],
    *,
    passages: int,
    facts: Mapping[str, Any],
) -> Manifest:
    """Makes `folder` of what `write` puts into an empty folder. `facts`: its "kind", and all else that it depends on;
    its fingerprint is theirs. An index that is there and has the same fingerprint stays. Raises UsageError for anything
    else that is there.
    """
    kind, fingerprint = facts["kind"], fingerprint_of_index(facts)
    if (folder / MANIFEST).is_file():
        there = read_manifest(folder, kind)
        if there.fingerprint == fingerprint:
            return there
        raise UsageError(f"{folder} holds an index of other passages or parameters", "choose another folder")
    if folder.exists():
        raise UsageError(f"{folder} is there and is no index", "choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in temporary.rglob("*"):
            if path.is_dir():
                sync_folder(path)
        files = {path.relative_to(temporary).as_posix(): _synced(path) for path in written}
        manifest = Manifest(kind=kind, fingerprint=fingerprint, passages=passages, parameters=dict(facts), files=files)
        write_durably(temporary / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
        try:
            temporary.rename(folder)
        except OSError:  # another process made it meanwhile: the same one, or it is refused
            there = read_manifest(folder, kind)
            if there.fingerprint != fingerprint:
                raise
            return there
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def verify_index(folder: Path, kind: str) -> Manifest:
    """Raises UsageError where there is no index of that kind, DamagedIndex for one with another file than it had."""
    manifest = read_manifest(folder, kind)
    for name, recorded in manifest.files.items():
        path = folder / name
        outside = ".." in Path(name).parts or not path.is_relative_to(folder)
        if outside or not path.is_file() or _described(path) != recorded:
            raise DamagedIndex(f"{path} is not what was indexed", f"build the index again: rm -r {folder}")
    return manifest


def read_manifest(folder: Path, kind: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        raise UsageError(f"{folder} holds no index", "build one there") from None
    if manifest.kind != kind:
        raise UsageError(f"{folder} holds an index of kind {manifest.kind}, not {kind}")
    return manifest


def _described(path: Path) -> IndexedFile:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return IndexedFile(size=size, blake2b=digest.hexdigest())


def _synced(path: Path) -> IndexedFile:
    with path.open("rb+") as file:
        sync_descriptor(file.fileno())
    return _described(path)
