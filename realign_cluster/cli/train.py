"""`realign train`: fine-tune a model on the cluster, through failures, and explain the result."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Annotated

import typer

from realign_cluster.cli import task_options as options
from realign_cluster.cli.train_asked import train_asked
from realign_cluster.cli.train_options import Given, takes_train_options
from realign_cluster.coordinator.dashboard import make_dashboard
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.domain.skew import parse_allowed
from realign_cluster.node.environment import check_environment, parse_assignments

EXAMPLE = """
\b
Example:
  realign train --data train.jsonl --valid valid.jsonl --model mlx-community/Qwen3-4B-4bit \\
      --steps 1000 --global-batch 32 --learning-rate 1e-4 --evaluate-every 100 \\
      --out runs/first --hostfile hosts.json

Exit codes: 0 complete; 1 incomplete or failed; 2 usage or bad input; 3 nodes missing; 130 interrupted (resumable).
"""


def register(app: typer.Typer) -> None:
    app.command("train", epilog=EXAMPLE)(command)


@takes_train_options
def command(
    *,
    given: Given,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Run folder; the same command on it goes on where it stopped.")],
    config: Annotated[Path | None, typer.Option(help="TOML file with these options; what is typed goes first.")] = None,
    hostfile: options.HostfileOption = None,
    discover: options.Discover = False,
    min_nodes: options.MinNodes = None,
    wait_seconds: options.WaitSeconds = None,
    allow_skew: options.AllowSkew = "",
    env: options.Environment = None,
    nice: options.Nice = None,
    json: options.Json = False,
) -> int:
    """Fine-tune a model on the cluster: sft, or on preference pairs dpo, cdpo, robust, ipo, orpo."""
    asked = train_asked(given, config)
    environment = parse_assignments(env or [])
    check_environment(environment)
    request = TrainRequest(
        data=asked.data,
        valid=asked.valid,
        benchmarks=asked.benchmarks,
        kl_probes=asked.kl_probes,
        model=asked.model,
        out=out,
        settings=asked.settings,
        parallel=asked.parallel,
        backend=asked.backend,
        track=asked.track,
        hostfile=hostfile,
        discover=discover,
        min_nodes=min_nodes,
        wait_seconds=wait_seconds,
        allow_skew=tuple(sorted(parse_allowed(allow_skew))),
        environment=environment,
        nice=nice,
    )
    arguments = context.find_root().obj
    return start(request, command=shlex.join(["realign", *arguments]) if arguments else None, json=json)


def start(request: TrainRequest, *, command: str | None = None, json: bool = False) -> int:
    """Runs a request in the foreground; returns its exit code. `command` is noted in run.toml, if it is given."""
    from realign_cluster.coordinator.train import train  # loads pyarrow, which no other command needs

    return asyncio.run(train(request, dashboard=make_dashboard(json_lines=json), command=command))


def resume(run_folder: Path, *, json: bool = False) -> int:
    """Runs what run.toml of this folder says again. Raises UsageError when it is not a training run."""
    from realign_cluster.coordinator.train_record import read_train_request

    return start(read_train_request(run_folder), json=json)
