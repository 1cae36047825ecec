"""`realign`: one command per thing a user does. Errors a user can act on end here, with their exit code."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from realign_cluster import __version__
from realign_cluster.domain.errors import RealignError

app = typer.Typer(
    name="realign",
    help="Curate data for language models on a cluster of unequal Macs.",
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


for _name in ("curate", "plan", "calibrate", "nodes", "doctor"):
    import_module(f"realign_cluster.cli.{_name}").register(app)
for _name in ("runs", "cluster"):
    app.add_typer(import_module(f"realign_cluster.cli.{_name}").app, name=_name)


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line, as the contract has them: 0, 1, 2, 3 or 130."""
    try:
        result = app(arguments, standalone_mode=False)
    except RealignError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        return 130
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            typer.echo(f"error: {error.format_message()}", err=True)
            return 2
        raise
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
