"""`realign calibrate`: measures every node for a model and task, and the links between them, and keeps the results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from realign_cluster.cli import task_options as options
from realign_cluster.coordinator.cluster import Cluster, connect
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.planning import calibration_key, open_calibrations, open_model
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.coordinator.samples import make_canaries, make_samples, role_lengths
from realign_cluster.domain.canary import check_canaries, refusal
from realign_cluster.domain.errors import NodesMissing, RunFailed
from realign_cluster.domain.job import Fields, ModelSpec, roles_needed
from realign_cluster.domain.memory import gib
from realign_cluster.domain.report import Calibration, WorkerReport
from realign_cluster.domain.skew import parse_allowed
from realign_cluster.store.calibrations import StoredLink, task_of

EPILOG = """
\b
Examples:
  realign calibrate --score loglik,ifd --hostfile hosts.json \\
      --model mlx-community/Qwen3-30B-A3B-4bit
  realign calibrate data/*.jsonl --model models/small --score judge --quick --discover

Exit codes: 0 measured; 1 a node computes wrongly; 2 bad input; 3 nodes missing.
"""
ROLE_BYTES = (40, 120, 300, 700, 1600, 3600)  # lengths of made rows when no input is given


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`calibrations` are those of trusted nodes, `refused` the others with the reason, both by node name."""

    task: str
    model: ModelSpec
    calibrations: Mapping[str, Calibration]
    reports: Mapping[str, WorkerReport]
    refused: Mapping[str, str]
    links: tuple[StoredLink, ...]
    link_errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def shares(self) -> dict[str, float]:
        total = sum(item.cost_per_second for item in self.calibrations.values())
        return {name: item.cost_per_second / total for name, item in self.calibrations.items()} if total > 0 else {}


Progress = Callable[[str, str, float], None]


def register(app: typer.Typer) -> None:
    app.command("calibrate", epilog=EPILOG)(command)


def command(
    model: options.Model,
    inputs: options.OptionalInputs = None,
    score: options.Score = "loglik",
    prompt_field: options.PromptField = "prompt",
    response_field: options.FieldName = "response",
    chosen_field: options.FieldName = "chosen",
    rejected_field: options.FieldName = "rejected",
    claim_field: options.FieldName = "claim",
    evidence_field: options.FieldName = "evidence",
    template: options.Template = None,
    labels: options.Labels = None,
    chat: options.ChatOption = None,
    max_tokens: options.MaxTokens = 2048,
    truncate: options.TruncateOption = "left",
    reproducible: options.Reproducible = False,
    hostfile: options.HostfileOption = None,
    discover: options.Discover = False,
    min_nodes: options.MinNodes = None,
    allow_skew: options.AllowSkew = "",
    quick: options.Quick = False,
    json: options.Json = False,
) -> int:
    """Measure each node's speed for a model and task, its best batch, and the links; keep it for plans and runs."""
    request = options.task_request(
        inputs=inputs or [],
        model=model,
        score=score,
        fields=Fields(
            prompt=prompt_field,
            response=response_field,
            chosen=chosen_field,
            rejected=rejected_field,
            claim=claim_field,
            evidence=evidence_field,
        ),
        template=template,
        labels=labels,
        chat=chat,
        max_tokens=max_tokens,
        truncate=truncate,
        reproducible=reproducible,
    )
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    told: dict[str, str] = {}

    def progress(node: str, what: str, fraction: float) -> None:
        if json:
            options.emit("progress", {"node": node, "what": what, "fraction": fraction})
        elif told.get(node) != what:
            told[node] = what
            errors.print(f"{node}: {what}", markup=False)

    measured = asyncio.run(
        _calibrate(
            request,
            hostfile,
            discover=discover,
            min_nodes=min_nodes,
            allow_skew=parse_allowed(allow_skew),
            mode="quick" if quick else "full",
            progress=progress,
        )
    )
    for warning in (*measured.warnings, *measured.link_errors):
        errors.print(f"warning: {warning}", markup=False)
    if json:
        _emit(measured)
    else:
        _show(measured, Console(highlight=False, soft_wrap=True))
    if measured.refused:
        raise RunFailed("\n".join(measured.refused.values()))
    return 0


async def _calibrate(
    request: CurateRequest,
    hostfile: Path | None,
    *,
    discover: bool,
    min_nodes: int | None,
    allow_skew: frozenset[str],
    mode: str,
    progress: Progress,
) -> Measured:
    spec, source = await asyncio.to_thread(open_model, request.model)
    samples = await asyncio.to_thread(_samples, request, source)
    job = request.job(spec, canaries=make_canaries(request.kinds, request.fields))
    async with connect(hostfile, discover=discover, min_nodes=min_nodes, allow_skew=allow_skew) as cluster:
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
        warnings = tuple(warning for link in cluster.nodes for warning in link.warnings)
        missing = tuple(f"{node.name} was not measured: {node.reason}" for node in cluster.missing)
    return Measured(
        task=task,
        model=spec,
        calibrations=calibrations,
        reports=reports,
        refused=refused,
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


def _samples(request: CurateRequest, source: ModelSource | None) -> list[bytes]:
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


def _emit(measured: Measured) -> None:
    for name, calibration in measured.calibrations.items():
        options.emit("calibration", {"node": name, "task": measured.task, **calibration.model_dump(mode="json")})
    for link in measured.links:
        options.emit(
            "link",
            {
                "from": link.from_node,
                "to": link.to_node,
                "round_trip_seconds": link.round_trip_seconds,
                "bytes_per_second": link.bytes_per_second,
            },
        )
    options.emit(
        "summary",
        {
            "state": "failed" if measured.refused else "complete",
            "model": measured.model.name,
            "model_hash": measured.model.hash,
            "task": measured.task,
            "shares": measured.shares(),
            "rows_per_second": {name: item.rows_per_second for name, item in measured.calibrations.items()},
            "refused": dict(measured.refused),
        },
    )


def _show(measured: Measured, console: Console) -> None:
    """Tables on a terminal, plain lines elsewhere; the same figures."""
    shares = measured.shares()
    headline = f"{measured.model.name}: {measured.task}"
    header = [
        "node",
        "share",
        "rows/s",
        "cost/s",
        "spread",
        "matrix GFLOPS",
        "memory GB/s",
        "best batch",
        "headroom",
        "heat",
        "measured",
    ]
    rows = [
        [
            name,
            f"{shares.get(name, 0.0):.1%}",
            f"{item.rows_per_second:,.1f}",
            f"{item.cost_per_second:,.0f}",
            f"{item.spread:.1%}",
            ", ".join(f"{dtype} {value:,.0f}" for dtype, value in item.matmul_gflops.items()) or "-",
            f"{item.memory_gigabytes_per_second:.1f}" if item.memory_gigabytes_per_second is not None else "-",
            best_batch_text(item),
            gib(item.headroom_bytes) if item.headroom_bytes is not None else "-",
            item.thermal_after,
            item.measured_at,
        ]
        for name, item in measured.calibrations.items()
    ]
    _print(console, headline, header, rows)
    points = [
        [name, str(point.length), str(point.batch), f"{point.tokens_per_second:,.0f}", f"{point.rows_per_second:,.1f}"]
        for name, item in measured.calibrations.items()
        for point in item.scoring
    ]
    if points:
        _print(console, "scoring by length and batch", ["node", "tokens", "batch", "tokens/s", "rows/s"], points)
    links = [
        [
            f"{link.from_node} - {link.to_node}",
            f"{link.round_trip_seconds * 1e3:.2f} ms",
            f"{link.bytes_per_second / 1e6:,.0f} MB/s",
        ]
        for link in measured.links
    ]
    if links:
        _print(console, "links", ["pair", "round trip", "bandwidth"], links)


def best_batch_text(calibration: Calibration) -> str:
    """ "16 at 64 tokens, 8 at 256; 4096 tokens per batch"."""
    by_length = sorted(calibration.best_batch.items(), key=lambda item: int(item[0]))
    text = ", ".join(f"{batch} x {length}" for length, batch in by_length)
    if calibration.batch_tokens is not None:
        text = f"{text}; {calibration.batch_tokens} tokens" if text else f"{calibration.batch_tokens} tokens"
    return text or "-"


def _print(console: Console, title: str, header: list[str], rows: list[list[str]]) -> None:
    if console.is_terminal:
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    console.print(title, markup=False)
    for row in rows:
        console.print(
            "  " + ", ".join(f"{name} {value}" for name, value in zip(header, row, strict=True)), markup=False
        )
