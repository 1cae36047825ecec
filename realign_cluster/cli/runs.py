"""`realign runs`: list, show, resume and report runs, from their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from realign_cluster.coordinator.dashboard import duration_text, rate_text
from realign_cluster.coordinator.history import read_history
from realign_cluster.coordinator.report import write_report
from realign_cluster.coordinator.run_status import RunStatus, Status, locate_run, run_status, statuses
from realign_cluster.coordinator.train_history import TrainHistory, read_train_history
from realign_cluster.coordinator.train_report import write_train_report
from realign_cluster.coordinator.train_status import TrainStatus
from realign_cluster.coordinator.workflow_report import write_workflow_report
from realign_cluster.coordinator.workflow_status import WorkflowStatus, status_lines
from realign_cluster.store.ledger_file import ledger_kind
from realign_cluster.store.ledger_reader import LedgerReader
from realign_cluster.store.run_folder import RunFolder
from realign_cluster.store.train_ledger import TrainLedgerReader

TROUBLES_SHOWN = 12
TABLE_WIDTH = 500  # characters, at most
STATE_STYLE = {"complete": "green", "running": "cyan", "incomplete": "yellow", "failed": "red"}

app = typer.Typer(
    help="List, show, resume and report runs.",
    epilog="Example:  realign runs list",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Root = Annotated[Path, typer.Option(help="Folder in which runs are looked for.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or its name under --root.")]
Json = Annotated[bool, typer.Option("--json", help="Standard output is JSON lines only.")]

LIST_EXAMPLE = """
Example:

  realign runs list --root runs
"""
SHOW_EXAMPLE = """
Example:

  realign runs show runs/ifd --json
"""
RESUME_EXAMPLE = """
Example:

  realign runs resume runs/ifd

Exit codes: as realign curate or realign train.
"""
REPORT_EXAMPLE = """
Example:

  realign runs report runs/ifd --open
"""


@app.command("list", epilog=LIST_EXAMPLE)
def list_runs(root: Root = Path("runs"), json: Json = False) -> int:
    """List the runs under a folder: state, rows or steps, when they began."""
    found, unreadable = statuses(root)
    if json:
        for status in found:
            _line({"event": "run", **status.as_json()})
        for folder, error in unreadable:
            _line({"event": "unreadable", "folder": str(folder), "message": error.message, "fix": error.fix})
        _line({"event": "summary", "runs": len(found), "unreadable": len(unreadable)})
        return 0
    if not found and not unreadable:
        typer.echo(f"no runs in {root}")
        return 0
    table = _table("run", "state", ">size", ">done", ">rate", "begun (UTC)", "what", "model")
    for status in found:
        begun = status.begun
        table.add_row(
            Text(_shown_path(status.folder, root)),
            Text(status.state, style=STATE_STYLE.get(status.state, "")),
            *_size(status),
            f"{begun:%Y-%m-%d %H:%M}" if begun else "-",
            Text(_what(status)),
            Text(_model(status)),
        )
    if found:
        _print_table(_console(), table)
    for folder, error in unreadable:
        typer.echo(f"{folder}: {error}", err=True)
    return 0


@app.command("show", epilog=SHOW_EXAMPLE)
def show(run: Run, root: Root = Path("runs"), json: Json = False) -> int:
    """Show one run: state, nodes, attempts, what went wrong."""
    status = run_status(locate_run(run, root))
    if json:
        _line({"event": "summary", **status.as_json(), "summary": status.summary})
        return 0
    console = _console()
    console.print(Text.assemble((status.name, "bold"), "  ", (status.state, STATE_STYLE.get(status.state, ""))))
    page = RunFolder.read(status.folder).report
    if isinstance(status, WorkflowStatus):
        typer.echo("\n".join([*status_lines(status.body)[1:], *([f"  report: {page}"] if page.exists() else [])]))
        return 0
    facts = train_facts(status) if isinstance(status, TrainStatus) else _facts(status)
    if page.exists():
        facts["report"] = str(page)
    for label, value in facts.items():
        console.print(Text.assemble((f"{label:>10}  ", "dim"), value), soft_wrap=True)
    if isinstance(status, TrainStatus):
        _print_training(console, status)
        return 0
    if status.nodes:
        table = _table("node", ">share", ">rows", ">units", ">computing", ">rows/s")
        for node in status.nodes:
            table.add_row(
                Text(node.node, style="bold"),
                f"{node.share:.1%}",
                f"{node.rows:,}",
                f"{node.units:,}",
                duration_text(node.busy_seconds),
                rate_text(node.rows / node.busy_seconds if node.busy_seconds else None),
            )
        _print_table(console, table)
    _print_troubles(console, status.folder)
    return 0


@app.command("resume", epilog=RESUME_EXAMPLE)
def resume(run: Run, root: Root = Path("runs"), json: Json = False) -> int:
    """Go on with a run where it stopped: runs the command that is recorded in its run.toml."""
    from realign_cluster.cli.curate import resume as resume_curation
    from realign_cluster.cli.train import resume as resume_training
    from realign_cluster.cli.workflow import resume as resume_workflow

    folder = locate_run(run, root)
    again = {"score": resume_curation, "train": resume_training, "workflow": resume_workflow}
    return again[ledger_kind(folder / "ledger.sqlite")](folder, json=json)


@app.command("report", epilog=REPORT_EXAMPLE)
def report(
    run: Run,
    root: Root = Path("runs"),
    open_page: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Json = False,
) -> int:
    """Make report.html again from what the run's folder holds, also of a run that is going on; print its path."""
    folder = locate_run(run, root)
    match ledger_kind(folder / "ledger.sqlite"):
        case "train":
            path = write_train_report(folder, train_history_of(folder)).absolute()
        case "workflow":
            path = write_workflow_report(folder).absolute()
        case _:
            path = write_report(folder).absolute()
    if json:
        _line({"event": "summary", "report": str(path)})
    else:
        typer.echo(path)
    if open_page:
        typer.launch(str(path))
    return 0


def _facts(status: RunStatus) -> dict[str, str]:
    counters, summary = status.counters, status.summary
    facts = {"folder": str(status.folder)}
    if status.command:
        facts["command"] = status.command
    if status.holder:
        facts["held by"] = status.holder
    rows = summary.get("rows") if status.state == "complete" else None
    if rows:
        counts = ", ".join(f"{rows[name]:,} {name}" for name in ("kept", "dropped", "failed"))
        facts["rows"] = f"{rows['in']:,} in: {counts}"
    else:
        failed = counters.quarantined_rows + counters.bad_rows
        facts["rows"] = f"{counters.rows:,} in: {counters.committed_rows:,} scored, {failed:,} failed, "
        facts["rows"] += f"{counters.pending_rows:,} to do"
    if summary.get("wall_seconds") and status.state != "running":
        rate = rate_text(summary.get("rows_per_second"))
        facts["time"] = f"{duration_text(summary['wall_seconds'])}, {rate} rows/s"
        warm = (summary.get("efficiency") or {}).get("warm")
        facts["time"] += f", efficiency {warm:.1%}" if warm is not None else ""
    if status.sittings:
        ended = "was closed" if status.sittings[-1].closed_at else "has no end: killed, or going on"
        facts["sittings"] = f"{len(status.sittings)}; the last {ended}"
    facts["attempts"] = ", ".join(f"{count:,} {outcome}" for outcome, count in status.outcomes.items()) or "none"
    if status.state in ("incomplete", "failed") and summary.get("reason"):
        facts["why"] = str(summary["reason"])
    if status.state == "incomplete":
        facts["go on"] = _going_on(status)
    return facts


def _going_on(status: RunStatus | TrainStatus) -> str:
    hostfile = status.request.get("hostfile")
    first = f"; if the daemons were stopped, first: realign-launch --hostfile {hostfile} up" if hostfile else ""
    return f"realign runs resume {status.folder}{first}"


def _print_troubles(console: Console, folder: Path) -> None:
    ledger = LedgerReader(folder / "ledger.sqlite")
    try:
        incidents = read_history(ledger).incidents
    finally:
        ledger.close()
    troubles = [incident for incident in incidents if incident.trouble]
    if not troubles:
        return
    hidden = len(troubles) - TROUBLES_SHOWN
    console.print(Text(f"what went wrong{f' (the last {TROUBLES_SHOWN} of {len(troubles)})' if hidden > 0 else ''}:"))
    for incident in troubles[-TROUBLES_SHOWN:]:
        console.print(
            Text(f"  {duration_text(incident.at):>12}  {incident.node} {incident.text}".rstrip()), soft_wrap=True
        )


def _rows(status: RunStatus) -> tuple[str, str, str]:
    rows = status.counters.rows
    done = f"{status.rows_done / rows:.0%}" if rows else "-"
    return f"{rows:,} rows", done, f"{rate_text(status.summary.get('rows_per_second'))} rows/s"


def _steps(status: TrainStatus) -> tuple[str, str, str]:
    done = f"{status.steps_done / status.steps:.0%}" if status.steps else "-"
    return f"{status.steps:,} steps", done, f"{rate_text(status.summary.get('tokens_per_second'))} tokens/s"


def _size(status: Status) -> tuple[str, str, str]:
    match status:
        case TrainStatus():
            return _steps(status)
        case WorkflowStatus():
            return "7 stages", f"{status.stages_passed / 7:.0%}", "-"
        case RunStatus():
            return _rows(status)


def _model(status: Status) -> str:
    name = (
        status.summary.get("model", {}).get("path", "")
        if isinstance(status, WorkflowStatus)
        else status.request.get("model", "")
    )
    return Path(str(name)).name


def _what(status: Status) -> str:
    if isinstance(status, WorkflowStatus):
        return str(status.body["workflow"])
    if isinstance(status, TrainStatus):
        return f"{status.settings.get('method', 'sft')} {status.settings.get('fine_tune', 'lora')}"
    return ",".join(status.request.get("kinds") or ())


def train_facts(status: TrainStatus) -> dict[str, str]:
    summary = status.summary
    facts = {"folder": str(status.folder)}
    if status.command:
        facts["command"] = status.command
    if status.holder:
        facts["held by"] = status.holder
    facts["steps"] = f"{status.steps_done:,} of {status.steps:,}"
    if (loss := summary.get("loss")) is not None:
        facts["loss"] = f"{loss['first']:.4f} at first, {loss['last']:.4f} at last"
    if (validation := summary.get("validation")) is not None:
        facts["validation"] = f"best {validation['best']:.4f} after step {validation['best_step']}"
    if summary.get("wall_seconds") and status.state != "running":
        rate = rate_text(summary.get("tokens_per_second"))
        facts["time"] = f"{duration_text(summary['wall_seconds'])}, {rate} tokens/s within the steps"
    if status.sittings:
        ended = "was closed" if status.sittings[-1].closed_at else "has no end: killed, or going on"
        facts["sittings"] = f"{len(status.sittings)}; the last {ended}"
    if summary.get("output"):
        facts["output"] = str(status.folder / summary["output"])
    if status.state in ("incomplete", "failed") and summary.get("reason"):
        facts["why"] = str(summary["reason"])
    if status.state == "incomplete":
        facts["go on"] = _going_on(status)
    return facts


def _print_training(console: Console, status: TrainStatus) -> None:
    history = train_history_of(status.folder)
    if nodes := history.nodes_summary():
        table = _table("node", ">share", ">tokens", ">computing", ">tokens/s")
        for node, values in nodes.items():
            table.add_row(
                Text(node, style="bold"),
                f"{values['share']:.1%}" if values["share"] is not None else "-",
                f"{values['tokens']:,}",
                duration_text(values["busy_seconds"]),
                rate_text(values["tokens_per_second"]),
            )
        _print_table(console, table)
    troubles = [incident for incident in history.incidents if incident.trouble]
    begun = history.begun or 0.0
    for incident in troubles[-TROUBLES_SHOWN:]:
        console.print(Text(f"  {duration_text(incident.wall - begun):>12}  {incident.text}"), soft_wrap=True)


def train_history_of(folder: Path) -> TrainHistory:
    ledger = TrainLedgerReader(folder / "ledger.sqlite")
    try:
        return read_train_history(ledger)
    finally:
        ledger.close()


def _shown_path(folder: Path, root: Path) -> str:
    base = root.absolute()
    return str(folder.relative_to(base)) if folder.is_relative_to(base) else str(folder)


def _table(*headings: str) -> Table:
    """A heading that begins with > has its column at the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left", no_wrap=True)
    return table


def _print_table(console: Console, table: Table) -> None:
    """As wide as it is: figures cut short say nothing, and a terminal or pager wraps."""
    wanted = console.measure(table, options=console.options.update(max_width=TABLE_WIDTH)).maximum
    console.width = max(console.width, wanted)
    console.print(table)


def _console() -> Console:
    return Console(highlight=False)


def _line(event: Mapping[str, Any]) -> None:
    typer.echo(orjson.dumps(event).decode())
