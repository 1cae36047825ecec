"""One job on this worker, from its first frame to its last unit: opened once, then units are prepared and computed.

Chooses what a job needs: a job whose only kind is `noop` loads no model and never imports MLX. Must not know frames
or processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.report import WorkerReport
from realign_cluster.scoring.errors import JobRefused, RowRefused
from realign_cluster.scoring.kinds import KINDS
from realign_cluster.scoring.rows import RowFault, asked_fault, noop_payload, parse_row

FAULTS_VARIABLE = "REALIGN_FAULTS"

Phase = Callable[[str, str, float], None]  # (load | canary | measure | compute, what, fraction done)
Progress = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A unit that waits for its turn. `content` is the session's own; `asked_faults` are a test's orders by row."""

    count: int
    content: Any
    asked_faults: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    payload: bytes  # one JSON object per row and line
    tokens: int  # through the model, without padding
    shape: str


class Session(Protocol):
    @property
    def report(self) -> WorkerReport: ...
    def prepare(self, rows: bytes, count: int, row_ids: bytes = b"") -> Prepared: ...
    def compute(self, prepared: Prepared, progress: Progress) -> Result: ...


def open_session(
    job: ScoreJob,
    model_dir: Path,
    *,
    measure: str,
    samples: Sequence[bytes],
    cores: int,
    phase: Phase,
    others: Mapping[str, Path] = MappingProxyType({}),
) -> Session:
    """`others`: folders by hash of what the job names besides its model.

    Raises JobRefused, with the fix, for a job that this worker cannot do."""
    check_kinds(job)
    if all(kind == "noop" for kind in job.kinds):
        return NoopSession(samples, measure)
    from realign_cluster.scoring.model_session import open_model_session  # the first import of MLX in this process

    return open_model_session(job, model_dir, measure=measure, samples=samples, cores=cores, phase=phase, others=others)


def check_kinds(job: ScoreJob) -> None:
    """Raises JobRefused for a kind that this node does not know, or not in this version."""
    for kind in job.kinds:
        if kind not in KINDS:
            raise JobRefused(
                "kind", f"this node knows no score kind {kind!r}\n  fix: bring it to the coordinator's version"
            )
        version = job.kind_versions.get(kind, KINDS[kind].version)
        if version != KINDS[kind].version:
            raise JobRefused(
                "kind",
                f"this node has version {KINDS[kind].version} of the score {kind}, the run asks for version {version}\n"
                "  fix: bring all nodes to one version (realign-launch --install)",
            )


def faults_allowed() -> bool:
    return os.environ.get(FAULTS_VARIABLE) == "1"


def split_rows(rows: bytes, count: int) -> list[bytes]:
    """Raises RowFault if the unit does not hold as many rows as it says."""
    lines = rows.split(b"\n") if rows else []
    if len(lines) != count:
        raise RowFault(0, ValueError(f"the unit holds {len(lines)} rows, not {count}"))
    return lines


def raise_if_asked(asked_faults: dict[int, str]) -> None:
    for row, fault in asked_faults.items():
        if fault == "raise":
            raise RowFault(row, RuntimeError("the row asked for a failure"))


class NoopSession:
    """Answers {"noop": {}} for each row that is a JSON object."""

    def __init__(self, samples: Sequence[bytes], measure: str) -> None:
        from realign_cluster.scoring.noop import report_of_noop

        self.report = report_of_noop(samples, measure)
        self._faults_allowed = faults_allowed()

    def prepare(self, rows: bytes, count: int, row_ids: bytes = b"") -> Prepared:
        asked: dict[int, str] = {}
        if self._faults_allowed and b"__realign_fault__" in rows:
            for at, row in enumerate(rows.split(b"\n")):
                with contextlib.suppress(RowRefused):  # it gets its error when it is computed
                    if (fault := asked_fault(parse_row(row))) is not None:
                        asked[at] = fault
        return Prepared(count=count, content=rows, asked_faults=asked)

    def compute(self, prepared: Prepared, progress: Progress) -> Result:
        raise_if_asked(prepared.asked_faults)
        payload = noop_payload(split_rows(prepared.content, prepared.count))
        progress()
        return Result(payload=payload, tokens=0, shape="")
