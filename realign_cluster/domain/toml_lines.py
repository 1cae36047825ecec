"""Where each key of a TOML text stands, so that an error can name its line.

Knows tables, dotted keys and nothing of what the text means. `tomllib.loads` must have accepted the text first; keys
within inline tables are found at the line of the table.
"""

from __future__ import annotations

import re

Path = tuple[str, ...]

_NAME = r'(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|\'[^\']*\')'
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_TABLE = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]\]?")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


def lines_of_toml(text: str) -> dict[Path, int]:
    """Line (from 1) of every table and key by its path, the first one of each."""
    lines: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), 1):
        if (header := _TABLE.match(line)) is not None:
            table = _split(header[1])
            lines.setdefault(table, number)
        elif (key := _KEY.match(line)) is not None:
            lines.setdefault((*table, *_split(key[1])), number)
    return lines


def line_of_toml(lines: dict[Path, int], path: Path) -> int:
    """Line of `path`, or of the nearest table around it that is there."""
    while path not in lines and path:
        path = path[:-1]
    return lines.get(path, 1)


def _split(dotted: str) -> Path:
    return tuple(name.strip("\"'") for name in re.findall(_NAME, dotted))
