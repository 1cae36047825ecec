"""Part files of a training state: NAME.safetensors with the tensors, NAME.json with what they are and their checksums.

The JSON is put in place last, so that a part whose writer died is no part. Buffers go to the file without a copy.
Must not know what the tensors mean, and never imports MLX: daemons and coordinators verify and copy parts too.

A path of a part is that of either of its two files.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.world import StatePart
from realign_cluster.store.durable import TEMPORARY_SUFFIX, sync_descriptor, sync_folder
from realign_cluster.store.part_manifest import DIGEST_BYTES, ITEM_BYTES, PART_NAME, TensorEntry, decode, encode
from realign_cluster.store.part_manifest import PartHeader as PartHeader
from realign_cluster.store.part_manifest import PartManifest as PartManifest
from realign_cluster.store.part_manifest import PieceOf as PieceOf
from realign_cluster.store.space import StorageFull, is_disk_full, room

DATA_SUFFIX: Final = ".safetensors"
MANIFEST_SUFFIX: Final = ".json"
CHUNK_BYTES: Final = 1 << 20
ALIGNMENT: Final = 8

SourceTensor = tuple[str, str, tuple[int, ...], Any]  # name, dtype, shape, contiguous buffer


class Corrupt(RealignError):
    """A part is not there as it was written: `path` names the file, `reason` what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used: {reason}", "an older state, or another node's copy, is used instead")
        self.path = path
        self.reason = reason


class Tensor(NamedTuple):
    """`data` is read-only bytes, row-major, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def data_path(folder: Path, part: StatePart) -> Path:
    return folder / (part.name + DATA_SUFFIX)


def manifest_path(folder: Path, part: StatePart) -> Path:
    return folder / (part.name + MANIFEST_SUFFIX)


def write_part(
    folder: Path,
    header: PartHeader,
    tensors: Iterable[SourceTensor],
    *,
    durable: bool,
    progress: Callable[[], None] = lambda: None,
) -> StatePart:
    """Writes `tensors` (name, dtype code of safetensors, shape, contiguous buffer) as one part, without copying them.

    `durable` parts outlast a loss of power, others the end of this process. A part of the same name is replaced.
    `progress` is called after each tensor.
    Raises ValueError for tensors that cannot be of this part, StorageFull where there is no room, and OSError; the
    folder's other parts are then as they were.
    """
    head, sources = _lay_out(tensors)
    size = len(head) + sum(data.nbytes for _, _, data in sources.values())
    if strangers := header.pieces.keys() - sources.keys():
        raise ValueError(f"{min(strangers)}: a piece, but no tensor")

    def fill(file: FileIO) -> tuple[bytes, StatePart]:
        digest, at, entries = _hasher(), len(head), {}
        _put(file, memoryview(head), digest)
        for name, (dtype, shape, data) in sources.items():
            piece = header.pieces.get(name) or PieceOf.model_construct(whole=shape)
            crc32 = _put(file, data, digest)
            entries[name] = TensorEntry.model_construct(
                dtype=dtype, shape=shape, offset=at, bytes=data.nbytes, crc32=crc32, piece=piece
            )
            at += data.nbytes
            progress()
        manifest = PartManifest(
            state=header.state(digest.hexdigest(), size), run=header.run, config=header.config, scalars=header.scalars,
            tensors=entries,
        )  # fmt: skip
        if problem := manifest.problem():
            raise ValueError(problem)
        return encode(manifest), manifest.state

    return _store(folder, header.state("", size), durable, fill)


def receive_part(folder: Path, manifest: bytes, chunks: Iterable[bytes], *, durable: bool) -> StatePart:
    """Writes a part that comes from elsewhere: its JSON file, and its data file in chunks of any size.

    Raises Corrupt where they are not what their digests say, StorageFull and OSError; nothing is left of it then.
    """
    try:
        part = decode(manifest).state
    except ValueError as error:
        raise Corrupt(folder, f"a manifest was received that is damaged: {error}") from error
    path = data_path(folder, part)

    def fill(file: FileIO) -> tuple[bytes, StatePart]:
        digest, size = _hasher(), 0
        for chunk in chunks:
            size += len(chunk)
            if size > part.bytes:
                break
            _put(file, memoryview(chunk), digest)
        if size != part.bytes or digest.hexdigest() != part.digest:
            raise Corrupt(path, f"what was received is not the {part.bytes} bytes with digest {part.digest}")
        return manifest, part

    return _store(folder, part, durable, fill)


def read_header(path: Path) -> PartManifest:
    """What a part's JSON says. Raises Corrupt if it is not as it was written; reads nothing of the data."""
    path = path.with_suffix(MANIFEST_SUFFIX)
    try:
        manifest = decode(path.read_bytes())
    except OSError as error:
        raise Corrupt(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise Corrupt(path, str(error)) from error
    if manifest.state.name != path.stem:
        raise Corrupt(path, f"it is of {manifest.state.name}")
    return manifest


def verify_part(path: Path, progress: Callable[[], None] = lambda: None) -> StatePart | Corrupt:
    """The part, every byte of it checked, or what is wrong with it. Memory: a megabyte, whatever the size. `progress`
    is called after each tensor.
    """
    data = path.with_suffix(DATA_SUFFIX)
    try:
        manifest = read_header(path)
        with data.open("rb", buffering=0) as file:
            _check(file, data, manifest, progress)
    except OSError as error:
        return Corrupt(data, error.strerror or str(error))
    except Corrupt as corrupt:
        return corrupt
    return manifest.state


def open_part(path: Path, progress: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
    """A part's tensors by name, after verification, mapped from the file: read when touched, in no memory of their own.

    The file may be removed while they are in use, never shortened. Raises Corrupt.
    """
    data = path.with_suffix(DATA_SUFFIX)
    manifest = read_header(path)
    try:
        with data.open("rb", buffering=0) as file:
            _check(file, data, manifest, progress)
            whole = memoryview(mmap.mmap(file.fileno(), manifest.state.bytes, access=mmap.ACCESS_READ))
    except OSError as error:
        raise Corrupt(data, error.strerror or str(error)) from error
    return {
        name: Tensor(entry.dtype, entry.shape, whole[entry.offset : entry.offset + entry.bytes])
        for name, entry in manifest.tensors.items()
    }


def list_parts(folder: Path) -> list[StatePart]:
    """Parts with an intact manifest and data of the right size, newest first. Their tensors are not read."""
    found = []
    for path in folder.glob(f"*{MANIFEST_SUFFIX}"):
        try:
            part = read_header(path).state
            size = data_path(folder, part).stat().st_size
        except (Corrupt, FileNotFoundError):
            continue
        if size == part.bytes:
            found.append(part)
    return sorted(found, key=lambda part: (-part.step, part.layout, part.part, part.kind))


def remove_part(folder: Path, part: StatePart) -> None:
    """Its manifest first: what is left after a kill in between is no part."""
    manifest_path(folder, part).unlink(missing_ok=True)
    data_path(folder, part).unlink(missing_ok=True)


def sweep(folder: Path) -> list[Path]:
    """Removes what killed writers left, and answers what that was. While nobody writes parts here."""
    parts = {part.name for part in list_parts(folder)}
    removed = []
    for path in sorted(folder.glob("*")):
        whole = path.name.removesuffix(TEMPORARY_SUFFIX)
        name = whole.removesuffix(DATA_SUFFIX).removesuffix(MANIFEST_SUFFIX)
        if PART_NAME.fullmatch(name) and name != whole and (whole != path.name or name not in parts):
            path.unlink()
            removed.append(path)
    return removed


def _lay_out(tensors: Iterable[SourceTensor]) -> tuple[bytes, dict[str, tuple[str, tuple[int, ...], memoryview]]]:
    """The header of a safetensors file, and by name, in the file's order: dtype, shape, bytes."""
    given: dict[str, tuple[str, tuple[int, ...], memoryview]] = {}
    for name, dtype, shape, buffer in tensors:
        data = memoryview(buffer)
        if name in given or name == "__metadata__":
            raise ValueError(f"{name}: a name for one tensor only")
        if not data.c_contiguous:
            raise ValueError(f"{name}: not contiguous")
        given[name] = dtype, tuple(shape), data.cast("B") if data.nbytes else memoryview(b"")
    # wide items first: each then lies at a multiple of its own size
    sources = dict(sorted(given.items(), key=lambda item: -ITEM_BYTES.get(item[1][0], 1)))
    fields, at = {}, 0
    for name, (dtype, shape, data) in sources.items():
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + data.nbytes)}
        at += data.nbytes
    text = orjson.dumps(fields)
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, sources


def _store(
    folder: Path, part: StatePart, durable: bool, fill: Callable[[FileIO], tuple[bytes, StatePart]]
) -> StatePart:
    """Puts both files in place. `fill` writes the data and answers the bytes of the manifest, and what it says."""
    data, manifest = data_path(folder, part), manifest_path(folder, part)
    new_data, new_manifest = (path.with_name(path.name + TEMPORARY_SUFFIX) for path in (data, manifest))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room(folder, part.bytes)
        with new_data.open("wb", buffering=0) as file:
            said, stored = fill(file)
            if durable:
                sync_descriptor(file.fileno())
        with new_manifest.open("wb", buffering=0) as file:
            _put(file, memoryview(said), _hasher())
            if durable:
                sync_descriptor(file.fileno())
        remove_part(folder, part)  # if it is replaced; and ext4 writes at once what is renamed over something else
        new_data.replace(data)
        if durable:
            sync_folder(folder)
        new_manifest.replace(manifest)
        if durable:
            sync_folder(folder)
    except BaseException as error:
        for path in (new_data, new_manifest):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            if is_disk_full(error):
                raise StorageFull(folder, part.bytes) from error
            if error.errno is not None and error.filename is None:
                error.filename = str(data)
        raise
    return stored


def _check(file: FileIO, path: Path, manifest: PartManifest, progress: Callable[[], None] = lambda: None) -> None:
    """Raises Corrupt unless every byte of the data file is what was written."""
    size = os.fstat(file.fileno()).st_size
    if size != manifest.state.bytes:
        raise Corrupt(path, f"it has {size} bytes, not {manifest.state.bytes}")
    digest, buffer = _hasher(), memoryview(bytearray(min(size, CHUNK_BYTES)))
    first = min((entry.offset for entry in manifest.tensors.values()), default=size)
    _read(file, first, buffer, digest)
    damaged = []
    for name, entry in manifest.tensors.items():
        if _read(file, entry.bytes, buffer, digest) != entry.crc32:
            damaged.append(name)
        progress()
    if damaged:
        raise Corrupt(path, f"tensor {damaged[0]} is damaged")
    if digest.hexdigest() != manifest.state.digest:
        raise Corrupt(path, "its header is damaged")


def _read(file: FileIO, size: int, buffer: memoryview, digest: hashlib.blake2b) -> int:
    """Adds the next `size` bytes to `digest`. Their CRC-32."""
    crc = 0
    while size:
        count = file.readinto(buffer[:size])
        if not count:
            break
        digest.update(buffer[:count])
        crc = zlib.crc32(buffer[:count], crc)
        size -= count
    return crc


def _put(file: FileIO, data: memoryview, digest: hashlib.blake2b) -> int:
    """Writes `data` and adds it to `digest`. Its CRC-32. In chunks: each is read from memory once for all three."""
    crc = 0
    for at in range(0, data.nbytes, CHUNK_BYTES):
        chunk = data[at : at + CHUNK_BYTES]
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        while chunk:
            chunk = chunk[file.write(chunk) :]
    return crc


def _hasher() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=DIGEST_BYTES)
