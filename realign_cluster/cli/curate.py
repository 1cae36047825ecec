"""`realign curate`: score a dataset on the cluster, keep what passes, explain the result."""

from __future__ import annotations

import asyncio
import gc
import shlex
from pathlib import Path
from typing import Annotated, get_args

import typer

from realign_cluster.cli import task_options as options
from realign_cluster.coordinator.curate import curate
from realign_cluster.coordinator.dashboard import make_dashboard
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.group import Sharding
from realign_cluster.domain.job import Fields
from realign_cluster.domain.skew import parse_allowed
from realign_cluster.node.environment import check_environment, parse_assignments

EXAMPLE = """
\b
Example:
  realign curate data/*.jsonl --out runs/ifd --hostfile hosts.json \\
      --model mlx-community/Qwen3-0.6B-4bit --score loglik,ifd \\
      --prompt-field question --response-field answer \\
      --keep-if "scores.ifd.value < 1"
  realign curate prompts.jsonl --out runs/answers --hostfile hosts.json \\
      --model mlx-community/Qwen3-0.6B-4bit --adapter runs/sft/output \\
      --score generate --samples 4 --temperature 0.7 --max-new-tokens 200 \\
      --keep-if 'scores.generate.samples.0.finish == "stop"'

Exit codes: 0 complete; 1 incomplete or failed; 2 usage or bad input; 3 nodes missing; 130 interrupted (resumable).
"""


def register(app: typer.Typer) -> None:
    app.command("curate", epilog=EXAMPLE)(command)


def command(
    context: typer.Context,
    inputs: options.Inputs,
    out: Annotated[Path, typer.Option(help="Run folder; the same command on it goes on where it stopped.")],
    model: options.Model,
    score: options.Score,
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
    adapter: options.Adapter = None,
    reference_model: options.ReferenceModel = None,
    reference_adapter: options.ReferenceAdapter = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    max_new_tokens: options.MaxNewTokens = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    samples: options.Samples = None,
    keep_if: Annotated[
        str | None,
        typer.Option(help="Keep only rows for which this holds: \"scores.ifd.value < 1 and row.label == 'yes'\"."),
    ] = None,
    format: Annotated[str, typer.Option(help="Output format: jsonl or parquet.")] = "jsonl",
    limit: options.Limit = None,
    on_bad_row: Annotated[
        str, typer.Option(help="fail: stop before scoring; quarantine: put bad rows into failed/.")
    ] = "fail",
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="The same bytes on like hardware, whatever fails meanwhile; slower.")
    ] = False,
    export_trl: Annotated[
        bool, typer.Option("--export-trl", help="preference: also write TRL's reference columns.")
    ] = False,
    shard: options.Shard = "auto",
    hostfile: options.HostfileOption = None,
    discover: options.Discover = False,
    min_nodes: options.MinNodes = None,
    allow_skew: options.AllowSkew = "",
    env: options.Environment = None,
    nice: options.Nice = None,
    json: options.Json = False,
) -> int:
    """Score a dataset on the cluster, keep the rows that pass, explain the result."""
    environment = parse_assignments(env or [])
    check_environment(environment)
    request = options.task_request(
        inputs=inputs,
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
        adapter=adapter,
        reference_model=reference_model,
        reference_adapter=reference_adapter,
        sampling=options.sampling_of(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            stop=stop,
            seed=seed,
            samples=samples,
        ),
        limit=limit,
        reproducible=reproducible,
        out=out,
        keep_if=keep_if,
        format=options.one_of(format, ("jsonl", "parquet"), "--format"),
        on_bad_row=options.one_of(on_bad_row, ("fail", "quarantine"), "--on-bad-row"),
        export_trl=export_trl,
        hostfile=hostfile,
        discover=discover,
        min_nodes=min_nodes,
        allow_skew=tuple(sorted(parse_allowed(allow_skew))),
        environment=environment,
        nice=nice,
        shard=options.one_of(shard, get_args(Sharding), "--shard"),
    )
    return start(request, command=_as_typed(context), json=json)


def start(request: CurateRequest, *, command: str | None = None, json: bool = False) -> int:
    """Runs a request in the foreground; returns its exit code. `command` is noted in run.toml, if it is given."""
    # Rows pass through by the million and hardly ever form cycles: the default collects every 700 objects, which is a
    # third of what writing a row costs.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
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
