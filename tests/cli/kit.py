"""Commands in this process, with exit codes and output apart, as `realign` would end them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import typer

from realign_cluster.domain.errors import RealignError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every line of standard output, which must be JSON."""
        return [orjson.loads(line) for line in self.out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        assert self.events[-1]["event"] == "summary"
        return self.events[-1]


def run_command(register: Callable[[typer.Typer], None], arguments: Sequence[str]) -> Ended:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    register(app)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            result = app(list(arguments), standalone_mode=False)
            code = result if isinstance(result, int) else 0
        except RealignError as error:
            err.write(f"error: {error}\n")
            code = error.exit_code
        except typer.BadParameter as error:
            err.write(f"error: {error.format_message()}\n")
            code = 2
    return Ended(code=code, out=out.getvalue(), err=err.getvalue())
