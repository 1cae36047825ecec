"""Finds the input files and reads their rows: JSONL as it lies, everything else by way of a canonical JSON copy.

JSONL.gz, JSONL.zst, Parquet and Hugging Face datasets are turned into JSONL once, under RUN/input-cache/, so that any
row can be read at once by its offset. A row index is the line of a JSONL file (from 0) or the row of a table. Must
not know what rows mean.
"""

from __future__ import annotations

import glob
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import orjson

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.store.positions import Positions

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "huggingface"]
SUFFIXES: Final[dict[str, Format]] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".parquet": "parquet",
}
SHOWN_FORMATS: Final = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet, or the folder of a dataset saved with save_to_disk"

EDGE_BYTES: Final = 64 * 1024  # hashed at each end of a file
BLOCK_BYTES: Final = 4 * 1024 * 1024  # what is read, and hashed, at a time
OPEN_FILES: Final = 64
SPARSE_FACTOR: Final = 4  # read a span at once unless it is more than this much larger than the rows wanted from it

Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Enough to notice a changed file without reading it: size, time of change, BLAKE2b of the first and last 64
    KiB.
    """

    size: int
    mtime_ns: int
    head: str
    tail: str

    def difference(self, now: Fingerprint) -> str | None:
        """What differs in `now`, in words, or None. Time alone is the last thing named."""
        if self.size != now.size:
            return f"its size was {self.size:,} bytes, now it is {now.size:,}"
        if self.head != now.head:
            return "its beginning differs"
        if self.tail != now.tail:
            return "its end differs"
        if self.mtime_ns != now.mtime_ns:
            return "it was written since"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One file of the input, or one dataset folder. `name` is its path relative to the deepest folder that holds
    all.
    """

    index: int
    name: str
    path: Path
    format: Format
    parts: tuple[Path, ...]  # the files it is made of: itself, or the Arrow files of a dataset in order

    def fingerprint(self) -> Fingerprint:
        return _fingerprint(self.parts)

    @property
    def size(self) -> int:
        return sum(part.stat().st_size for part in self.parts)


def expand_inputs(arguments: Sequence[str | Path]) -> list[InputFile]:
    """Files, globs and folders as input files, in order of relative path, each once.

    Raises UsageError for what is not there, cannot be read, holds no input, or is of an unknown format.
    """
    found: dict[Path, Format] = {}
    for argument in arguments:
        for path in _paths_of(str(argument)):
            found.setdefault(path.resolve(), _format_of(path))
    if not found:
        raise UsageError("no input was named", f"give files, globs or folders of {SHOWN_FORMATS}")
    common = Path(os.path.commonpath([path.parent for path in found]))
    files = [
        InputFile(
            index=index,
            name=path.relative_to(common).as_posix(),
            path=path,
            format=found[path],
            parts=_parts(path, found[path]),
        )
        for index, path in enumerate(sorted(found, key=lambda path: path.relative_to(common).as_posix()))
    ]
    for file in files:
        for part in file.parts:
            if not os.access(part, os.R_OK):
                raise UsageError(f"{part} cannot be read", "check its permissions")
    return files


def _paths_of(argument: str) -> list[Path]:
    path = Path(argument).expanduser()
    if path.is_dir():
        inside = [path] if _is_dataset(path) else list(_walk(path))
        if not inside:
            raise UsageError(f"the folder {argument} holds no input", f"known are {SHOWN_FORMATS}")
        return inside
    if path.exists():
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if not matches:
        what = "matches nothing" if glob.has_magic(argument) else "does not exist"
        raise UsageError(f"input {argument} {what}", "check the path")
    inside = []
    for match in matches:
        inside += _paths_of(str(match)) if match.is_dir() else [match]
    return inside


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            if _is_dataset(entry):
                yield entry
            else:
                yield from _walk(entry)
        elif _suffix(entry) is not None:
            yield entry


def _is_dataset(folder: Path) -> bool:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = orjson.loads(splits.read_bytes()).get("splits", [])
        raise UsageError(
            f"{folder} holds several splits: {', '.join(names) or 'none'}",
            f"name one of them: {folder / names[0]}" if names else "save a dataset with save_to_disk",
        )
    return (folder / "state.json").is_file()


def _suffix(path: Path) -> Format | None:
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.endswith(suffix)), None)


def _format_of(path: Path) -> Format:
    if path.is_dir():
        return "huggingface"
    kind = _suffix(path)
    if kind is None:
        raise UsageError(f"{path} is of no known input format", f"known are {SHOWN_FORMATS}")
    return kind


def _parts(path: Path, kind: Format) -> tuple[Path, ...]:
    if kind != "huggingface":
        return (path,)
    try:
        state = orjson.loads((path / "state.json").read_bytes())
        names = [entry["filename"] for entry in state["_data_files"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path / 'state.json'} is not that of a dataset: {error}", "save it again with save_to_disk"
        ) from error
    if state.get("_indices_data_files"):
        raise UsageError(f"{path} has an indices mapping", "call flatten_indices() before save_to_disk()")
    parts = tuple(path / Path(name).name for name in names)
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UsageError(f"the dataset {path} is incomplete: {missing[0]} is missing", "copy the whole folder")
    return parts


def _fingerprint(parts: Sequence[Path]) -> Fingerprint:
    heads, tails = blake2b(digest_size=16), blake2b(digest_size=16)
    size = mtime = 0
    for part in parts:
        with part.open("rb") as file:
            status = os.fstat(file.fileno())
            heads.update(file.read(EDGE_BYTES))
            file.seek(max(0, status.st_size - EDGE_BYTES))
            tails.update(file.read(EDGE_BYTES))
        size += status.st_size
        mtime = max(mtime, status.st_mtime_ns)
    return Fingerprint(size=size, mtime_ns=mtime, head=heads.hexdigest(), tail=tails.hexdigest())


def content_hash(parts: Sequence[Path], stopped: Callable[[], bool] = lambda: False) -> str:
    """BLAKE2b-256 of the files `parts`, one after the other; meaningless once `stopped`. Raises OSError."""
    digest = blake2b(digest_size=32)
    for part in parts:
        with part.open("rb", buffering=0) as file:
            while not stopped() and (block := file.read(BLOCK_BYTES)):
                digest.update(block)
    return digest.hexdigest()


class Sources:
    """The rows of all input files by position. Thread-safe. Close it, or use it in a with statement.

    `cache` is RUN/input-cache: the JSONL copies of files that are not plain JSONL, made by `prepare`.
    """

    def __init__(self, files: Sequence[InputFile], cache: Path) -> None:
        self.files = tuple(files)
        self._cache = cache
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()  # file index -> descriptor, least recently used first
        self._rows_path: dict[int, Path] = {}

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def prepare(self, index: int, progress: Progress | None = None) -> Path:
        """The JSONL file with the rows of file `index`, after making it if it must be made. A crash leaves none or
        all of it.

        Raises UsageError for a file that is damaged, StorageFull if the copy does not fit.
        """
        if index in self._rows_path:
            return self._rows_path[index]
        file = self.files[index]
        path = file.path
        if file.format != "jsonl":
            mark = file.fingerprint()
            key = blake2b(f"{mark.size} {mark.mtime_ns} {mark.head} {mark.tail}".encode(), digest_size=8).hexdigest()
            path = self._cache / f"{index:05d}-{key}.jsonl"
            if not path.is_file():
                from realign_cluster.store.conversion import convert  # loads pyarrow, which JSONL has no need of

                convert(
                    file.format,
                    file.parts,
                    path,
                    (lambda done: progress(f"unpacking {file.name}", done, mark.size)) if progress else None,
                )
        self._rows_path[index] = path
        return path

    def discard_cache(self) -> None:
        """Removes the JSONL copies: call it once the output is written."""
        self.close()
        self._rows_path.clear()
        if self._cache.is_dir():
            for path in self._cache.iterdir():
                path.unlink(missing_ok=True)
            self._cache.rmdir()

    def where(self, file: int, row: int) -> str:
        """`name:line` of a row (counted from 1), as errors show it."""
        return f"{self.files[file].name}:{row + 1}"

    def read(self, positions: Positions) -> list[bytes]:
        """Raw JSON of the rows at `positions` (dtype POSITION, any order), in that order.

        Raises RunFailed, naming the file, if it has become shorter than it was.
        """
        if not len(positions):
            return []
        first = int(positions["file"][0])
        if np.all(positions["file"] == first):
            return self._read_from(first, positions["offset"], positions["length"])
        raws: list[bytes] = [b""] * len(positions)
        for index in np.unique(positions["file"]).tolist():
            chosen = np.flatnonzero(positions["file"] == index)
            rows = self._read_from(index, positions["offset"][chosen], positions["length"][chosen])
            for at, raw in zip(chosen.tolist(), rows, strict=True):
                raws[at] = raw
        return raws

    def _read_from(self, index: int, offsets: Any, lengths: Any) -> list[bytes]:
        start = int(offsets.min())
        end = int((offsets + lengths).max())
        starts, sizes = offsets.tolist(), lengths.tolist()
        if end - start <= SPARSE_FACTOR * int(lengths.sum(dtype=np.int64)) + BLOCK_BYTES // 16:
            span = self._pread(index, start, end - start)
            return [span[at - start : at - start + size] for at, size in zip(starts, sizes, strict=True)]
        return [self._pread(index, at, size) for at, size in zip(starts, sizes, strict=True)]

    def _pread(self, index: int, offset: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            with self._lock:  # so that no other thread closes the descriptor between look-up and read
                more = os.pread(self._descriptor(index), size - len(data), offset + len(data))
            if not more:
                raise RunFailed(
                    f"the input {self.files[index].name} has become shorter while the run was on",
                    "put the file back as it was, or start the run again in a new folder",
                )
            data = data + more if data else more
        return data

    def _descriptor(self, index: int) -> int:
        found = self._open.get(index)
        if found is not None:
            self._open.move_to_end(index)
            return found
        try:
            descriptor = os.open(self.prepare(index), os.O_RDONLY)
        except FileNotFoundError as error:
            raise RunFailed(
                f"the input {self.files[index].name} was removed while the run was on",
                "put the file back as it was: the same command goes on where it stopped",
            ) from error
        self._open[index] = descriptor
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor
