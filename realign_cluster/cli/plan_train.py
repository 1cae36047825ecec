"""`realign plan train`: how a training would be spread, what it takes in memory and time, and why.

Connects to the nodes, starts nothing on them, leaves nothing behind. Takes the options of `realign train`.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from realign_cluster.cli import task_options as options
from realign_cluster.cli.train_asked import TrainAsked, train_asked
from realign_cluster.cli.train_options import Given, takes_train_options
from realign_cluster.coordinator.cluster import Cluster, connect
from realign_cluster.coordinator.planning import facts_of_model, node_facts, open_calibrations, open_model
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.memory import gib
from realign_cluster.domain.plan import LeftOut
from realign_cluster.domain.plan_reasons import duration
from realign_cluster.domain.skew import parse_allowed
from realign_cluster.domain.train_links import asked_backend
from realign_cluster.domain.train_plan import TrainNodePlan, TrainPlan
from realign_cluster.domain.train_planner import plan_training
from realign_cluster.domain.train_reasons import seconds
from realign_cluster.store.model_files import read_config

if TYPE_CHECKING:
    from realign_cluster.coordinator.model_transfer import ModelSource
    from realign_cluster.domain.job import ModelSpec
    from realign_cluster.domain.train_work import TrainWork

NAME = "plan train"  # one word to the parser: `realign` puts the two together
EPILOG = """
\b
Example:
  realign plan train --data train.jsonl --model mlx-community/Qwen3-30B-A3B-4bit --method dpo \\
      --steps 1000 --global-batch 32 --hostfile hosts.json

Exit codes: 0 it would run; 2 bad input, or it fits nowhere (with the arithmetic); 3 nodes missing.
"""
REFUSED = 2


def register(app: typer.Typer) -> None:
    app.command(NAME, epilog=EPILOG, hidden=True)(command)


def joined(arguments: list[str]) -> list[str]:
    """`plan train ...` as the parser knows it; an input file called "train" is still planned as ./train."""
    return [NAME, *arguments[2:]] if arguments[:2] == NAME.split() else arguments


@takes_train_options
def command(
    *,
    given: Given,
    config: Annotated[Path | None, typer.Option(help="TOML file with these options; what is typed goes first.")] = None,
    hostfile: options.HostfileOption = None,
    discover: options.Discover = False,
    min_nodes: options.MinNodes = None,
    allow_skew: options.AllowSkew = "",
    json: options.Json = False,
) -> int:
    """Show how a model would be trained: which nodes, in which way, memory, expected step time, and why."""
    asked = train_asked(given, config)
    plan = asyncio.run(
        plan_of(asked, hostfile, discover=discover, min_nodes=min_nodes, allow_skew=parse_allowed(allow_skew))
    )
    if json:
        options.emit("plan", plan.to_json())
        options.emit("summary", summary(plan))
    else:
        console = Console(highlight=False, soft_wrap=True)
        (show_table if console.is_terminal else show_lines)(plan, console)
        show_rest(plan, console)
    return REFUSED if plan.approach == "refused" else 0


async def plan_of(
    asked: TrainAsked, hostfile: Path | None, *, discover: bool, min_nodes: int | None, allow_skew: frozenset[str]
) -> TrainPlan:
    spec, source = await asyncio.to_thread(open_model, asked.model)
    if source is None:
        raise UsageError("--model none is no model that could be trained", "name a model folder or hub id")
    work = await asyncio.to_thread(_work, asked, source.folder)
    async with connect(hostfile, discover=discover, min_nodes=min_nodes, allow_skew=allow_skew) as cluster:
        return plan_on(cluster, spec, source, work, asked)


def _work(asked: TrainAsked, model: Path) -> TrainWork:
    """Every row is checked as `train` would do it; the prepared copy is thrown away."""
    from realign_cluster.coordinator.train_work import check_batch, estimate_work
    from realign_cluster.store.benchmark_data import prepared_benchmarks
    from realign_cluster.store.training_data import prepare_training_data  # loads pyarrow

    with tempfile.TemporaryDirectory(prefix="realign-plan-") as folder:
        prepared_benchmarks(asked.benchmarks)
        prepared = prepare_training_data(
            asked.data, asked.valid, asked.settings.method, Path(folder), probe_paths=asked.kl_probes
        )
        check_batch(asked.settings, prepared.rows)
        return estimate_work(prepared.folder, prepared.rows, model, asked.settings)


def plan_on(cluster: Cluster, spec: ModelSpec, source: ModelSource, work: TrainWork, asked: TrainAsked) -> TrainPlan:
    """Over the nodes that answered; the missing ones are left out by name, with the reason."""
    from realign_cluster.coordinator.scoring_speeds import scoring_speeds
    from realign_cluster.coordinator.train_planning import link_facts, training_speeds

    now = datetime.now(UTC)
    named = [(str(node.name), node.info) for node in cluster.nodes]
    with contextlib.closing(open_calibrations(cluster.home)) as store:
        training, stale = training_speeds(store, cluster, spec.shape, work, now)
        forward = scoring_speeds(store, named, model_hash=spec.shape, now=now)
        links = link_facts(store, cluster)
    return plan_training(
        [node_facts(node, cluster) for node in cluster.nodes],
        facts_of_model(spec, source.folder),
        work,
        config=read_config(source.folder),
        training=training,
        forward=forward,
        stale=stale,
        links=links,
        parallel=asked.parallel,
        backend=asked_backend(asked.backend, cluster.hostfile.backend if cluster.hostfile is not None else "any"),
        left_out=[LeftOut(name=node.name, reason=node.reason) for node in cluster.missing],
    )


def summary(plan: TrainPlan) -> dict[str, object]:
    return {
        "state": "refused" if plan.approach == "refused" else "planned",
        "approach": plan.approach,
        "backend": plan.backend,
        "rows": plan.rows,
        "shares": plan.shares(),
        "blocks": {node.name: node.blocks for node in plan.nodes if node.blocks is not None},
        "step_seconds": plan.step_seconds,
        "tokens_per_second": plan.tokens_per_second,
        "expected_seconds": plan.expected_seconds,
        "refusal": plan.refusal,
        "fix": plan.fix,
    }


def headline(plan: TrainPlan) -> str:
    """ "qwen3 (4-bit): dpo, lora, 1000 steps of 32 rows from 5,000; data over 2 nodes (ring)"."""
    asked = f"{plan.method}, {plan.fine_tune}, {plan.steps:,} steps of {plan.global_batch:,} rows from {plan.rows:,}"
    where = f"{plan.approach} over {len(plan.nodes)} nodes ({plan.backend})" if len(plan.nodes) > 1 else plan.approach
    return f"{plan.model} ({plan.dtype}): {asked}; {where}"


def show_table(plan: TrainPlan, console: Console) -> None:
    """The ranks of the plan, for a terminal."""
    if not plan.nodes:
        return
    table = Table(title=headline(plan), title_justify="left")
    for name in ("rank", "node", "chip"):
        table.add_column(name)
    for name in ("share", "blocks", "tokens/s alone", "computing a step", "memory"):
        table.add_column(name, justify="right")
    for rank, node in enumerate(plan.nodes):
        table.add_row(
            str(rank),
            node.name,
            node.chip,
            f"{node.share:.1%}",
            _blocks(node),
            f"{node.tokens_per_second:,.0f}",
            seconds(node.compute_seconds),
            f"{gib(node.memory_needed_bytes)} of {gib(node.memory_limit_bytes)}",
        )
    console.print(table)


def show_lines(plan: TrainPlan, console: Console) -> None:
    """The same as plain lines, for logs and pipes."""
    if plan.nodes:
        console.print(headline(plan), markup=False)
    for rank, node in enumerate(plan.nodes):
        held = f", blocks {_blocks(node)}" if node.blocks is not None else ""
        console.print(
            f"rank {rank}: {node.name} ({node.chip}): share {node.share:.1%}{held}; {node.tokens_per_second:.0f} "
            f"tokens/s alone, {seconds(node.compute_seconds)} of computing a step; "
            f"{gib(node.memory_needed_bytes)} of {gib(node.memory_limit_bytes)}",
            markup=False,
        )


def show_rest(plan: TrainPlan, console: Console) -> None:
    def line(text: str) -> None:
        console.print(text, markup=False)

    if plan.step_seconds is not None and plan.expected_seconds is not None:
        line(
            f"a step: {seconds(plan.step_seconds)} ({seconds(plan.compute_seconds)} computing, "
            f"{seconds(plan.communication_seconds)} exchange, {seconds(plan.update_seconds)} update), "
            f"{plan.tokens_per_second:,.0f} tokens/s"
        )
        before = f", of it {duration(plan.reference_seconds)} for the reference" if plan.reference_seconds else ""
        line(f"all steps: {duration(plan.expected_seconds)}{before}; without loading, evaluation and checkpoints")
    for node in plan.nodes:
        line(f"{node.name}: {node.source_text}")
        line(f"{node.name}: {node.memory}")
    for left_out in plan.left_out:
        line(f"left out: {left_out.name}: {left_out.reason}")
    if plan.why:
        line("why:")
    for reason in plan.why:
        line(f"  - {reason}")
    for caution in plan.cautions:
        line(f"caution: {caution}")
    if plan.refusal:
        line(f"refused: {plan.refusal}\n  fix: {plan.fix}")


def _blocks(node: TrainNodePlan) -> str:
    """ "0-47", the last one included."""
    return f"{node.blocks[0]}-{node.blocks[1] - 1}" if node.blocks is not None else "-"
