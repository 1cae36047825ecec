"""The content store: models by hash, brought in chunks, resumed where a transfer broke off, checked before they count.

A model is a flat or shallow folder of safetensors, JSON and tokenizer files. Nothing executable is accepted, no path
leads out of the store. models/HASH.part grows; only a folder whose every file has its hash becomes models/HASH.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import structlog

from realign_cluster.domain.errors import RealignError
from realign_cluster.node.probe import free_disk_bytes
from realign_cluster.rpc.pb.node_pb2 import ModelChunk, ModelManifest, ModelProgress

log = structlog.get_logger()

ALLOWED_SUFFIXES = frozenset({".json", ".jsonl", ".safetensors", ".jinja", ".model", ".txt"})
KEEP_FREE_BYTES = 128 * 1024**2
MAX_FILES = 4096
_HASH = re.compile(r"[0-9a-f]{32,128}")
_READ_BYTES = 4 * 1024 * 1024


class ModelRefused(RealignError):
    """A transfer that this node does not take like this. `resumable`: asking ModelStatus and going on helps."""

    def __init__(self, message: str, fix: str, *, resumable: bool = False, no_room: bool = False) -> None:
        super().__init__(message, fix)
        self.resumable = resumable
        self.no_room = no_room


class ModelStore:
    def __init__(self, folder: Path, *, keep_free_bytes: int = KEEP_FREE_BYTES) -> None:
        self._folder = folder
        self._keep_free_bytes = keep_free_bytes
        self._receiving: dict[str, asyncio.Task[object]] = {}

    def names(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir() and _HASH.fullmatch(path.name))

    def find(self, model_hash: str) -> Path | None:
        """The folder of a complete model."""
        if not _HASH.fullmatch(model_hash):
            return None
        folder = self._folder / model_hash
        return folder if folder.is_dir() else None

    def status(self, manifest: ModelManifest) -> ModelProgress:
        """Raises ModelRefused for a manifest that this node would not take."""
        check_manifest(manifest)
        folder = self.find(manifest.model_hash)
        if folder is not None:
            received = _sizes(folder, manifest)
            if all(received[file.path] == file.size for file in manifest.files):
                return self._progress(received, complete=True)
            log.warning("a stored model has lost files: it is fetched again", model=manifest.model_hash)
            if manifest.model_hash not in self._receiving:
                shutil.rmtree(self._folder / f"{manifest.model_hash}.part", ignore_errors=True)
                folder.replace(self._folder / f"{manifest.model_hash}.part")
        return self._progress(_sizes(self._folder / f"{manifest.model_hash}.part", manifest), complete=False)

    async def receive(self, chunks: AsyncIterator[ModelChunk]) -> ModelProgress:
        """Takes one transfer. Raises ModelRefused; what had arrived by then stays, to be resumed."""
        first = await anext(chunks, None)
        if first is None or not first.HasField("manifest"):
            raise ModelRefused("the first chunk of a model carries no manifest", "send it again from the start")
        manifest = first.manifest
        check_manifest(manifest)
        this = asyncio.current_task()
        assert this is not None
        await self._end_older_transfer(manifest.model_hash)
        progress = self.status(manifest)
        if progress.complete:
            return progress
        self._receiving[manifest.model_hash] = this
        try:
            self._check_room(manifest, progress)
            await self._write_chunks(manifest, first, chunks)
            return await self._complete(manifest)
        finally:
            if self._receiving.get(manifest.model_hash) is this:
                del self._receiving[manifest.model_hash]

    async def _end_older_transfer(self, model_hash: str) -> None:
        """A sender that begins anew has lost its older call; that one may not have noticed yet."""
        while (older := self._receiving.get(model_hash)) is not None:
            older.cancel()
            await asyncio.wait({older})

    def _check_room(self, manifest: ModelManifest, progress: ModelProgress) -> None:
        missing = sum(file.size for file in manifest.files) - sum(progress.received.values())
        if missing + self._keep_free_bytes > progress.disk_free_bytes:
            raise ModelRefused(
                f"no room for model {manifest.name}: {missing / 1e9:.2f} GB to come, "
                f"{progress.disk_free_bytes / 1e9:.2f} GB free under {self._folder}",
                f"free some disk there, or delete models that are no longer needed from {self._folder}",
                no_room=True,
            )

    async def _write_chunks(
        self, manifest: ModelManifest, first: ModelChunk, chunks: AsyncIterator[ModelChunk]
    ) -> None:
        part = self._folder / f"{manifest.model_hash}.part"
        sizes = {file.path: file.size for file in manifest.files}
        part.mkdir(mode=0o700, exist_ok=True)
        position = _Position()
        try:
            chunk: ModelChunk | None = first
            while chunk is not None:
                if chunk.path or chunk.data:
                    try:
                        await asyncio.to_thread(position.write, part, sizes, chunk)
                    except OSError as error:
                        raise ModelRefused(
                            f"model {manifest.name} could not be written: {error.strerror}",
                            f"free some disk under {self._folder}; the transfer resumes",
                            resumable=True,
                            no_room=True,
                        ) from error
                chunk = await anext(chunks, None)
        finally:
            position.close()

    async def _complete(self, manifest: ModelManifest) -> ModelProgress:
        part = self._folder / f"{manifest.model_hash}.part"
        received = _sizes(part, manifest)
        missing = [file.path for file in manifest.files if received[file.path] != file.size]
        if missing:
            return self._progress(received, complete=False)
        for file in manifest.files:
            path = part / file.path
            if file.size == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            found = await asyncio.to_thread(_hash_and_sync, path, len(file.blake2b) // 2)
            if found != file.blake2b:
                path.unlink()
                raise ModelRefused(
                    f"{file.path} of model {manifest.name} arrived damaged: its hash is {found}, not {file.blake2b}",
                    "run the command again: that file is sent anew; if it repeats, check the source's disk",
                    resumable=True,
                )
        part.replace(self._folder / manifest.model_hash)
        _sync_folder(self._folder)
        log.info("model complete", model=manifest.model_hash, name=manifest.name)
        return self._progress(received, complete=True)

    def _progress(self, received: dict[str, int], *, complete: bool) -> ModelProgress:
        return ModelProgress(received=received, complete=complete, disk_free_bytes=free_disk_bytes(self._folder))


class _Position:
    """The file that is being written; one at a time stays open."""

    def __init__(self) -> None:
        self._path = ""
        self._file = -1

    def write(self, part: Path, sizes: dict[str, int], chunk: ModelChunk) -> None:
        size = sizes.get(chunk.path)
        if size is None:
            raise ModelRefused(f"{chunk.path!r} is not in the model's manifest", "send what the manifest lists")
        if chunk.path != self._path:
            self.close()
            path = part / chunk.path
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            self._path = chunk.path
        there = os.fstat(self._file).st_size
        if chunk.offset != there or there + len(chunk.data) > size:
            raise ModelRefused(
                f"{chunk.path} is at byte {there} of {size}; {len(chunk.data)} bytes "
                f"at {chunk.offset} do not continue it",
                "ask ModelStatus again and continue there",
                resumable=True,
            )
        data, offset = memoryview(chunk.data), chunk.offset
        while data:
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._path = ""


def check_manifest(manifest: ModelManifest) -> None:
    """Raises ModelRefused, naming what is wrong: this is where foreign paths would come in."""
    fix = "use a model folder of safetensors, JSON and tokenizer files"
    if not _HASH.fullmatch(manifest.model_hash):
        raise ModelRefused(f"{manifest.model_hash[:80]!r} is not a model hash", fix)
    if not 0 < len(manifest.files) <= MAX_FILES:
        raise ModelRefused(f"a model of {len(manifest.files)} files", fix)
    seen: set[str] = set()
    for file in manifest.files:
        path = PurePosixPath(file.path)
        contained = (
            bool(file.path)
            and str(path) == file.path
            and not path.is_absolute()
            and len(path.parts) <= 3
            and not any(part.startswith(".") or "\\" in part or "\0" in part for part in path.parts)
        )
        if not contained:
            raise ModelRefused(f"the path {file.path[:200]!r} in the model's manifest is not allowed", fix)
        if path.suffix not in ALLOWED_SUFFIXES:
            raise ModelRefused(f"{file.path} is not a kind of file that models are made of", fix)
        if file.path.casefold() in seen:  # macOS would take both for one file
            raise ModelRefused(f"{file.path} is in the model's manifest twice", fix)
        if not re.fullmatch(r"[0-9a-f]{32,128}", file.blake2b) or len(file.blake2b) % 2:
            raise ModelRefused(f"{file.path} has no BLAKE2b hash in the model's manifest", fix)
        seen.add(file.path.casefold())


def _sizes(folder: Path, manifest: ModelManifest) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for file in manifest.files:
        try:
            size = (folder / file.path).stat().st_size
        except FileNotFoundError:
            size = 0
        sizes[file.path] = size if size <= file.size else 0
        if size > file.size:
            (folder / file.path).unlink()
    return sizes


def _hash_and_sync(path: Path, digest_size: int) -> str:
    digest = hashlib.blake2b(digest_size=digest_size)
    with path.open("rb+") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
