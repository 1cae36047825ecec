"""The scan's own part of the ledger: windows of checked rows, their units, bad rows, and how far it got."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from realign_cluster.domain.batching import costs_in_order, cut_window
from realign_cluster.domain.errors import UsageError
from realign_cluster.store.ledger import Ledger, encode_meta
from realign_cluster.store.ledger_schema import INDEXES
from realign_cluster.store.positions import MAX_LENGTH, Positions, pack
from realign_cluster.store.row_problem import RowProblem

_KEPT_PREFIX: Final = 64
WINDOWS_PER_WRITE: Final = 8  # in one transaction: a scan that is cut off reads so many again
WRITE_BYTES: Final = 8 * 1024 * 1024


class Cursor(NamedTuple):
    """Where the next row begins."""

    file: int
    row: int
    offset: int


class CutUnit(NamedTuple):
    cost: float
    longest: int  # text bytes
    positions: Positions


class Window:
    """Up to WINDOW_ROWS consecutive rows, good and bad, possibly of several files."""

    __slots__ = ("_good", "_groups", "_known", "_prefixes", "_texts", "bad", "hashes", "rows", "text_bytes")

    def __init__(self) -> None:
        self.rows = 0
        self.text_bytes = 0
        self.bad: list[tuple[Positions, RowProblem]] = []
        self.hashes: list[bytes] = []
        self._good: list[Positions] = []
        self._texts: list[npt.NDArray[np.int64]] = []
        self._groups: list[int] = []
        self._prefixes: list[int] = []  # text bytes that a row shares with its group, about
        self._known: dict[str | bytes, int] = {}

    def add(
        self, file: int, rows: Any, offsets: Any, sizes: Any, texts: Any, prefixes: Sequence[str | None], hashes: bytes
    ) -> None:
        """Adds good rows of one file, in order; `prefixes` is what each shares with rows that have it too, or None."""
        self._good.append(pack(file, rows, offsets, sizes))
        text = np.asarray(texts, dtype=np.int64)
        self._texts.append(text)
        self.text_bytes += int(text.sum())
        if any(prefixes):
            self._add_groups(prefixes)
        else:
            first = len(self._groups)
            self._groups += range(-first - 1, -first - len(text) - 1, -1)
            self._prefixes += [0] * len(text)
        self.hashes.append(hashes)
        self.rows += len(text)

    def _add_groups(self, prefixes: Sequence[str | None]) -> None:
        for prefix in prefixes:
            if prefix is None:  # a group of its own, numbered apart from the shared ones
                self._groups.append(-len(self._groups) - 1)
                self._prefixes.append(0)
                continue
            # long texts are not kept: a window of them would not fit in memory
            key = prefix if len(prefix) <= _KEPT_PREFIX else blake2b(prefix.encode("utf-8", "surrogatepass")).digest()
            self._groups.append(self._known.setdefault(key, len(self._known)))
            self._prefixes.append(len(prefix))

    def add_bad(self, problem: RowProblem, file: int, row: int, offset: int, length: int) -> None:
        self.bad.append((pack(file, [row], [offset], [min(length, MAX_LENGTH)]), problem))
        self.rows += 1

    def cut(
        self, tokens_per_byte: float, unit_cost: float, max_rows: int, max_bytes: int, added: float = 0.0
    ) -> list[CutUnit]:
        """Units of the good rows."""
        if not self._good:
            return []
        positions, texts = np.concatenate(self._good), np.concatenate(self._texts)
        shared = len(self._known) < sum(group >= 0 for group in self._groups)
        groups = np.array(self._groups) if shared else None
        prefixes = np.array(self._prefixes) if shared else None
        units = cut_window(
            texts, tokens_per_byte, unit_cost, max_rows, max_bytes,
            sizes=positions["length"], groups=groups, prefixes=prefixes, added=added,
        )  # fmt: skip
        return [
            CutUnit(
                float(
                    costs_in_order(
                        texts[unit],
                        tokens_per_byte,
                        None if groups is None else groups[unit],
                        None if prefixes is None else prefixes[unit],
                        added,
                    ).sum()
                ),
                int(texts[unit].max()),
                positions[unit],
            )
            for unit in units
        ]


class ScanLog:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._next_window = 0
        self._next_unit = 1
        self._begin_write()

    def _begin_write(self) -> None:
        """Empties what waits to be written, by table."""
        self._windows: list[tuple[Any, ...]] = []
        self._units: list[tuple[Any, ...]] = []
        self._unit_rows: list[tuple[Any, ...]] = []
        self._bad_rows: list[tuple[Any, ...]] = []

    @property
    def registered(self) -> bool:
        """Whether the ledger knows its input files."""
        return self.ledger.meta("scan_options") is not None

    def check_options(self, options: dict[str, Any]) -> None:
        """Raises UsageError if the units were cut, or the rows checked, with other options than `options`."""
        recorded: dict[str, Any] = self.ledger.meta("scan_options")
        asked = encode_meta(options)
        if encode_meta(recorded) != asked:
            differing = sorted(
                key for key in {*recorded, *options} if encode_meta(recorded.get(key)) != encode_meta(options.get(key))
            )
            raise UsageError(
                f"the run's rows were read with other options: {', '.join(differing)}",
                "repeat the command it was started with, or choose another --out",
            )

    def resume_at(self) -> tuple[Cursor, int, int]:
        """Where the scan goes on, the rows and the bad rows that were recorded so far."""
        with self.ledger.writing() as connection:
            last = connection.execute(
                "SELECT window, next_file, next_row, next_offset FROM scan_window ORDER BY window DESC LIMIT 1"
            ).fetchone()
            rows, bad = connection.execute(
                "SELECT (SELECT coalesce(sum(rows), 0) FROM scan_window), (SELECT count(*) FROM bad_row)"
            ).fetchone()
            self._next_unit = connection.execute("SELECT coalesce(max(unit_id), 0) + 1 FROM unit").fetchone()[0]
        if last is None:
            return Cursor(0, 0, 0), 0, 0
        self._next_window = last[0] + 1
        return Cursor(*last[1:]), rows, bad

    def append(self, window: Window, units: Sequence[CutUnit], next_row: Cursor) -> None:
        """Adds one window, after which a scan resumes at `next_row`. Durable with the next WINDOWS_PER_WRITE of them,
        or at the end.
        """
        first = self._next_unit
        number = self._next_window
        self._windows.append((number, *next_row, window.rows, window.text_bytes, b"".join(window.hashes)))
        self._units += [
            (first + at, number, len(unit.positions), unit.cost, unit.longest) for at, unit in enumerate(units)
        ]
        self._unit_rows += [(first + at, unit.positions.tobytes()) for at, unit in enumerate(units)]
        self._bad_rows += [(number, position.tobytes(), problem.code, problem.text) for position, problem in window.bad]
        self._next_unit += len(units)
        self._next_window += 1
        if len(self._windows) >= WINDOWS_PER_WRITE:
            self._write()

    def _write(self) -> None:
        with self.ledger.writing(WRITE_BYTES) as connection:
            connection.executemany(
                "INSERT INTO scan_window (window, next_file, next_row, next_offset, rows, text_bytes, row_hashes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                self._windows,
            )
            connection.executemany(
                "INSERT INTO unit (unit_id, window, row_count, cost, longest) VALUES (?, ?, ?, ?, ?)", self._units
            )
            connection.executemany("INSERT INTO unit_rows (unit_id, rows) VALUES (?, ?)", self._unit_rows)
            connection.executemany(
                "INSERT INTO bad_row (window, position, code, message) VALUES (?, ?, ?, ?)", self._bad_rows
            )
        self._begin_write()

    def set_content_hash(self, file: int, digest: str) -> None:
        with self.ledger.writing() as connection:
            connection.execute("UPDATE file SET content_hash = ? WHERE file_index = ?", (digest, file))

    def finish(self) -> None:
        """Counts what was cut and equal rows, makes the indexes, and marks the scan complete."""
        self._write()
        with self.ledger.writing(WRITE_BYTES) as connection:
            hashes = [blob for (blob,) in connection.execute("SELECT row_hashes FROM scan_window ORDER BY window")]
            every = np.frombuffer(bytearray().join(hashes), dtype=np.uint64)
            del hashes
            every.sort()
            rows, text_bytes = connection.execute(
                "SELECT coalesce(sum(rows), 0), coalesce(sum(text_bytes), 0) FROM scan_window"
            ).fetchone()
            units, cost = connection.execute("SELECT count(*), coalesce(sum(cost), 0.0) FROM unit").fetchone()
            (bad,) = connection.execute("SELECT count(*) FROM bad_row").fetchone()
            summary = {
                "rows": rows,
                "bad_rows": bad,
                "units": units,
                "cost": cost,
                "duplicates": int(np.count_nonzero(every[1:] == every[:-1])),
                "text_bytes": text_bytes,
            }
            for statement in filter(str.strip, INDEXES.split(";")):
                connection.execute(statement)
            connection.execute("UPDATE scan_window SET row_hashes = NULL")
            connection.execute("INSERT INTO meta (key, value) VALUES ('scan_complete', ?)", (encode_meta(summary),))
