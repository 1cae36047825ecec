"""One thing that doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`fix` is a command, or what to do; empty only where nothing is wrong."""

    level: Level
    topic: str  # "python", "certificates"
    text: str
    fix: str = ""


def ok(topic: str, text: str) -> Finding:
    return Finding(level="ok", topic=topic, text=text)


def warn(topic: str, text: str, fix: str) -> Finding:
    return Finding(level="warn", topic=topic, text=text, fix=fix)


def fail(topic: str, text: str, fix: str) -> Finding:
    return Finding(level="fail", topic=topic, text=text, fix=fix)
