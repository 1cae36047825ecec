"""`realign curate`: score a dataset on the cluster, keep what passes, explain the result."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Annotated

import typer

from realign_cluster.coordinator.curate import curate
from realign_cluster.coordinator.dashboard import make_dashboard
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import Fields
from realign_cluster.domain.skew import parse_allowed

EXAMPLE = """
\b
Example:
  realign curate data/*.jsonl --out runs/ifd --hostfile hosts.json \\
      --model mlx-community/Qwen3-0.6B-4bit --score loglik,ifd \\
      --prompt-field question --response-field answer \\
      --keep-if "scores.ifd.value < 1"

Exit codes: 0 complete; 1 incomplete or failed; 2 usage or bad input; 3 nodes missing; 130 interrupted (resumable).
"""


def register(app: typer.Typer) -> None:
    app.command("curate", epilog=EXAMPLE)(command)


def command(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Files, globs or folders: JSONL (.gz, .zst), Parquet, HF datasets on disk."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder; the same command on it goes on where it stopped.")],
    model: Annotated[str, typer.Option(help="mlx-lm model folder or hub id.")],
    score: Annotated[
        str, typer.Option(help="Score kinds, separated by commas: loglik, ifd, ifd-ppl, preference, judge.")
    ],
    prompt_field: Annotated[str, typer.Option(help="Key, or dotted path, of the prompt.")] = "prompt",
    response_field: Annotated[str, typer.Option()] = "response",
    chosen_field: Annotated[str, typer.Option()] = "chosen",
    rejected_field: Annotated[str, typer.Option()] = "rejected",
    claim_field: Annotated[str, typer.Option()] = "claim",
    evidence_field: Annotated[str, typer.Option()] = "evidence",
    template: Annotated[Path | None, typer.Option(help="judge: text file with {claim} and {evidence}.")] = None,
    labels: Annotated[str | None, typer.Option(help="judge: labels, separated by commas.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--plain",
            help="Use the tokenizer's chat template (the default where it has one), or join texts as they stand.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest sequence in tokens.")] = 2048,
    truncate: Annotated[str, typer.Option(help="What gives way when a row is longer: left, right or refuse.")] = "left",
    keep_if: Annotated[
        str | None,
        typer.Option(help="Keep only rows for which this holds: \"scores.ifd.value < 1 and row.label == 'yes'\"."),
    ] = None,
    format: Annotated[str, typer.Option(help="Output format: jsonl or parquet.")] = "jsonl",
    limit: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    on_bad_row: Annotated[
        str, typer.Option(help="fail: stop before scoring; quarantine: put bad rows into failed/.")
    ] = "fail",
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="The same bytes on like hardware, whatever fails meanwhile; slower.")
    ] = False,
    export_trl: Annotated[
        bool, typer.Option("--export-trl", help="preference: also write TRL's reference columns.")
    ] = False,
    hostfile: Annotated[Path | None, typer.Option(help="The cluster's hosts.")] = None,
    discover: Annotated[bool, typer.Option("--discover", help="Use the enrolled nodes that zeroconf finds.")] = False,
    min_nodes: Annotated[
        int | None, typer.Option(help="Go on when at least this many nodes are there. Default: all of the hostfile.")
    ] = None,
    allow_skew: Annotated[str, typer.Option(help="Versions that may differ: project,mlx,mlx-lm.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Standard output is JSON lines only.")] = False,
) -> int:
    """Score a dataset on the cluster, keep the rows that pass, explain the result."""
    request = CurateRequest(
        inputs=tuple(inputs),
        out=out,
        model=model,
        kinds=_names(score),
        fields=Fields(
            prompt=prompt_field,
            response=response_field,
            chosen=chosen_field,
            rejected=rejected_field,
            claim=claim_field,
            evidence=evidence_field,
        ),
        template=_template(template),
        labels=_names(labels or ""),
        chat="auto" if chat is None else "chat" if chat else "plain",
        max_tokens=_at_least(2, max_tokens, "--max-tokens"),
        truncate=_one_of(truncate, ("left", "right", "refuse"), "--truncate"),  # type: ignore[arg-type]
        keep_if=keep_if,
        format=_one_of(format, ("jsonl", "parquet"), "--format"),  # type: ignore[arg-type]
        limit=None if limit is None else _at_least(1, limit, "--limit"),
        on_bad_row=_one_of(on_bad_row, ("fail", "quarantine"), "--on-bad-row"),  # type: ignore[arg-type]
        reproducible=reproducible,
        export_trl=export_trl,
        hostfile=hostfile,
        discover=discover,
        min_nodes=min_nodes,
        allow_skew=tuple(sorted(parse_allowed(allow_skew))),
    )
    return start(request, command=_as_typed(context), json=json)


def start(request: CurateRequest, *, command: str | None = None, json: bool = False) -> int:
    """Runs a request in the foreground; returns its exit code. `command` is noted in run.toml, if it is given."""
    dashboard = make_dashboard(json_lines=json)
    return asyncio.run(curate(request, dashboard=dashboard, command=command))


def resume(run_folder: Path, *, json: bool = False) -> int:
    """Runs what run.toml of this folder says again. Raises UsageError when it is not a run folder."""
    from realign_cluster.coordinator.run_record import read_request

    return start(read_request(run_folder), json=json)


def _as_typed(context: typer.Context) -> str | None:
    """The command line for a shell, as the user would repeat it."""
    arguments = context.find_root().obj
    return shlex.join(["realign", *arguments]) if arguments else None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _one_of(value: str, allowed: tuple[str, ...], option: str) -> str:
    if value not in allowed:
        raise UsageError(f"{option}: '{value}' is not one of {', '.join(allowed)}", f"{option} {allowed[0]}")
    return value


def _at_least(least: int, value: int, option: str) -> int:
    if value < least:
        raise UsageError(f"{option}: {value} is below {least}", f"{option} {least} or more")
    return value


def _template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--template: {path} cannot be read: {error}", "name a UTF-8 text file with {claim} and {evidence}"
        ) from error
