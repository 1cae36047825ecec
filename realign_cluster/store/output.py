"""Writes output/, dropped/ and failed/: every row of the input once, in input order, in parts of a fixed number of
rows.

Everything is written aside and synced, then renamed into place: after a crash the old folders are there, or none, and
writing starts again. A JSONL row keeps its own bytes; only `row_id`, `scores` and the like are put before its closing
brace.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import orjson

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.domain.expression import KeepIf, TypeMismatch
from realign_cluster.domain.tally import Tally
from realign_cluster.store.durable import sync_descriptor, sync_folder
from realign_cluster.store.input_check import verify_contents
from realign_cluster.store.ledger_reader import LedgerReader, WindowOutcome
from realign_cluster.store.positions import PLACES_SUFFIX, Positions, row_ids
from realign_cluster.store.readers import Sources
from realign_cluster.store.space import StorageFull, is_disk_full

PART_ROWS: Final = 50_000
BUFFER_BYTES: Final = 1024 * 1024
ASIDE: Final = ".writing"
FOLDERS: Final = ("output", "dropped", "failed")
TRL_COLUMNS: Final = ("ref_chosen_logps", "ref_rejected_logps")  # as DPOTrainer reads them since TRL 0.12
LARGEST_COPIED: Final = 8 * 1024 * 1024  # a failed row beyond this is named in failed/, not copied

_OPENING, _CLOSING, _SPACE = b"{} "

OutputFormat = Literal["jsonl", "parquet"]
Progress = Callable[[int], None]  # rows written


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    format: OutputFormat = "jsonl"
    keep_if: KeepIf | None = None
    export_trl: bool = False  # preference: add TRL's reference log-probabilities, the sums of chosen and rejected
    part_rows: int = PART_ROWS


def write_outputs(
    ledger: LedgerReader,
    sources: Sources,
    run: Path,
    options: OutputOptions | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Writes the three folders of `run`, replacing what is there, and counts what became of every row.

    Rows that are not scored yet are left out: the tally then does not add up (`Tally.accounted`). Raises RunFailed if
    an input was changed since it was scanned, UsageError if the keep rule does not fit a row's values, StorageFull
    when there is no room; then nothing was replaced.
    """
    options = options or OutputOptions()
    aside = run / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tally = Tally()
    scan = ledger.meta("scan_complete") or {}
    tally.rows_in, tally.duplicates = scan.get("rows", 0), scan.get("duplicates", 0)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as verifying:
            verified = verifying.submit(verify_contents, ledger, sources.files)
            writer = _Writer(ledger, sources, aside, options, tally)
            for window in ledger.windows():
                writer.add(window)
                if progress is not None:
                    progress(tally.kept + tally.dropped + tally.failed)
            writer.close()
            verified.result()
        if options.format == "parquet":
            from realign_cluster.store.parquet_output import convert_parts  # loads pyarrow

            for folder in FOLDERS:
                convert_parts(aside / folder, sources)
        _put_in_place(aside, run)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if is_disk_full(error):
            raise StorageFull(run, sum(file.size for file in sources.files)) from error
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return tally


def _put_in_place(aside: Path, run: Path) -> None:
    for folder in FOLDERS:
        sync_folder(aside / folder)
    sync_folder(aside)
    for folder in FOLDERS:
        target = run / folder
        if target.exists():
            shutil.rmtree(target)
        (aside / folder).rename(target)
    aside.rmdir()
    sync_folder(run)


class PartWriter:
    """part-00000.jsonl, part-00001.jsonl, ... of `rows` lines each, every one synced when it is full."""

    def __init__(self, folder: Path, rows: int, *, with_places: bool = False) -> None:
        folder.mkdir()
        self._with_places = with_places  # for the conversion to Parquet: which row each line is
        self._folder = folder
        self._rows = rows
        self._part = 0
        self._space = 0  # rows until the part is full
        self._file: BinaryIO | None = None
        self._buffer: list[bytes] = []
        self._buffered = 0

    def add(self, lines: list[bytes], positions: Positions) -> None:
        """Adds complete lines, each with its newline, of the rows at `positions`."""
        first = 0
        while first < len(lines):
            if self._space == 0:
                self._end_part()
                self._file = (self._folder / f"part-{self._part:05d}.jsonl").open("wb", buffering=0)
                self._part += 1
                self._space = self._rows
            some = lines[first : first + self._space]
            if self._with_places:
                self._add_places(positions[first : first + len(some)])
            first += len(some)
            self._space -= len(some)
            joined = b"".join(some)
            self._buffer.append(joined)
            self._buffered += len(joined)
            if self._buffered >= BUFFER_BYTES:
                self._write()

    def _add_places(self, positions: Positions) -> None:
        places = np.stack([positions["file"].astype("<u8"), positions["row"]], axis=1)
        with (self._folder / f"part-{self._part - 1:05d}{PLACES_SUFFIX}").open("ab") as file:
            file.write(places.tobytes())

    def _write(self) -> None:
        if self._file is not None and self._buffer:
            view = memoryview(b"".join(self._buffer))
            while len(view):
                view = view[self._file.write(view) :]
        self._buffer, self._buffered = [], 0

    def _end_part(self) -> None:
        if self._file is not None:
            self._write()
            sync_descriptor(self._file.fileno())
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._end_part()


def splice(raw: bytes, fields: bytes) -> bytes:
    """The JSON object `raw` with `fields` (`"name":value,...`) added at its end, and a newline; its own bytes stay as
    they are.
    """
    end = raw.rfind(b"}")
    comma = b"" if raw[:end].rstrip().endswith(b"{") else b","
    return b"%b%b%b}\n" % (raw[:end], comma, fields)


def _scored_line(raw: bytes, row_id: bytes, scores: bytes) -> bytes:
    if (
        len(raw) > 2 and raw[-1] == _CLOSING and raw[-2] > _SPACE and raw[-2] != _OPENING
    ):  # splice, without its searching
        return b'%b,"row_id":"%b","scores":%b}\n' % (raw[:-1], row_id, scores)
    return splice(raw, b'"row_id":"%b","scores":%b' % (row_id, scores))


class _Writer:
    def __init__(
        self, ledger: LedgerReader, sources: Sources, aside: Path, options: OutputOptions, tally: Tally
    ) -> None:
        self._sources = sources
        self._options = options
        self._tally = tally
        places = options.format == "parquet"
        self._writers = {name: PartWriter(aside / name, options.part_rows, with_places=places) for name in FOLDERS}

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def add(self, window: WindowOutcome) -> None:
        raws = self._read(window)
        ids = row_ids(window.positions, raws)
        scores = self._parse(window)
        if scores is not None and self._options.keep_if is None and not self._options.export_trl:
            lines = list(map(_scored_line, raws, ids, window.results))  # type: ignore[arg-type]  # not one is None
            self._tally.kept += len(lines)
            self._tally.add_scores(scores)
            self._writers["output"].add(lines, window.positions)
        else:
            self._sort_out(window, raws, ids)

    def _sort_out(self, window: WindowOutcome, raws: list[bytes], ids: list[bytes]) -> None:
        """Row by row: some have failed, or there is a rule about which to keep."""
        keep_if, trl = self._options.keep_if, self._options.export_trl
        lines: dict[str, list[bytes]] = {name: [] for name in FOLDERS}
        places: dict[str, list[int]] = {name: [] for name in FOLDERS}
        scored: list[dict[str, Any]] = []
        for at, (raw, row_id, line) in enumerate(zip(raws, ids, window.results, strict=True)):
            score = None if line is None else orjson.loads(line)
            if line is None or score is None or "error" in score:
                lines["failed"].append(self._failed(window, at, raw, row_id, score))
                places["failed"].append(at)
                continue
            scored.append(score)
            fields = b'"row_id":"%b","scores":%b' % (row_id, line)
            if trl:
                fields = _reference_columns(score) + fields
            reason = None if keep_if is None else self._decide(keep_if, window, at, raw, score)
            if reason is not None:
                fields += b',"reason":' + orjson.dumps(reason)
                self._tally.drop(reason)
            name = "output" if reason is None else "dropped"
            lines[name].append(splice(raw, fields))
            places[name].append(at)
        self._tally.kept += len(lines["output"])
        self._tally.add_scores(scored)
        for name in FOLDERS:
            if lines[name]:
                self._writers[name].add(lines[name], window.positions[places[name]])

    def _read(self, window: WindowOutcome) -> list[bytes]:
        readable = window.positions["length"] <= LARGEST_COPIED
        if readable.all():
            return self._sources.read(window.positions)
        raws = [b""] * len(window.positions)
        chosen = np.flatnonzero(readable)
        for at, raw in zip(chosen.tolist(), self._sources.read(window.positions[chosen]), strict=True):
            raws[at] = raw
        return raws

    def _parse(self, window: WindowOutcome) -> list[dict[str, Any]] | None:
        """The scores of all rows, or None unless every one has some and no error."""
        if None in window.results:
            return None
        joined = b",".join(window.results)  # type: ignore[arg-type]
        try:
            parsed: list[dict[str, Any]] = orjson.loads(b"[%b]" % joined)
        except orjson.JSONDecodeError:
            return None
        if len(parsed) != len(window.results):
            return None
        if b'"error"' in joined and any("error" in score for score in parsed):
            return None
        return parsed

    def _decide(self, keep_if: KeepIf, window: WindowOutcome, at: int, raw: bytes, score: dict[str, Any]) -> str | None:
        try:
            return keep_if.decide(orjson.loads(raw) if keep_if.needs_row else None, score)
        except TypeMismatch as error:
            place = window.positions[at]
            where = self._sources.where(int(place["file"]), int(place["row"]))
            raise UsageError(
                f"--keep-if {keep_if.text!r} does not fit the row at {where}: {error}", "change the expression"
            ) from error

    def _failed(self, window: WindowOutcome, at: int, raw: bytes, row_id: bytes, score: dict[str, Any] | None) -> bytes:
        found = window.errors[at]
        if found is not None:
            error = {"code": found[0], "message": found[1]}
        elif score is not None:
            error = {
                "code": str(score["error"].get("code", "error")),
                "message": str(score["error"].get("message", "")),
            }
        else:
            raise RunFailed(
                f"row {row_id.decode()} has neither a result nor an error", "report this: it is a fault of the program"
            )
        self._tally.fail(error["code"])
        fields = b'"row_id":"%b","error":%b' % (row_id, orjson.dumps(error))
        if _is_object(raw):
            return splice(raw, fields)
        return b"{" + _as_text(raw) + fields + b"}\n"


def _reference_columns(score: dict[str, Any]) -> bytes:
    preference = score.get("preference") or {}
    sums = [(preference.get(side) or {}).get("sum") for side in ("chosen", "rejected")]
    return b"".join(
        b'"%b":%b,' % (name.encode(), orjson.dumps(value)) for name, value in zip(TRL_COLUMNS, sums, strict=True)
    )


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(orjson.loads(raw), dict)
    except orjson.JSONDecodeError:
        pass
    try:  # more lenient: lone surrogates and NaN keep their bytes
        return isinstance(json.loads(raw.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _as_text(raw: bytes) -> bytes:
    """What is not an object goes into a field of its own; bytes that are not UTF-8 are shown by U+FFFD."""
    return b'"raw":' + orjson.dumps(raw.decode("utf-8", "replace")) + b"," if raw else b""
