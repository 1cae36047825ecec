"""`realign workflow`: take a model through seven stages, each with its gate; look at them, decide, go back."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Annotated

import orjson
import typer

from realign_cluster.cli import task_options as options
from realign_cluster.coordinator.dashboard import make_dashboard
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.domain.skew import parse_allowed
from realign_cluster.node.environment import check_environment, parse_assignments

app = typer.Typer(
    help="Source attribution and anti-hallucination: seven stages, each with a quality gate.",
    epilog="Example:  realign workflow init source-attribution my-workflow",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Name = Annotated[str, typer.Argument(metavar="WORKFLOW", help="source-attribution or antihallucination.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a workflow.")]
Config = Annotated[Path, typer.Option(help="TOML file: model, data, verifier, trainings, thresholds.")]
By = Annotated[str, typer.Option("--by", help="Who decides this: a name that stands in the report.")]
Json = options.Json

RUN_EXAMPLE = """
\b
Example:
  realign workflow run source-attribution --config workflow.toml --out runs/cite --hostfile hosts.json

Exit codes: 0 every gate passed (or was gone on from, in permissive mode); 1 a gate failed or could not decide;
2 usage or bad input; 3 nodes missing; 130 interrupted (resumable).
"""


@app.command("run", epilog=RUN_EXAMPLE)
def run(
    context: typer.Context,
    workflow: Name,
    config: Config,
    out: Annotated[Path, typer.Option(help="Run folder; the same command on it goes on where it stopped.")],
    mode: Annotated[
        str | None, typer.Option(help="strict: stop where a gate cannot decide; permissive: go on and say so.")
    ] = None,
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="The same bytes on like hardware; slower.")
    ] = False,
    track: Annotated[str, typer.Option(help="Also follow the trainings with: none, wandb or tensorboard.")] = "none",
    hostfile: options.HostfileOption = None,
    discover: options.Discover = False,
    min_nodes: options.MinNodes = None,
    wait_seconds: options.WaitSeconds = None,
    allow_skew: options.AllowSkew = "",
    env: options.Environment = None,
    nice: options.Nice = None,
    json: Json = False,
) -> int:
    """Run a workflow, or go on with it."""
    from realign_cluster.coordinator.workflow_jobs import Where

    environment = parse_assignments(env or [])
    check_environment(environment)
    request = WorkflowRequest(
        workflow=workflow,
        config=config,
        out=out,
        mode=options.one_of(mode, ("strict", "permissive"), "--mode") if mode else None,  # type: ignore[arg-type]
        reproducible=reproducible,
        track=options.one_of(track, ("none", "wandb", "tensorboard"), "--track"),  # type: ignore[arg-type]
        where=Where(
            hostfile=hostfile,
            discover=discover,
            min_nodes=min_nodes,
            wait_seconds=wait_seconds,
            allow_skew=tuple(sorted(parse_allowed(allow_skew))),
            environment=environment,
            nice=nice,
        ),
    )
    arguments = context.find_root().obj
    return start(request, command=shlex.join(["realign", *arguments]) if arguments else None, json=json)


def start(request: WorkflowRequest, *, command: str | None = None, json: bool = False) -> int:
    """Runs a request in the foreground; returns its exit code."""
    from realign_cluster.coordinator.workflow import run_workflow  # loads what no other command needs

    return asyncio.run(run_workflow(request, dashboard=make_dashboard(json_lines=json), command=command))


def resume(run_folder: Path, *, json: bool = False) -> int:
    """Runs what run.toml of this folder says again. Raises UsageError when it is not a workflow."""
    from realign_cluster.coordinator.workflow_record import read_workflow_request

    return start(read_workflow_request(run_folder), json=json)


@app.command(
    "plan", epilog="Example:  realign workflow plan source-attribution --config workflow.toml --hostfile hosts.json"
)
def plan(workflow: Name, config: Config, hostfile: options.HostfileOption = None, json: Json = False) -> int:
    """Say before anything runs: of each gate what its items can and cannot decide; of each job what it takes here."""
    from realign_cluster.cli.workflow_plan import plan_lines, plan_workflow

    found = asyncio.run(plan_workflow(workflow, config, hostfile))
    if json:
        options.emit("summary", found)
    else:
        typer.echo("\n".join(plan_lines(found)))
    return 0


@app.command("status", epilog="Example:  realign workflow status runs/cite")
def status(run: Run, json: Json = False) -> int:
    """Show where a run is: stages, attempts, gates, what is going on."""
    from realign_cluster.coordinator.workflow_status import status_lines, workflow_status

    found = workflow_status(run)
    if json:
        options.emit("summary", found)
    else:
        typer.echo("\n".join(status_lines(found)))
    return 0


@app.command(
    "gates",
    epilog='Example:  realign workflow gates RUN --override citation.citation_recall --by "A. Name" --reason "..."',
)
def gates(
    run: Run,
    override: Annotated[
        str | None, typer.Option(metavar="STAGE.GATE", help="Let the run go on from this gate; stands in the report.")
    ] = None,
    withdraw: Annotated[
        str | None, typer.Option(metavar="STAGE.GATE", help="Take an override back: the gate's verdict counts again.")
    ] = None,
    by: By = "",
    reason: Annotated[str, typer.Option(help="Why: stands in the report.")] = "",
    json: Json = False,
) -> int:
    """Show every verdict with value, bound, n, threshold and verifier; or override one, or take that back."""
    from realign_cluster.coordinator.workflow_decisions import override_gate, withdraw_override
    from realign_cluster.coordinator.workflow_status import gate_lines, gate_rows, retention_rows

    if override is not None:
        override_gate(run, override, by=by, reason=reason)
    if withdraw is not None:
        withdraw_override(run, withdraw, by=by, reason=reason)
    found = gate_rows(run)
    if json:
        options.emit("summary", {"gates": found, "retention": retention_rows(found)})
    else:
        typer.echo("\n".join(gate_lines(found)))
        for gate, decided in ((override, "overridden"), (withdraw, "overridden no longer")):
            if gate is not None:
                typer.echo(f"{gate} is {decided}, from the next run on: realign runs resume {run}")
    return 0


@app.command("rollback", epilog='Example:  realign workflow rollback runs/cite --to citation --by "A. Name"')
def rollback(
    run: Run,
    to: Annotated[str, typer.Option(help="The last stage that stands: what came after it is done anew.")],
    by: By = "",
    reason: Annotated[str, typer.Option(help="Why: stands in the report.")] = "",
    json: Json = False,
) -> int:
    """Go back to what a stage left; the next run does the stages after it again, with other seeds."""
    from realign_cluster.coordinator.workflow_decisions import roll_back

    found = roll_back(run, to, by=by, reason=reason)
    if json:
        options.emit("summary", found)
    else:
        typer.echo(f"{run}: back to stage {to}; its model is {found['model']}")
        typer.echo(f"what came after it is done anew by the next run: realign runs resume {run}")
    return 0


@app.command(
    "report", epilog='Example:  realign workflow report runs/cite --sign "thresholds understood" --by "A. Name"'
)
def report(
    run: Run,
    sign: Annotated[
        str | None, typer.Option(metavar="ITEM", help="Tick one of the two items that only a person can.")
    ] = None,
    by: By = "",
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Json = False,
) -> int:
    """Make report.html again, also of a run that is going on; or sign for what only a person can say."""
    from realign_cluster.coordinator.workflow_decisions import sign_item
    from realign_cluster.coordinator.workflow_report import write_workflow_report

    if sign is not None:
        sign_item(run, sign, by=by)
    path = write_workflow_report(run).absolute()
    if json:
        options.emit("summary", {"report": str(path)})
    else:
        typer.echo(path)
    if open_page:
        typer.launch(str(path))
    return 0


@app.command("diagnose", epilog="Example:  realign workflow diagnose runs/cite")
def diagnose(run: Run, json: Json = False) -> int:
    """Say what is wrong with a run, by its measurements, with the evidence and the remedy."""
    from realign_cluster.coordinator.workflow_diagnosis import diagnosis_lines, diagnosis_of, undecided_lines
    from realign_cluster.coordinator.workflow_status import gate_rows

    found = diagnosis_of(run)
    if json:
        options.emit("summary", {"findings": found})
    else:
        typer.echo("\n".join([*diagnosis_lines(found), *undecided_lines(gate_rows(run))]))
    return 0


@app.command("init", epilog="Example:  realign workflow init source-attribution my-workflow")
def init(
    workflow: Name, folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")]
) -> int:
    """Write a configuration and a row of each data file to start from."""
    from realign_cluster.workflows.template import write_template

    for path in write_template(workflow, folder):
        typer.echo(orjson.dumps(str(path)).decode()[1:-1])
    return 0
