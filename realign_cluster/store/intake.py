"""Reads the whole input before anything is scored: checks every row, cuts units, and records both window by window.

A scan that was interrupted goes on after its last recorded window. Must not know nodes, models or tokenizers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

import numpy as np
import orjson

from realign_cluster.domain.batching import UNIT_BYTES, UNIT_COST, UNIT_ROWS, WINDOW_ROWS
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Fields
from realign_cluster.domain.rows import RESERVED_COLUMNS, BadField, RowCheck
from realign_cluster.store.input_check import check_inputs, register_inputs
from realign_cluster.store.jsonl import LongLine, lines_of
from realign_cluster.store.ledger import Ledger
from realign_cluster.store.readers import Sources, content_hash
from realign_cluster.store.row_problem import RowProblem, diagnose
from realign_cluster.store.scan_log import Cursor, ScanLog, Window

MAX_ROW_BYTES: Final = 8 * 1024 * 1024
LISTED_PROBLEMS: Final = 10
LISTED_FIELDS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """`tokens_per_byte` is measured on the first rows; the first scan's value holds for the run, so that units stay
    the same.
    """

    tokens_per_byte: float = 0.25
    on_bad_row: Literal["fail", "quarantine"] = "fail"
    limit: int | None = None  # rows, bad ones included
    max_row_bytes: int = MAX_ROW_BYTES
    unit_cost: float = UNIT_COST
    unit_rows: int = UNIT_ROWS
    unit_bytes: int = UNIT_BYTES
    added_cost: float = 0.0  # of every row, besides its text
    reserved: tuple[str, ...] = RESERVED_COLUMNS  # columns an input must not have


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanProgress:
    what: str  # "reading train.jsonl"
    bytes_done: int
    bytes_total: int
    rows: int
    bad_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSummary:
    rows: int  # bad ones included
    bad_rows: int
    units: int
    cost: float
    duplicates: int  # rows whose bytes equal an earlier row's
    text_bytes: int  # of the fields that are scored


def scan_into_ledger(
    ledger: Ledger,
    sources: Sources,
    kinds: Sequence[str],
    fields: Fields,
    options: ScanOptions | None = None,
    progress: Callable[[ScanProgress], None] | None = None,
) -> ScanSummary:
    """Checks and cuts what is not scanned yet; returns at once if all of it is.

    Raises UsageError for input that changed since, for bad rows (unless they are quarantined), for reserved columns
    and for input without rows; StorageFull when the ledger or a JSONL copy does not fit.
    """
    options = options or ScanOptions()
    log = ScanLog(ledger)
    if log.registered:
        check_inputs(ledger, sources.files)
        log.check_options(_options_identity(options, kinds, fields))
    else:
        register_inputs(ledger, sources.files, _options_identity(options, kinds, fields), options.tokens_per_byte)
    if not ledger.scanned:
        _Scan(log, sources, RowCheck(kinds, fields), options, progress).run()
    return ScanSummary(**ledger.meta("scan_complete"))


def _options_identity(options: ScanOptions, kinds: Sequence[str], fields: Fields) -> dict[str, Any]:
    identity = asdict(options) | {"kinds": sorted(kinds), "fields": fields.model_dump()}
    del identity["tokens_per_byte"]
    return identity


class _Scan:
    """One pass over what is left of the input."""

    def __init__(
        self,
        log: ScanLog,
        sources: Sources,
        check: RowCheck,
        options: ScanOptions,
        progress: Callable[[ScanProgress], None] | None,
    ) -> None:
        self.log = log
        self.sources = sources
        self.check = check
        self.options = options
        self.progress = progress
        self.window = Window()
        self.problems: list[RowProblem] = []  # the first few
        self.fields_there: tuple[str, ...] = ()  # of the first row that lacks one, or has it wrongly
        self.stopped = threading.Event()
        self.bad_rows = 0
        self.rows = 0
        self.bytes_before = 0
        self.bytes_total = sum(file.size for file in sources.files)
        self.tokens_per_byte = float(log.ledger.meta("tokens_per_byte"))

    @property
    def done(self) -> bool:
        return self.options.limit is not None and self.rows >= self.options.limit

    def run(self) -> None:
        cursor, self.rows, self.bad_rows = self.log.resume_at()
        self.bytes_before = sum(file.size for file in self.sources.files[: cursor.file])
        with ThreadPoolExecutor(1, thread_name_prefix="content-hash") as hashing:
            try:
                for file in self.sources.files[cursor.file :]:
                    if self.done:
                        break
                    start = cursor if file.index == cursor.file else Cursor(file.index, 0, 0)
                    self._scan_file(file.index, start, hashing)
                    self.bytes_before += file.size
            finally:
                self.stopped.set()
        self._flush(Cursor(len(self.sources.files), 0, 0))
        if self.bad_rows and self.options.on_bad_row == "fail":
            raise self._bad_input()
        if not self.rows:
            names = ", ".join(file.name for file in self.sources.files[:3])
            raise UsageError(f"the input has no rows: {names}", "give files with one JSON object per line")
        self.log.finish()

    def _scan_file(self, index: int, start: Cursor, hashing: ThreadPoolExecutor) -> None:
        file = self.sources.files[index]
        path = self.sources.prepare(index, self._report_conversion)
        digest: Future[str] | None = None
        if self.options.limit is None:  # with a limit most of the file may never be read
            digest = hashing.submit(content_hash, file.parts, self.stopped.is_set)
        size = max(1, path.stat().st_size)
        for piece in lines_of(path, start.row, start.offset, self.options.max_row_bytes):
            if isinstance(piece, LongLine):
                self._add_long(index, piece)
            else:
                first = 0
                while first < len(piece.lines) and not self.done:
                    space = WINDOW_ROWS - self.window.rows
                    if self.options.limit is not None:
                        space = min(space, self.options.limit - self.rows)
                    some = piece.lines[first : first + space]
                    self._add(index, piece.first_row + first, some, piece.offsets[first : first + space])
                    first += len(some)
                    if self.window.rows >= WINDOW_ROWS:
                        end = int(piece.offsets[first]) if first < len(piece.lines) else piece.end
                        self._flush(Cursor(index, piece.first_row + first, end))
            self._report(f"reading {file.name}", int(file.size * min(1.0, piece.end / size)))
            if self.done:
                break
        if digest is not None:
            self.log.set_content_hash(index, digest.result())

    def _add(self, file: int, first_row: int, lines: list[bytes], offsets: Any) -> None:
        """Checks `lines` and adds them to the window: the loop every row of the input goes through."""
        loads, check, window, largest = orjson.loads, self.check, self.window, self.options.max_row_bytes
        reserved = self.options.reserved
        reads_text = check.reads_text
        good: list[int] = []
        texts: list[int] = []
        prefixes: list[str | None] = []
        blank = 0
        for at, raw in enumerate(lines):
            try:
                row = loads(raw)
                if type(row) is dict and len(raw) <= largest:
                    text, prefix = check(row)
                    good.append(at)
                    texts.append(text)
                    prefixes.append(prefix)
                    for name in reserved:
                        if name in row:
                            raise self._reserved(file, first_row + at, name)
                    continue
                problem = diagnose(raw, row, largest)
            except BadField as error:
                problem = RowProblem("bad-field", error.message, field=error.field)
                self.fields_there = self.fields_there or tuple(row)
            except orjson.JSONDecodeError as error:
                if not raw.strip():
                    blank += 1
                    continue
                problem = diagnose(raw, error, largest)
            self._add_bad(problem, file, first_row + at, int(offsets[at]), len(raw))
        self.rows += len(lines) - blank
        chosen = np.array(good, dtype=np.int64)
        sizes = np.fromiter(map(len, lines), dtype=np.int64, count=len(lines))[chosen]
        held = [raw for raw in lines if raw.strip()] if blank else lines
        hashes = b"".join([blake2b(raw, digest_size=8).digest() for raw in held])
        window.add(file, chosen + first_row, offsets[chosen], sizes, texts if reads_text else sizes, prefixes, hashes)

    def _add_long(self, file: int, line: LongLine) -> None:
        self.rows += 1
        problem = RowProblem(
            "too-large", f"the row has {line.length:,} bytes, at most {self.options.max_row_bytes:,} are allowed"
        )
        self._add_bad(problem, file, line.row, line.offset, line.length)
        if self.window.rows >= WINDOW_ROWS:
            self._flush(Cursor(file, line.row + 1, line.end))

    def _add_bad(self, problem: RowProblem, file: int, row: int, offset: int, length: int) -> None:
        self.bad_rows += 1
        self.window.add_bad(problem, file, row, offset, length)
        if len(self.problems) < LISTED_PROBLEMS:
            self.problems.append(problem.at(self.sources.where(file, row)))

    def _flush(self, next_row: Cursor) -> None:
        # with on_bad_row = fail, what follows the first bad row is only checked: this scan will not be completed
        if self.window.rows and not (self.bad_rows and self.options.on_bad_row == "fail"):
            units = self.window.cut(
                self.tokens_per_byte,
                self.options.unit_cost,
                self.options.unit_rows,
                self.options.unit_bytes,
                self.options.added_cost,
            )
            self.log.append(self.window, units, next_row)
        self.window = Window()

    def _reserved(self, file: int, row: int, name: str) -> UsageError:
        return UsageError(
            f"{self.sources.where(file, row)}: the input has a column '{name}', which every run writes itself",
            f"rename or remove the column '{name}'",
        )

    def _bad_input(self) -> UsageError:
        listed = "\n  ".join(problem.shown() for problem in self.problems)
        more = self.bad_rows - len(self.problems)
        rest = f"\n  and {more:,} more" if more else ""
        shown = [*self.fields_there[:LISTED_FIELDS], *(("...",) if len(self.fields_there) > LISTED_FIELDS else ())]
        there = f"; the first of these rows has {', '.join(shown)}" if shown else ""
        return UsageError(
            f"{self.bad_rows:,} of {self.rows:,} rows cannot be scored:\n  {listed}{rest}",
            f"correct them, name other fields (--prompt-field, ...{there}),"
            " or set them aside with --on-bad-row quarantine",
        )

    def _report(self, what: str, done: int) -> None:
        if self.progress is not None:
            self.progress(
                ScanProgress(
                    what=what,
                    bytes_done=self.bytes_before + done,
                    bytes_total=self.bytes_total,
                    rows=self.rows,
                    bad_rows=self.bad_rows,
                )
            )

    def _report_conversion(self, what: str, done: int, _total: int) -> None:
        self._report(what, done)


def iterate_rows(sources: Sources, count: int) -> Iterator[bytes]:
    """The first `count` lines of the input that hold a JSON object, unchecked: to measure on before the scan."""
    left = count
    for index in range(len(sources.files)):
        for piece in lines_of(sources.prepare(index), 0, 0, MAX_ROW_BYTES):
            if isinstance(piece, LongLine):
                continue
            for raw in piece.lines:
                if left == 0:
                    return
                if raw.lstrip()[:1] == b"{":
                    left -= 1
                    yield raw
