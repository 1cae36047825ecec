"""Where each value of a JSON text stands, so that an error can name its line.

Knows JSON's grammar and nothing of what the text means. `json.loads` must have accepted the text first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

Path = tuple[str | int, ...]

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)


def lines_of(text: str) -> dict[Path, int]:
    """Line (from 1) of every value by its path; an object's member stands where its key does.

    Of a repeated key the last one counts, as it does for `json.loads`.
    """
    lines: dict[Path, int] = {}
    tokens = _tokens(text)
    _walk((), next(tokens, ("null", 1)), tokens, lines)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int:
    """Line of `path`, or of the nearest thing around it that is there (a missing member: its object)."""
    while path not in lines and path:
        path = path[:-1]
    return lines.get(path, 1)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line, seen = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", seen, match.start())
        seen = match.start()
        yield match.group(), line


def _walk(path: Path, token: tuple[str, int], tokens: Iterator[tuple[str, int]], lines: dict[Path, int]) -> None:
    text, line = token
    lines.setdefault(path, line)
    if text == "{":
        for key, key_line in tokens:
            if key == "}":
                return
            if key != ",":
                member = (*path, str(json.loads(key, strict=False)))
                lines[member] = key_line
                next(tokens)  # the colon
                _walk(member, next(tokens), tokens, lines)
    elif text == "[":
        index = 0
        for item in tokens:
            if item[0] == "]":
                return
            if item[0] != ",":
                _walk((*path, index), item, tokens, lines)
                index += 1
