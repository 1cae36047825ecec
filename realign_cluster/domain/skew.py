"""Differences of versions between the coordinator and its nodes, and what puts each right.

Pure comparison: takes anything with the fields of the protocol's Versions message, returns facts. Must not read
installed packages or talk to nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from realign_cluster.domain.errors import UsageError

Severity = Literal["refused", "allowed", "warning"]
ALLOWABLE = ("project", "mlx", "mlx-lm")  # a protocol that differs cannot be spoken, so it cannot be allowed


class VersionFacts(Protocol):
    """The Versions message, or anything shaped like it. Empty strings: not installed."""

    @property
    def project(self) -> str: ...
    @property
    def protocol(self) -> int: ...
    @property
    def mlx(self) -> str: ...
    @property
    def mlx_lm(self) -> str: ...
    @property
    def python(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    what: str  # "project", "protocol", "mlx", "mlx-lm", "python"
    expected: str
    found: str
    severity: Severity
    fix: str

    def text(self, node: str) -> str:
        found = self.found or "not installed"
        line = f"{node}: {self.what} {found}, the cluster has {self.expected or 'none'} ({self.severity})"
        return f"{line}\n  fix: {self.fix}" if self.severity != "allowed" else line


def parse_allowed(text: str) -> frozenset[str]:
    """Names from `--allow-skew mlx,mlx-lm`. Raises UsageError for a name that means nothing here."""
    names = frozenset(name.strip().replace("_", "-") for name in text.split(",") if name.strip())
    unknown = sorted(names - set(ALLOWABLE))
    if unknown:
        why = "; the protocol's version cannot be allowed to differ" if "protocol" in unknown else ""
        raise UsageError(
            f"--allow-skew: {', '.join(unknown)} cannot be allowed{why}", f"names are {', '.join(ALLOWABLE)}"
        )
    return names


def skew(expected: VersionFacts, found: VersionFacts, allowed: frozenset[str] = frozenset()) -> tuple[Skew, ...]:
    """What differs between the coordinator (`expected`) and one node. Python's minor version only warns: nothing of
    it travels.
    """
    install = "realign-launch --hostfile FILE --install up   (installs this version on the host)"
    found_list: list[Skew] = []
    if expected.protocol != found.protocol:
        found_list.append(
            Skew(
                what="protocol",
                expected=str(expected.protocol),
                found=str(found.protocol),
                severity="refused",
                fix=install,
            )
        )
    for what, ours, theirs in (
        ("project", expected.project, found.project),
        ("mlx", expected.mlx, found.mlx),
        ("mlx-lm", expected.mlx_lm, found.mlx_lm),
    ):
        if ours != theirs:
            named = f"{install}, or --allow-skew {what}"
            severity: Severity = "allowed" if what in allowed else "refused"
            found_list.append(Skew(what=what, expected=ours, found=theirs, severity=severity, fix=named))
    if minor(expected.python) != minor(found.python):
        fix = f'"python" in the host\'s "realign" object of the hostfile names a {minor(expected.python)} interpreter'
        found_list.append(
            Skew(what="python", expected=expected.python, found=found.python, severity="warning", fix=fix)
        )
    return tuple(found_list)


def refused(found: Iterable[Skew]) -> tuple[Skew, ...]:
    return tuple(item for item in found if item.severity == "refused")


def skew_between(nodes: Mapping[str, VersionFacts]) -> tuple[str, ...]:
    """Lines for versions that are not equal on all nodes: "mlx: 0.32.4 on m4max, m3ultra; 0.31.0 on mini"."""
    lines: list[str] = []
    for what in ("project", "protocol", "mlx", "mlx_lm", "python"):
        by_version: dict[str, list[str]] = {}
        for name, versions in nodes.items():
            value = str(getattr(versions, what))
            by_version.setdefault(minor(value) if what == "python" else value, []).append(name)
        if len(by_version) > 1:
            groups = sorted(by_version.items(), key=lambda item: (-len(item[1]), item[0]))
            where = "; ".join(f"{value or 'not installed'} on {', '.join(names)}" for value, names in groups)
            lines.append(f"{what.replace('_', '-')}: {where}")
    return tuple(lines)


def minor(python: str) -> str:
    return ".".join(python.split(".")[:2])
