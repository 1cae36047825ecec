"""`realign plan`: what would run where, how fast, and why. Connects to the nodes, starts nothing on them."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, get_args

import typer
from rich.console import Console
from rich.table import Table

from realign_cluster.cli import task_options as options
from realign_cluster.coordinator.cluster_plan import plan_on_cluster
from realign_cluster.domain.group import Sharding
from realign_cluster.domain.job import Fields
from realign_cluster.domain.memory import gib
from realign_cluster.domain.plan import NodePlan, Plan
from realign_cluster.domain.plan_reasons import duration
from realign_cluster.domain.skew import parse_allowed

if TYPE_CHECKING:
    from realign_cluster.coordinator.estimate import Estimate

EPILOG = """
\b
Example:
  realign plan data/*.jsonl --score loglik,ifd --hostfile hosts.json \\
      --model mlx-community/Qwen3-30B-A3B-4bit

`realign plan train ...` plans a training: realign plan train --help

Exit codes: 0 it would run; 2 bad input, or the model fits nowhere (with the arithmetic); 3 nodes missing.
"""
REFUSED = 2


def register(app: typer.Typer) -> None:
    app.command("plan", epilog=EPILOG)(command)


def command(
    inputs: options.Inputs,
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
    max_new_tokens: options.MaxNewTokens = None,
    samples: options.Samples = None,
    limit: options.Limit = None,
    reproducible: options.Reproducible = False,
    shard: options.Shard = "auto",
    hostfile: options.HostfileOption = None,
    discover: options.Discover = False,
    min_nodes: options.MinNodes = None,
    allow_skew: options.AllowSkew = "",
    json: options.Json = False,
) -> int:
    """Show what would run where: shares, batches, expected speed and finish, memory, and why."""
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
        sampling=options.sampling_of(max_new_tokens=max_new_tokens, samples=samples),
        limit=limit,
        reproducible=reproducible,
        shard=options.one_of(shard, get_args(Sharding), "--shard"),
    )
    plan, found = asyncio.run(
        plan_on_cluster(request, hostfile, discover=discover, min_nodes=min_nodes, allow_skew=parse_allowed(allow_skew))
    )
    if json:
        options.emit("plan", plan.to_json())
        options.emit("summary", _summary(plan, found))
    else:
        console = Console(highlight=False, soft_wrap=True)
        (show_table if console.is_terminal else show_lines)(plan, console)
        _show_rest(plan, found, console)
    return REFUSED if plan.approach == "refused" else 0


def _summary(plan: Plan, found: Estimate) -> dict[str, object]:
    return {
        "state": "refused" if plan.approach == "refused" else "planned",
        "approach": plan.approach,
        "group": plan.group.text() if plan.group is not None else None,
        "rows": plan.rows,
        "rows_exact": found.exact,
        "bad_rows": found.bad_rows,
        "shares": plan.shares(),
        "rows_per_second": plan.rows_per_second,
        "expected_seconds": plan.expected_seconds,
        "refusal": plan.refusal,
        "fix": plan.fix,
    }


def show_table(plan: Plan, console: Console) -> None:
    """The nodes of the plan, for a terminal."""
    if not plan.nodes:
        return
    table = Table(
        title=f"{plan.model} ({plan.dtype}): {', '.join(plan.kinds)} over {plan.rows:,} rows", title_justify="left"
    )
    for name, justify in (
        ("node", "left"),
        ("chip", "left"),
        ("share", "right"),
        ("rows/s", "right"),
        ("cost/s measured", "right"),
        ("cost/s prior", "right"),
        ("batch tokens", "right"),
        ("memory", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for node in plan.nodes:
        table.add_row(
            node.name,
            node.chip,
            f"{node.share:.1%}",
            f"{node.rows_per_second:,.1f}",
            _measured(node),
            f"{node.prior_cost_per_second:,.0f}",
            f"{node.batch_tokens:,}",
            f"{gib(node.memory_needed_bytes)} of {gib(node.memory_limit_bytes)}",
        )
    console.print(table)


def show_lines(plan: Plan, console: Console) -> None:
    """The same as plain lines, for logs and pipes."""
    if plan.nodes:
        console.print(f"{plan.model} ({plan.dtype}): {', '.join(plan.kinds)} over {plan.rows} rows", markup=False)
    for node in plan.nodes:
        console.print(
            f"{node.name} ({node.chip}): share {node.share:.1%}, {node.rows_per_second:.1f} rows/s; cost/s measured "
            f"{_measured(node)}, prior {node.prior_cost_per_second:.0f}; batches of {node.batch_tokens} tokens",
            markup=False,
        )


def _show_rest(plan: Plan, found: Estimate, console: Console) -> None:
    def line(text: str) -> None:
        console.print(text, markup=False)

    if plan.nodes and plan.expected_seconds is not None:
        finish = datetime.now().astimezone() + timedelta(seconds=plan.expected_seconds)
        line(
            f"together {plan.rows_per_second:,.1f} rows/s: {duration(plan.expected_seconds)} of scoring, done at "
            f"{finish:%Y-%m-%d %H:%M:%S} if it began now with the model loaded"
        )
    for node in plan.nodes:
        line(f"{node.name}: {node.source_text}")
        line(f"{node.name}: batch of {node.batch_tokens} tokens ({node.batch_source})")
        if plan.group is None:
            line(f"{node.name}: {node.memory}")
    if plan.group is not None:
        line(f"one copy of the model: {plan.group.text()}")
        for member in plan.group.members:
            line(f"{member.name}: {member.memory}")
    for left_out in plan.left_out:
        line(f"left out: {left_out.name}: {left_out.reason}")
    if plan.why:
        line("why:")
    for reason in plan.why:
        line(f"  - {reason}")
    if found.bad_rows:
        line(f"{found.bad_rows} of the rows read cannot be scored, the first: {found.problems[0]}")
    if plan.refusal:
        line(f"refused: {plan.refusal}\n  fix: {plan.fix}")


def _measured(node: NodePlan) -> str:
    if node.measured_cost_per_second is not None:
        return f"{node.measured_cost_per_second:,.0f}"
    return f"({node.cost_per_second:,.0f} stale)" if node.source == "stale" else "-"
