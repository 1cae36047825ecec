"""The options that say what is scored, shared by `plan` and `calibrate`: the same names and defaults as `curate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import orjson
import typer

from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import JUDGE_LABELS, Chat, Fields, Sampling, Truncate

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", help="Files, globs or folders: JSONL (.gz, .zst), Parquet, HF datasets on disk."
    ),
]
OptionalInputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[INPUT...]", help="Measure on rows as long as these. Without: made rows of many lengths."),
]
Model = Annotated[str, typer.Option(help="mlx-lm model folder or hub id.")]
Score = Annotated[
    str, typer.Option(help="Score kinds, separated by commas: loglik, ifd, ifd-ppl, preference, judge, kl, generate.")
]
PromptField = Annotated[str, typer.Option(help="Key, or dotted path, of the prompt.")]
FieldName = Annotated[str, typer.Option()]
Template = Annotated[
    Path | None, typer.Option(help="judge: text file with {claim} and {evidence}. Default: one that asks for a label.")
]
Labels = Annotated[
    str | None, typer.Option(help=f"judge: labels, separated by commas. Default: {','.join(JUDGE_LABELS)}.")
]
ChatOption = Annotated[
    bool | None,
    typer.Option("--chat/--plain", help="Use the tokenizer's chat template or not. Default: where there is one."),
]
MaxTokens = Annotated[int, typer.Option(min=2, help="Longest sequence in tokens.")]
TruncateOption = Annotated[str, typer.Option(help="What gives way when a row is longer: left, right or refuse.")]
Adapter = Annotated[
    str | None,
    typer.Option(help="Folder of a LoRA or DoRA adapter (mlx-lm's format) on the model, for every kind: RUN/output."),
]
ReferenceModel = Annotated[
    str | None, typer.Option(help="kl: model folder or hub id to compare with. Default: --model without --adapter.")
]
ReferenceAdapter = Annotated[str | None, typer.Option(help="kl: adapter on the reference.")]
Temperature = Annotated[
    float | None,
    typer.Option(help="generate: 0 takes the most likely token. Default: 1."),
]
TopP = Annotated[
    float | None,
    typer.Option(help="generate: draw from the most likely tokens of this mass together."),
]
TopK = Annotated[int | None, typer.Option(help="generate: draw from so many most likely tokens; 0: all.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="generate: longest answer in tokens. Default: 256.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="generate: an answer ends before this text; may be repeated."),
]
Seed = Annotated[
    int | None,
    typer.Option(help="generate: a row's answers follow from it and its row_id. Default: 0."),
]
Samples = Annotated[int | None, typer.Option(help="generate: answers to each row. Default: 1.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")]
Reproducible = Annotated[bool, typer.Option("--reproducible", help="As `curate --reproducible`: slower.")]
Shard = Annotated[
    str,
    typer.Option(
        help="One copy of the model over several nodes: auto (only where no node holds it), none, pipeline or tensor."
    ),
]
HostfileOption = Annotated[Path | None, typer.Option(help="The cluster's hosts.")]
Discover = Annotated[bool, typer.Option("--discover", help="Use the enrolled nodes that zeroconf finds.")]
MinNodes = Annotated[int | None, typer.Option(help="Go on when at least this many nodes are there. Default: all.")]
WaitSeconds = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="How long a node that went is waited for: by a reproducible training (default: half an hour), before the "
        "next job of a workflow (default: two minutes). After that --min-nodes go on.",
    ),
]
AllowSkew = Annotated[str, typer.Option(help="Versions that may differ: project,mlx,mlx-lm.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Seconds instead of minutes: one speed, no batch table, no links.")
]
Environment = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="For the workers of this job; may be repeated.")
]
Nice = Annotated[int | None, typer.Option(min=-20, max=19, help="CPU priority of this job's workers.")]
Json = Annotated[bool, typer.Option("--json", help="Standard output is JSON lines only.")]


def task_request(
    *,
    inputs: list[str],
    model: str,
    score: str,
    fields: Fields,
    template: Path | None,
    labels: str | None,
    chat: bool | None,
    max_tokens: int,
    truncate: str,
    limit: int | None = None,
    reproducible: bool,
    **more: Any,
) -> CurateRequest:
    """The request that `curate` would make of the same options; without `out` in `more`, one that has no run folder.

    Raises UsageError.
    """
    one_of(truncate, get_args(Truncate), "--truncate")
    chosen: Chat = "auto" if chat is None else "chat" if chat else "plain"
    return CurateRequest(
        inputs=tuple(inputs),
        model=model,
        kinds=_names(score),
        fields=fields,
        template=_text(template),
        labels=_names(labels or ""),
        chat=chosen,
        max_tokens=max_tokens,
        truncate=truncate,  # type: ignore[arg-type]
        limit=limit,
        reproducible=reproducible,
        **({"out": Path("-")} | more),
    )


def sampling_of(
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    max_new_tokens: int | None = None,
    stop: list[str] | None = None,
    seed: int | None = None,
    samples: int | None = None,
) -> Sampling | None:
    """None where none of them is given. Raises UsageError for one out of its range."""
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_new_tokens": max_new_tokens,
        "stop": tuple(stop) if stop else None,
        "seed": seed,
        "samples": samples,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return Sampling.model_validate(given) if given else None


def one_of(value: str, allowed: tuple[str, ...], option: str) -> str:
    """`value` if it is allowed. Raises UsageError."""
    if value not in allowed:
        raise UsageError(f"{option}: '{value}' is not one of {', '.join(allowed)}", f"{option} {allowed[0]}")
    return value


def emit(event: str, body: dict[str, Any]) -> None:
    """One JSON line on standard output."""
    sys.stdout.write(orjson.dumps({"event": event, **body}).decode() + "\n")
    sys.stdout.flush()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "name a UTF-8 text file with {claim} and {evidence}"
        raise UsageError(f"--template: {path} cannot be read: {error}", fix) from error
