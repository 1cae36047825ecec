"""Functions of artifacts that need no cluster: registered by name and version, so that a job can be told apart by them.

A derivation reads rows and returns rows, folders and a small value. It must be deterministic: its output is addressed
by its inputs. Changing what one computes means a new version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from realign_cluster.workflows.jobs import ArtifactId, Derive

Rows = Iterable[Mapping[str, Any]]


class Inputs(Protocol):
    """What a derivation may read, by the names in its job."""

    def rows(self, name: str) -> Iterator[dict[str, Any]]: ...

    def folder(self, name: str) -> Path: ...

    def has(self, name: str) -> bool: ...

    def names(self) -> tuple[str, ...]: ...

    def scratch(self) -> Path:
        """An empty folder for what becomes a folder artifact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    rows: Mapping[str, Rows] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    value: Any = None


Function = Callable[[Inputs, Mapping[str, Any]], Derived]


@dataclass(frozen=True, slots=True)
class Registered:
    function: Function
    version: int


REGISTRY: dict[str, Registered] = {}


def derivation(version: int) -> Callable[[Function], Function]:
    """Registers a function under its name."""

    def register(function: Function) -> Function:
        REGISTRY[function.__name__] = Registered(function, version)
        return function

    return register


def derive(function: Function, title: str, *, inputs: Mapping[str, ArtifactId], **parameters: Any) -> Derive:
    """The job that computes a registered function."""
    name = function.__name__
    return Derive(
        title=title, function=name, version=REGISTRY[name].version, inputs=dict(inputs), parameters=parameters
    )
