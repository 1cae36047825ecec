"""`realign calibrate`: measures every node for a model and task, and the links between them, and keeps the results."""

from __future__ import annotations

import asyncio

import typer
from rich.console import Console
from rich.table import Table

from realign_cluster.cli import task_options as options
from realign_cluster.coordinator.calibrate import Measured, calibrate_cluster
from realign_cluster.domain.errors import RunFailed
from realign_cluster.domain.job import Fields
from realign_cluster.domain.memory import gib
from realign_cluster.domain.report import Calibration
from realign_cluster.domain.skew import parse_allowed

EPILOG = """
\b
Examples:
  realign calibrate --score loglik,ifd --hostfile hosts.json \\
      --model mlx-community/Qwen3-30B-A3B-4bit
  realign calibrate data/*.jsonl --model models/small --score judge --quick --discover

Exit codes: 0 measured; 1 a node computes wrongly; 2 bad input; 3 nodes missing.
"""


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
        calibrate_cluster(
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
