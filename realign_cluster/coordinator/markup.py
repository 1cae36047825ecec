"""Pieces of the report's page: sections, tables, legends. Takes HTML where it says so and text everywhere else.

Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any


def section(title: str, body: str, anchor: str = "") -> str:
    """`anchor`: where a link to it leads."""
    place = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{place}><h2>{escape(title)}</h2>{body}</section>\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML. A heading that begins with > has its column at the right."""
    right = [heading.startswith(">") for heading in headings]
    head = "".join(
        f"<th{' class=r' if at_right else ''}>{escape(heading.lstrip('>'))}</th>"
        for heading, at_right in zip(headings, right, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=r' if at_right else ''}>{cell}</td>" for cell, at_right in zip(row, right, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def settings(values: Mapping[str, Any]) -> str:
    return table(
        ["", ""], [[escape(str(key)), f"<code>{escape(_plain(value))}</code>"] for key, value in values.items()]
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def legend(entries: Iterable[tuple[str, str]]) -> str:
    return (
        '<div class="legend">'
        + "".join(f'<span><i class="{style}"></i>{escape(text)}</span>' for style, text in entries)
        + "</div>"
    )


def chip(style: str, text: str) -> str:
    """A cell that begins with the colour that stands for it elsewhere."""
    return f'<i class="{style}"></i>{escape(text)}'


def unbroken(text: str) -> str:
    """A cell on one line."""
    return f'<span class="nowrap">{escape(text)}</span>'


def note(text: str) -> str:
    return f'<p class="dim note">{escape(text)}</p>' if text else ""


def share_cell(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def wall_clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
