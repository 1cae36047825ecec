"""A folder of NumPy arrays that are written in pieces and mapped, not read, when they are used.

A folder is whole or it is none: it gets its name when everything is in it, and counts only while every file has the
digest that was written down. Must not know what the arrays mean.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from realign_cluster.store.durable import TEMPORARY_SUFFIX
from realign_cluster.store.model_files import hash_file

MANIFEST: Final = "manifest.json"
Array = npt.NDArray[Any]


class Column:
    """An array that grows along its first axis, in a .npy file."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, width: int | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._width = width
        self._count = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: npt.ArrayLike) -> None:
        """`values` (n,) or (n, width), of any type that the column's holds without loss."""
        array = np.asarray(values, dtype=self._dtype)
        self._count += len(array)
        self._file.write(array.tobytes())

    def _write_header(self) -> None:
        """NumPy leaves room in a header for the first axis to grow, so that it can be written again in place."""
        shape = (self._count,) if self._width is None else (self._count, self._width)
        description = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, description)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def __enter__(self) -> Column:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextmanager
def making_arrays(folder: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Gives an empty folder to fill; at the end of the block it becomes `folder`, and nothing is left after an error.

    `facts` may be filled until then. Nothing is synced: what a crash tears is seen by its digest and made again.
    """
    making = folder.with_name(folder.name + TEMPORARY_SUFFIX)
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        digests = {path.relative_to(making).as_posix(): hash_file(path) for path in sorted(making.rglob("*.npy"))}
        (making / MANIFEST).write_bytes(orjson.dumps({"files": digests, "facts": facts}))
        shutil.rmtree(folder, ignore_errors=True)
        making.replace(folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def find_arrays(folder: Path, progress: Callable[[], None]) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """(read-only arrays mapped from `folder`, by path without suffix; facts), or None unless all is as it was made."""
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
        arrays = {}
        for name, digest in manifest["files"].items():
            progress()
            if hash_file(folder / name) != digest:
                return None
            arrays[name.removesuffix(".npy")] = _mapped(folder / name)
        return arrays, dict(manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _mapped(path: Path) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
