"""Verdicts that were given before: by the verifier's fingerprint and the pair's content, in one SQLite file.

Several processes may use it at once, and one that is killed loses at most the batch it was scoring. It stays in
rollback-journal mode: WAL with several writers is unsafe before SQLite 3.51.3. Losing the file means asking again, and
of a service that may answer otherwise.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from realign_cluster.domain.errors import RealignError
from realign_cluster.metrics.verifiers.report import CalibrationReport
from realign_cluster.metrics.verifiers.verdict import Pair, Span, Verdict, Verifier

BUSY_SECONDS = 30.0
PAIRS_A_BATCH = 256
_ENOUGH_VARIABLES = 500  # in one statement; SQLite takes at least 999

_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdict (
    fingerprint TEXT NOT NULL, pair TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (fingerprint, pair)
) WITHOUT ROWID;
"""


class VerdictCache:
    def __init__(self, path: Path) -> None:
        """Opens or creates `path`, for this thread. Raises RealignError for a file that is damaged or is another."""
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def find(self, fingerprint: str, keys: Sequence[str]) -> dict[str, Verdict]:
        """Those of the pairs that are known, by `Pair.key`."""
        found = {}
        with self._explained():
            for at in range(0, len(keys), _ENOUGH_VARIABLES):
                some = keys[at : at + _ENOUGH_VARIABLES]
                places = ", ".join("?" * len(some))
                statement = f"SELECT pair, body FROM verdict WHERE fingerprint = ? AND pair IN ({places})"
                for key, body in self._connection.execute(statement, (fingerprint, *some)):
                    found[key] = _from_bytes(body)
        return found

    def add(self, fingerprint: str, verdicts: Mapping[str, Verdict]) -> None:
        """Durable when it returns. What is known already stays, also that there was no answer."""
        rows = [(fingerprint, key, _to_bytes(given)) for key, given in verdicts.items()]
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("INSERT OR IGNORE INTO verdict VALUES (?, ?, ?)", rows)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, orjson.JSONDecodeError) as error:
            raise RealignError(
                f"{self.path}: {error}", f"remove it, verdicts are made again: rm {self.path}"
            ) from error


class Cached:
    """A verifier that asks only what the cache does not know, a batch at a time: one verdict a pair, whoever asks and
    however often.
    """

    def __init__(self, verifier: Verifier, cache: VerdictCache, *, batch: int = PAIRS_A_BATCH) -> None:
        self.verifier = verifier
        self._cache = cache
        self._batch = batch

    def score(self, pairs: Sequence[Pair]) -> list[Verdict]:
        fingerprint = self.verifier.fingerprint()
        keys = [pair.key for pair in pairs]
        known = self._cache.find(fingerprint, list(dict.fromkeys(keys)))
        asked = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        for some in _batches(asked.items(), self._batch):
            given = dict(zip(some, self.verifier.score(list(some.values())), strict=True))
            self._cache.add(fingerprint, given)
            known.update(given)
        return [known[key] for key in keys]

    def facts(self) -> Mapping[str, Any]:
        return self.verifier.facts()

    def fingerprint(self) -> str:
        return self.verifier.fingerprint()

    def calibration_report(self) -> CalibrationReport | None:
        return self.verifier.calibration_report()


def _batches(items: Iterable[tuple[str, Pair]], size: int) -> Iterator[dict[str, Pair]]:
    batch: dict[str, Pair] = {}
    for key, pair in items:
        batch[key] = pair
        if len(batch) == size:
            yield batch
            batch = {}
    if batch:
        yield batch


def _to_bytes(verdict: Verdict) -> bytes:
    span = None if verdict.span is None else [verdict.span.start, verdict.span.end]
    return orjson.dumps([verdict.supported, verdict.label, span, verdict.reason])


def _from_bytes(body: bytes) -> Verdict:
    supported, label, span, reason = orjson.loads(body)
    place = None if span is None else Span(start=span[0], end=span[1])
    return Verdict(supported=supported, label=label, span=place, reason=reason)
