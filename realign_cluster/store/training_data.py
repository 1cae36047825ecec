"""Makes a prepared dataset of the user's files: every row checked first, written in one form, addressed by content.

train.jsonl, valid.jsonl and probes.jsonl, which has the prompts that divergence is measured on (one canonical JSON
object a line), lie in FOLDER/HASH/, which can be sent to a node like a model. Memory is bounded but for eight bytes a
validation row. Must not know tokenizers, templates or ranks.
"""

from __future__ import annotations

import re
import shutil
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt
import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelFileSpec, ModelSpec
from realign_cluster.domain.rows import BadField
from realign_cluster.domain.training import PREFERENCE_METHODS, Method
from realign_cluster.domain.training_rows import Form, WrongForm, canonical_prompt, canonical_row, form_of
from realign_cluster.store.durable import TEMPORARY_SUFFIX, durable_file, sync_folder, write_durably
from realign_cluster.store.jsonl import Lines, lines_of
from realign_cluster.store.model_files import HASH_BYTES, hash_file, hash_of_files
from realign_cluster.store.readers import InputFile, Sources, expand_inputs
from realign_cluster.store.row_problem import RowProblem, diagnose
from realign_cluster.store.space import StorageFull, is_disk_full

Split = Literal["train", "valid", "probes"]
Digests = npt.NDArray[np.uint64]
Canonical = Callable[[dict[str, Any], int, int], dict[str, Any]]  # of a row, its file and its number

MAX_ROW_BYTES: Final = 8 * 1024 * 1024
LISTED_PROBLEMS: Final = 20
LISTED_LEAKS: Final = 5
PREPARED_ROW: Final = re.compile(r"\b(?P<split>train|valid|probes)\.jsonl(?::(?P<line>[1-9][0-9]*))?")
OPTIONS: Final[Mapping[Split, str]] = {"train": "--data", "valid": "--valid", "probes": "--kl-probes"}
CONVERTED: Final = "input-cache"  # JSONL copies of files that are not plain JSONL, while they are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """From row `row` (from 0) of a prepared file on, rows are the lines of `name` from `line` (from 1) on."""

    row: int
    name: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """`folder` holds the files of `spec`: train.jsonl with `rows` lines and, if there are any, valid.jsonl with
    `valid_rows`, and probes.jsonl.
    """

    folder: Path
    spec: ModelSpec
    form: Form
    rows: int
    valid_rows: int
    origins: dict[Split, tuple[Origin, ...]]

    def where(self, split: Split, row: int) -> str:
        """`name:line` in the user's files of row `row` (from 0) of a split's file."""
        return _where(self.origins[split], row)

    def in_the_users_files(self, text: str) -> str:
        """What a rank says of train.jsonl and the others, which are all that it knows: "train.jsonl:7" as the line of
        the user's file, a whole file as the option that gave it.
        """

        def named(found: re.Match[str]) -> str:
            split: Split = next(split for split in OPTIONS if split == found["split"])
            if not self.origins[split]:
                return found[0]
            return self.where(split, int(found["line"]) - 1) if found["line"] else OPTIONS[split]

        return PREPARED_ROW.sub(named, text)


def prepare_training_data(
    train_paths: Sequence[str | Path],
    valid_paths: Sequence[str | Path],
    method: Method,
    folder: Path,
    *,
    probe_paths: Sequence[str | Path] = (),
    beside: Mapping[str, bytes] = MappingProxyType({}),
    look: Callable[[], None] = lambda: None,
) -> PreparedData:
    """Checks every row of `train_paths`, `valid_paths` and `probe_paths` (files, globs, folders; the last two may be
    none). Of probes only the prompts are kept, and they may be of any form.

    The result is in FOLDER/HASH/, whole or not at all, and is used again where it is there already. `beside`: further
    files of it, by name. `look` is called every few rows and may raise. Raises UsageError, with file and line, for rows
    that are wrong, of a form that `method` does not learn from or of two forms, for no rows at all, and for validation
    rows that are train rows too; StorageFull when it does not fit.
    """
    files = expand_inputs([*train_paths, *valid_paths, *probe_paths])
    # validation first: it is remembered while the train rows pass by
    given: dict[Split, Sequence[str | Path]] = {"valid": valid_paths, "train": train_paths, "probes": probe_paths}
    chosen = {
        split: {file.path for file in expand_inputs(paths)}
        for split, paths in given.items()
        if paths or split == "train"
    }
    folder.mkdir(parents=True, exist_ok=True)
    making = folder / f"data{TEMPORARY_SUFFIX}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    try:
        with Sources(files, folder / CONVERTED) as sources:
            reader = _Reader(sources, method, making, look)
            try:
                for split, paths in chosen.items():
                    reader.read(split, [file for file in files if file.path in paths])
            finally:
                sources.discard_cache()
            reader.judge()
        return reader.publish(folder, beside)
    except OSError as error:
        if is_disk_full(error):
            fix = "free some room there and give the command again"
            raise StorageFull(folder, sum(file.size for file in files), fix) from error
        raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


@dataclass(slots=True, kw_only=True)
class _Written:
    """What has been read and written of one split so far."""

    names: list[str]
    rows: int = 0
    size: int = 0
    digest: Any = field(default_factory=lambda: blake2b(digest_size=HASH_BYTES))
    origins: list[Origin] = field(default_factory=list)

    def note_origin(self, name: str, line: int) -> None:
        """Row number `rows` is line `line` of `name`; only what does not follow from the origin before is kept."""
        if self.origins:
            last = self.origins[-1]
            if last.name == name and last.line + self.rows - last.row == line:
                return
        self.origins.append(Origin(row=self.rows, name=name, line=line))


class _Reader:
    """Reads splits one after the other into `making`. Once a row is wrong nothing more is written, only checked."""

    def __init__(self, sources: Sources, method: Method, making: Path, look: Callable[[], None]) -> None:
        self._sources = sources
        self._method = method
        self._making = making
        self._look = look
        self._form: Form | None = None
        self._first = ""  # where the first row of that form stands
        self._splits: dict[Split, _Written] = {}
        self._problems: list[RowProblem] = []  # the first few
        self._bad_rows = 0
        self._seen_rows = 0
        self._valid: Digests = np.empty(0, dtype=np.uint64)  # sorted
        self._valid_rows: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)  # of each of them
        self._leaks: list[tuple[int, int]] = []  # (validation row, train row), the first few
        self._leaked_rows = 0

    def read(self, split: Split, files: Sequence[InputFile]) -> None:
        """ "valid" comes before "train" if there are both."""
        written = self._splits[split] = _Written(names=[file.name for file in files])
        digests: list[Digests] = []
        with durable_file(self._making / f"{split}.jsonl") as out:
            for file in files:
                for piece in lines_of(self._sources.prepare(file.index), 0, 0, MAX_ROW_BYTES):
                    self._look()
                    if not isinstance(piece, Lines):
                        self._add_bad(_too_large(piece.length), file.index, piece.row)
                        continue
                    found = self._write(written, out, file, piece, self._probe if split == "probes" else self._learned)
                    if split == "valid":
                        digests.append(found)
                    elif split == "train":
                        self._find_leaks(found, written.rows - len(found))
        if digests:
            unsorted = np.concatenate(digests)
            self._valid_rows = np.argsort(unsorted, kind="stable")
            self._valid = unsorted[self._valid_rows]
        if not written.rows and not self._bad_rows:
            what = {"train": "training", "valid": "validation", "probes": OPTIONS["probes"]}[split]
            raise UsageError(
                f"the {what} data has no rows: {', '.join(written.names[:3])}",
                "give files with one JSON object per line",
            )

    def _write(self, written: _Written, out: BinaryIO, file: InputFile, piece: Lines, form: Canonical) -> Digests:
        """Checks and writes the rows of `piece`; answers their digests, shape (rows,), uint64."""
        lines: list[bytes] = []
        for at, raw in enumerate(piece.lines):
            line = self._checked(raw, file.index, piece.first_row + at, form)
            if line is not None and not self._bad_rows:
                written.note_origin(file.name, piece.first_row + at + 1)
                written.rows += 1
                lines.append(line)
        data = b"".join(lines)
        out.write(data)
        written.digest.update(data)
        written.size += len(data)
        return np.frombuffer(b"".join(blake2b(line, digest_size=8).digest() for line in lines), dtype=np.uint64)

    def _checked(self, raw: bytes, file: int, row: int, form: Canonical) -> bytes | None:
        """The canonical line of a row, or None if it is blank or wrong."""
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            if raw.strip():
                self._add_bad(diagnose(raw, error, MAX_ROW_BYTES), file, row)
            return None
        if not isinstance(value, dict) or len(raw) > MAX_ROW_BYTES:
            self._add_bad(diagnose(raw, value, MAX_ROW_BYTES), file, row)
            return None
        try:
            written = form(value, file, row)
        except WrongForm as error:
            self._add_bad(RowProblem("bad-form", str(error)), file, row)
        except BadField as error:
            self._add_bad(RowProblem("bad-field", error.message, field=error.field), file, row)
        else:
            self._seen_rows += 1
            return orjson.dumps(written, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
        return None

    def _learned(self, value: dict[str, Any], file: int, row: int) -> dict[str, Any]:
        return canonical_row(value, self._checked_form(value, file, row))

    @staticmethod
    def _probe(value: dict[str, Any], file: int, row: int) -> dict[str, Any]:
        del file, row
        return canonical_prompt(value)

    def _checked_form(self, value: dict[str, Any], file: int, row: int) -> Form:
        try:
            form = form_of(value, self._method)
        except WrongForm as error:
            if self._form is not None:
                raise
            other = "sft" if self._method in PREFERENCE_METHODS else "dpo"
            raise UsageError(
                f"{self._sources.where(file, row)}: {error}",
                f"choose a method that learns from it (--method {other}), or give other data",
            ) from error
        if self._form is None:
            self._form, self._first = form, self._sources.where(file, row)
        if form != self._form:
            raise BadField(
                "", f"is a {form} row, but {self._first} is a {self._form} row; expected one form throughout"
            )
        return form

    def _add_bad(self, problem: RowProblem, file: int, row: int) -> None:
        self._bad_rows += 1
        self._seen_rows += 1
        if len(self._problems) < LISTED_PROBLEMS:
            self._problems.append(problem.at(self._sources.where(file, row)))

    def _find_leaks(self, digests: Digests, first_row: int) -> None:
        """Which of the train rows from `first_row` on are validation rows."""
        if not len(self._valid):
            return
        places = np.minimum(np.searchsorted(self._valid, digests), len(self._valid) - 1)
        leaked = np.flatnonzero(self._valid[places] == digests)
        self._leaked_rows += len(leaked)
        for at in leaked[: LISTED_LEAKS - len(self._leaks)].tolist():
            self._leaks.append((int(self._valid_rows[places[at]]), first_row + at))

    def judge(self) -> None:
        """Raises UsageError for what was wrong with the rows."""
        if self._bad_rows:
            listed = "\n  ".join(problem.shown() for problem in self._problems)
            more = self._bad_rows - len(self._problems)
            rest = f"\n  and {more:,} more" if more else ""
            raise UsageError(
                f"{self._bad_rows:,} of {self._seen_rows:,} rows cannot be trained on:\n  {listed}{rest}",
                "correct or remove them",
            )
        if self._leaked_rows:
            train, valid = self._splits["train"].origins, self._splits["valid"].origins
            pairs = ", ".join(f"{_where(train, row)} is {_where(valid, other)}" for other, row in self._leaks)
            dots = ", ..." if self._leaked_rows > len(self._leaks) else ""
            raise UsageError(
                f"{self._leaked_rows:,} train rows are validation rows too, which would make the validation loss"
                f" look too good: {pairs}{dots}",
                "remove them from one of the two",
            )

    def publish(self, folder: Path, beside: Mapping[str, bytes]) -> PreparedData:
        """Gives the files their place under `folder`, with those of `beside`."""
        for name, data in beside.items():
            write_durably(self._making / name, data)
        specs = tuple(
            sorted(
                (
                    *(
                        ModelFileSpec(path=f"{split}.jsonl", size=written.size, blake2b=written.digest.hexdigest())
                        for split, written in self._splits.items()
                    ),
                    *(
                        ModelFileSpec(
                            path=name, size=len(data), blake2b=blake2b(data, digest_size=HASH_BYTES).hexdigest()
                        )
                        for name, data in beside.items()
                    ),
                ),
                key=lambda spec: spec.path,
            )
        )
        names = self._splits["train"].names
        name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        spec = ModelSpec(name=name, hash=hash_of_files(specs), files=specs)
        target = folder / spec.hash
        if not _holds(target, specs):
            shutil.rmtree(target, ignore_errors=True)
            self._making.replace(target)
            sync_folder(folder)
        assert self._form is not None
        valid, probes = self._splits.get("valid"), self._splits.get("probes")
        return PreparedData(
            folder=target,
            spec=spec,
            form=self._form,
            rows=self._splits["train"].rows,
            valid_rows=valid.rows if valid else 0,
            origins={
                "train": tuple(self._splits["train"].origins),
                "valid": tuple(valid.origins if valid else ()),
                "probes": tuple(probes.origins if probes else ()),
            },
        )


def _holds(folder: Path, files: Sequence[ModelFileSpec]) -> bool:
    return folder.is_dir() and all(
        (folder / file.path).is_file() and hash_file(folder / file.path) == file.blake2b for file in files
    )


def _where(origins: Sequence[Origin], row: int) -> str:
    origin = origins[bisect_right(origins, row, key=lambda origin: origin.row) - 1]
    return f"{origin.name}:{origin.line + row - origin.row}"


def _too_large(size: int) -> RowProblem:
    return RowProblem("too-large", f"the row has {size:,} bytes, at most {MAX_ROW_BYTES:,} are allowed")
