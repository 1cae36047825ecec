"""A run's folder: where its files are, who may write to it, and what was asked (run.toml).

One process at a time may hold a run: the lock is the kernel's, so that it falls with the process however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.store.durable import TEMPORARY_SUFFIX, sync_folder, write_durably

LOCK_NAME: Final = ".lock"
KNOWN: Final = frozenset(
    {
        "run.toml", "plan.json", "ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "events.jsonl", "output",
        "dropped", "failed", "checkpoints", "summary.json", "report.html", "input-cache", LOCK_NAME, "logs", ".writing",
        "metrics.jsonl", "data", "track", "job.json", "artifacts", "jobs", "model-card.md",
        "metrics.prom", "report.json", "service.sqlite",
    }
)  # fmt: skip


class RunFolder:
    """An existing run folder, locked while this object is open unless it was opened to read.

    `fresh` is True if this object made the run: `abandon` then removes it without a trace.
    """

    def __init__(self, path: Path, *, fresh: bool, lock: int | None, made_folder: bool = False) -> None:
        self.path = path
        self.fresh = fresh
        self._lock = lock
        self._made_folder = made_folder
        self.run_toml = path / "run.toml"
        self.plan = path / "plan.json"
        self.ledger = path / "ledger.sqlite"
        self.events = path / "events.jsonl"
        self.output = path / "output"
        self.dropped = path / "dropped"
        self.failed = path / "failed"
        self.checkpoints = path / "checkpoints"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.input_cache = path / "input-cache"
        self.data = path / "data"  # of a training run: the prepared dataset
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def hold(cls, path: Path | str) -> RunFolder:
        """The run at `path`, made if there is none, locked for this process.

        Raises UsageError if another process holds it (named with its host and id), or if the folder holds something
        else.
        """
        path = Path(path).absolute()
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file, not a run folder", "choose another --out")
        made_folder = not path.exists()
        if not made_folder:
            _refuse_strangers(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
        except OSError as error:
            if made_folder:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise UsageError(
                f"{path} cannot be made a run folder: {error.strerror or error}",
                "choose another --out, or see whether that disk is full and whether you may write there",
            ) from error
        return cls(path, fresh=not (path / "ledger.sqlite").exists(), lock=lock, made_folder=made_folder)

    @classmethod
    def read(cls, path: Path | str) -> RunFolder:
        """The run at `path`, to read only: no lock. Raises UsageError if it is not a run."""
        path = Path(path).absolute()
        if not (path / "ledger.sqlite").is_file() and not (path / "run.toml").is_file():
            raise UsageError(f"{path} is not a run folder", "see: realign runs list")
        return cls(path, fresh=False, lock=None)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def abandon(self) -> None:
        """Leaves nothing half done: removes what a fresh run has written, and the folder if this object made it."""
        if not self.fresh:
            self.close()
            return
        for entry in self.path.iterdir():
            if entry.name.removesuffix(TEMPORARY_SUFFIX) in KNOWN and entry.name != LOCK_NAME:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (self.path / LOCK_NAME).unlink(missing_ok=True)
        self.close()
        if self._made_folder:
            with contextlib.suppress(OSError):  # somebody put something there meanwhile
                self.path.rmdir()

    def write_run_toml(self, values: Mapping[str, Any]) -> None:
        """Writes run.toml: tables of texts, numbers, booleans and lists. None is left out."""
        write_durably(self.run_toml, to_toml(values).encode())

    def read_run_toml(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.run_toml.read_text("utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{self.path} has no run.toml", "start the run again in a new folder") from None
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{self.run_toml} cannot be read: {error}", "restore it as it was written") from error

    def write_json(self, path: Path, value: Any) -> None:
        """Replaces one of the run's JSON files durably."""
        write_durably(path, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _refuse_strangers(path: Path) -> None:
    strangers = sorted(
        entry.name for entry in path.iterdir() if entry.name not in KNOWN and not entry.name.endswith(".part")
    )
    is_run = (path / "ledger.sqlite").exists() or (path / "run.toml").exists()
    if strangers and not is_run:
        raise UsageError(
            f"{path} is not empty and not a run: it holds {', '.join(strangers[:3])}", "choose another --out"
        )


def _take_lock(path: Path) -> int:
    while True:
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise UsageError(
                f"the run {path} is held by {holder or 'another process'}",
                "wait until it ends, or stop it; the run can then be resumed",
            ) from None
        # a run that was abandoned meanwhile took its lock file with it
        try:
            same = os.path.samestat(os.stat(path / LOCK_NAME), os.fstat(descriptor))  # noqa: PTH116
        except FileNotFoundError:
            same = False
        if not same:
            os.close(descriptor)
            path.mkdir(parents=True, exist_ok=True)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        sync_folder(path)
        return descriptor


def to_toml(values: Mapping[str, Any]) -> str:
    """`values` as TOML. Raises TypeError for what TOML has no form for."""
    lines: list[str] = []
    _table(values, (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    if path:
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    for key, value in values.items():
        if value is not None and not isinstance(value, Mapping):
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in values.items():
        if isinstance(value, Mapping):
            _table(value, (*path, key), lines)


def _key(key: str) -> str:
    return key if key and key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case str() | Path():
            return _text(str(value))
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
        case Mapping():
            return (
                "{"
                + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
                + "}"
            )
    raise TypeError(f"TOML has no form for {type(value).__name__}")


def _text(text: str) -> str:
    # JSON's escapes are TOML's, except DEL, which TOML wants escaped
    return orjson.dumps(text).decode().replace("\x7f", "\\u007F")
