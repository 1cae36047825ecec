"""Rows scored for a caller: by the cluster of a hostfile, or by one worker process on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realign_cluster.coordinator.planning import open_model
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.scored_rows import score_on_cluster
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import NO_MODEL, Fields, roles_needed
from realign_cluster.domain.rows import MISSING, BadField, RowCheck, lookup
from realign_cluster.node.local_scoring import score_here
from realign_cluster.store.whole_files import FileRow

Measured = tuple[list[dict[str, Any] | None], dict[int, str], str]  # scores by kind, errors by row index, computed by


def request_for(
    kinds: tuple[str, ...],
    model: str | Path,
    fields: Fields,
    *,
    hostfile: str | Path | None,
    out: str | Path | None = None,
    **options: Any,
) -> CurateRequest:
    if str(model) == NO_MODEL:
        raise UsageError("this cannot be scored without a model", "name a model folder or hub id")
    return CurateRequest(
        inputs=("-",),
        out=Path(out) if out is not None else Path("-"),
        model=str(model),
        kinds=kinds,
        fields=fields,
        hostfile=Path(hostfile) if hostfile is not None else None,
        **options,
    )


def score_rows(rows: Sequence[FileRow], request: CurateRequest) -> Measured:
    """Raises UsageError, with file and line, for a row that lacks a field."""
    check = RowCheck(request.kinds, request.fields)
    for row in rows:
        try:
            check(row.value)
        except BadField as error:
            raise UsageError(f"{row.where}: {error}", "name its fields, or correct the row") from error
    if request.hostfile is not None:
        fields = [getattr(request.fields, role) for role in roles_needed(request.kinds)]
        wanted = [
            {field: value for field in fields if (value := lookup(row.value, field)) not in (MISSING, None)}
            for row in rows
        ]
        cluster = asyncio.run(score_on_cluster(request, wanted))
        by = ", ".join(f"{name} {count:,} rows" for name, count in cluster.nodes.items())
        return list(cluster.scores), cluster.errors, f"on the cluster of {request.hostfile.name}: {by}"
    spec, source = open_model(request.model)
    assert source is not None
    here = asyncio.run(score_here(request.job(spec), source.folder, [row.raw for row in rows]))
    return list(here.scores), here.errors, f"on this machine: {here.report.device}, {here.report.dtype}"
