"""Measures every node of a cluster for a model and task, and the links between them, and keeps the results.

What `realign calibrate` and `realign_cluster.hardware_calibrator` do; neither shows nor prints.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from realign_cluster.coordinator.cluster import Cluster, connect
from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.planning import calibration_key, node_facts, open_calibrations, open_model
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.samples import make_canaries, make_samples, role_lengths
from realign_cluster.domain.canary import check_canaries, refusal
from realign_cluster.domain.errors import NodesMissing
from realign_cluster.domain.job import ModelSpec, roles_needed
from realign_cluster.domain.prior import DeviceFacts
from realign_cluster.domain.report import Calibration, WorkerReport
from realign_cluster.store.calibrations import StoredLink, task_of

ROLE_BYTES = (40, 120, 300, 700, 1600, 3600)  # lengths of made rows when no input is given

Progress = Callable[[str, str, float], None]  # node, what is measured, fraction of it done


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`calibrations` are those of trusted nodes, `refused` the others with the reason, both by node name; `devices` are
    all of them.
    """

    task: str
    model: ModelSpec
    calibrations: Mapping[str, Calibration]
    reports: Mapping[str, WorkerReport]
    refused: Mapping[str, str]
    devices: Mapping[str, DeviceFacts]
    links: tuple[StoredLink, ...]
    link_errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def shares(self) -> dict[str, float]:
        total = sum(item.cost_per_second for item in self.calibrations.values())
        return {name: item.cost_per_second / total for name, item in self.calibrations.items()} if total > 0 else {}


async def calibrate_cluster(
    request: CurateRequest,
    hostfile: Path | None,
    *,
    discover: bool,
    min_nodes: int | None,
    allow_skew: frozenset[str],
    mode: str,
    progress: Progress,
    home: ClusterHome | None = None,
) -> Measured:
    """`mode`: "full", or "quick" (one speed, no batch table, no links). What is measured replaces what is stored.

    Raises UsageError for the model and the input, NodesMissing for nodes that are not there or did not answer.
    """
    spec, source = await asyncio.to_thread(open_model, request.model)
    samples = await asyncio.to_thread(samples_for, request, source)
    job = request.job(spec, canaries=make_canaries(request.kinds, request.fields))
    async with connect(hostfile, discover=discover, min_nodes=min_nodes, allow_skew=allow_skew, home=home) as cluster:
        answers = await cluster.measure(job, samples, mode=mode, model=source, progress=progress)
        reports = {str(name): report for name, report in answers.items()}
        trusted, refused = judge_reports(reports, canaries=len(job.canaries))
        calibrations = {name: report.calibration for name, report in trusted.items() if report.calibration is not None}
        silent = sorted(set(trusted) - set(calibrations))
        if silent:
            raise NodesMissing(
                f"no measurement came from {', '.join(silent)}", "see the worker's log there: realignd status"
            )
        links, link_errors = await _links(cluster) if mode == "full" else ((), ())
        task = task_of(job)
        with contextlib.closing(open_calibrations(cluster.home)) as store:
            for link in cluster.nodes:
                if link.name in calibrations:
                    store.put(calibration_key(link.info, spec.shape, task), link.name, calibrations[link.name])
            for pair in links:
                store.put_link(
                    pair.from_node,
                    pair.to_node,
                    round_trip_seconds=pair.round_trip_seconds,
                    bytes_per_second=pair.bytes_per_second,
                    now=pair.measured_at,
                )
        devices = {str(link.name): node_facts(link, cluster).device for link in cluster.nodes}
        warnings = tuple(warning for link in cluster.nodes for warning in link.warnings)
        missing = tuple(f"{node.name} was not measured: {node.reason}" for node in cluster.missing)
    return Measured(
        task=task,
        model=spec,
        calibrations=calibrations,
        reports=reports,
        refused=refused,
        devices=devices,
        links=links,
        link_errors=link_errors,
        warnings=warnings + missing,
    )


def judge_reports(
    reports: Mapping[str, WorkerReport], *, canaries: int
) -> tuple[dict[str, WorkerReport], dict[str, str]]:
    """(trusted, refused with the reason): the first node by name that agrees with itself is the others' reference."""
    trusted: dict[str, WorkerReport] = {}
    refused: dict[str, str] = {}
    for name in sorted(reports):
        reference = next(iter(trusted), "")
        verdict = check_canaries(
            reports[name],
            node=name,
            reference=trusted.get(reference),
            reference_node=reference,
            expected=canaries,
        )
        if verdict.trusted:
            trusted[name] = reports[name]
        else:
            message, fix = refusal(name, verdict)
            refused[name] = f"{message}\n  fix: {fix}"
    return trusted, refused


def samples_for(request: CurateRequest, source: ModelSource | None) -> list[bytes]:
    """Rows to measure on: as long as the input's, or of many lengths where there is none."""
    if request.inputs:
        from realign_cluster.coordinator.estimate import estimate  # loads pyarrow

        found = estimate(request, source.folder if source is not None else None)
        lengths = role_lengths(found.first_rows, request.kinds, request.fields)
    else:
        lengths = [dict.fromkeys(roles_needed(request.kinds), size) for size in ROLE_BYTES for _ in range(8)]
    return make_samples(lengths, request.fields)


async def _links(cluster: Cluster) -> tuple[tuple[StoredLink, ...], tuple[str, ...]]:
    links: list[StoredLink] = []
    errors: list[str] = []
    for one, other, report in await cluster.links():
        if report.error:
            errors.append(f"link {one} - {other}: {report.error}")
            continue
        links.append(
            StoredLink(
                from_node=one,
                to_node=other,
                measured_at=datetime.now(UTC),
                round_trip_seconds=report.round_trip_seconds,
                bytes_per_second=report.bytes_per_second,
            )
        )
    return tuple(links), tuple(errors)
