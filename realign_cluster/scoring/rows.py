"""Rows as a worker gets them: raw JSON in, field values by role out. Knows no tokenizer, no model and no MLX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from realign_cluster.domain.job import OPTIONAL_FIELDS, ScoreJob, roles_needed
from realign_cluster.domain.rows import Missing, lookup, problem_with
from realign_cluster.scoring.errors import RowRefused

FAULT_KEY = "__realign_fault__"  # a test's order to the worker, obeyed only where the environment allows it
FAULTS = ("kill", "raise", "hang")


def asked_fault(row: Mapping[str, Any]) -> str | None:
    """What a row orders the worker to do, if anything."""
    fault = row.get(FAULT_KEY)
    return fault if fault in FAULTS else None


class RowFault(Exception):
    """A row made the worker fail (not: the row was refused). `row` counts from 0 within the unit."""

    def __init__(self, row: int, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.row = row


class RowReader:
    """Parses a row and finds its fields by role. One row, one answer: no state."""

    def __init__(self, job: ScoreJob) -> None:
        self._roles = [
            (role, getattr(job.fields, role), may_hold) for role, may_hold in roles_needed(job.kinds).items()
        ]
        optional = [OPTIONAL_FIELDS.get(kind, frozenset()) for kind in job.kinds if roles_needed((kind,))]
        self._optional = frozenset.intersection(*optional) if optional else frozenset()

    def read(self, raw: bytes) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """(the row, field values by role). Raises RowRefused("bad-row") for what intake would have refused too."""
        row = parse_row(raw)
        fields = {}
        for role, path, may_hold in self._roles:
            value = lookup(row, path)
            problem = problem_with(value, may_hold)
            if problem is not None:
                if role in self._optional and (value is None or isinstance(value, Missing)):
                    continue
                raise RowRefused("bad-row", f"{path}: {problem}")
            fields[role] = _without_lone_surrogates(value)
        return row, fields


def parse_row(raw: bytes) -> dict[str, Any]:
    """orjson, and the standard library for what only it accepts (escapes of lone surrogates, NaN)."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            row = json.loads(raw)
        except ValueError as error:
            raise RowRefused("bad-row", f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise RowRefused("bad-row", "not a JSON object")
    return row


def _without_lone_surrogates(value: Any) -> Any:
    """Tokenizers take only text that UTF-8 can hold: half of a surrogate pair becomes U+FFFD."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, list):
        return [_without_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_lone_surrogates(item) for key, item in value.items()}
    return value


def noop_payload(rows: Sequence[bytes]) -> bytes:
    """The payload of a unit whose only kind is `noop`: rows are checked to be JSON, and cost a microsecond each."""
    loads = orjson.loads
    try:
        for raw in rows:
            loads(raw)
    except orjson.JSONDecodeError:
        return b"\n".join(_noop_line(row) for row in rows)
    return b"\n".join([b'{"noop":{}}'] * len(rows))


def _noop_line(raw: bytes) -> bytes:
    try:
        parse_row(raw)
    except RowRefused as refusal:
        return orjson.dumps({"error": {"code": refusal.code, "message": refusal.message}})
    return b'{"noop":{}}'
