"""The plan of a scoring job on the nodes of a cluster, as they answer now. Starts nothing on them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from realign_cluster.coordinator.cluster import connect
from realign_cluster.coordinator.job_models import open_beside
from realign_cluster.coordinator.planning import facts_of_model, known_speeds, open_calibrations, open_model, plan_for
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.job import bytes_beside
from realign_cluster.domain.plan import Plan
from realign_cluster.store.calibrations import task_of

if TYPE_CHECKING:
    from realign_cluster.coordinator.estimate import Estimate


async def plan_on_cluster(
    request: CurateRequest, hostfile: Path | None, *, discover: bool, min_nodes: int | None, allow_skew: frozenset[str]
) -> tuple[Plan, Estimate]:
    """With the estimate of the input that it is made for. Raises UsageError for model and input, NodesMissing."""
    from realign_cluster.coordinator.estimate import estimate  # loads pyarrow, which no other command needs

    spec, source = await asyncio.to_thread(open_model, request.model)
    folder = source.folder if source is not None else None
    found = await asyncio.to_thread(estimate, request, folder)
    beside, _ = await asyncio.to_thread(open_beside, request)
    task = task_of(request.job(spec, beside))
    async with connect(hostfile, discover=discover, min_nodes=min_nodes, allow_skew=allow_skew) as cluster:
        named = [(str(link.name), link.info) for link in cluster.nodes]
        with contextlib.closing(open_calibrations(cluster.home)) as store:
            known = known_speeds(store, named, model_hash=spec.shape, task=task, now=datetime.now(UTC))
        backend = cluster.hostfile.backend if cluster.hostfile is not None else "any"
        work = replace(found.work(request, backend=backend), beside_bytes=bytes_beside(spec, beside))
        return plan_for(cluster, facts_of_model(spec, folder), work, known), found
