"""What the launcher says while it works: a line per host and step, on standard error.

Standard output belongs to the command.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text


class Progress:
    """Plain lines in a log, coloured ones on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._began = time.monotonic()
        self._width = 1

    def widen(self, names: list[str]) -> None:
        """Make room for the longest of these names."""
        self._width = max(len(name) for name in names)

    def step(self, host: str, text: str, style: str = "") -> None:
        line = Text(f"{time.monotonic() - self._began:6.1f} s  ", style="dim")
        line.append(f"{host:{self._width}}  ", style="bold")
        self._console.print(line.append(text, style=style or "default"))

    def good(self, host: str, text: str) -> None:
        self.step(host, text, "green")

    def bad(self, host: str, text: str) -> None:
        for line in text.splitlines():
            self.step(host, line, "red")

    def say(self, text: str) -> None:
        self._console.print(Text(text))
