"""`realign`: one command per thing a user does. Errors a user can act on end here, with their exit code."""

from __future__ import annotations

import sys
from importlib import import_module

import orjson
import typer

from realign_cluster import __version__
from realign_cluster.cli.plan_train import joined
from realign_cluster.domain.errors import RealignError

EPILOG = """
\b
Example:
  realign curate data/*.jsonl --out runs/ifd --model models/small --score ifd --hostfile hosts.json
"""

app = typer.Typer(
    name="realign",
    help="Curate data for language models on a cluster of unequal Macs.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"realign-cluster {__version__}")
        raise typer.Exit


for _name in ("curate", "train", "plan", "plan_train", "calibrate", "nodes", "logs", "doctor"):
    import_module(f"realign_cluster.cli.{_name}").register(app)
for _name in ("workflow", "runs", "cluster"):
    app.add_typer(import_module(f"realign_cluster.cli.{_name}").app, name=_name)


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line, as the contract has them: 0, 1, 2, 3 or 130."""
    try:
        result = app(joined(arguments), prog_name="realign", standalone_mode=False, obj=tuple(arguments))
    except RealignError as error:
        return _refused(arguments, error.message, error.fix, error.exit_code)
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        return 130
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _refused(arguments, what, "see whether that disk is full, and who may read and write there", 1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
                typer.echo(error.format_message(), err=True)
                return 2
            return _refused(arguments, error.format_message(), "", 2)
        raise
    return result if isinstance(result, int) else 0


def _refused(arguments: list[str], message: str, fix: str, exit_code: int) -> int:
    """Says what was wrong, to people on standard error; with --json also to scripts: their last line is a summary."""
    typer.echo(f"error: {message}\n  fix: {fix}" if fix else f"error: {message}", err=True)
    if "--json" in arguments:
        error = {"message": message, "fix": fix}
        typer.echo(orjson.dumps({"event": "summary", "error": error, "exit_code": exit_code}).decode())
    return exit_code


if __name__ == "__main__":
    main()
