"""Whether a node's scores can be trusted: its canary rows alone against batched, and against the cluster's
reference.

Some models' scores change with padding or batch size, some builds compute wrongly; a node like that is refused by
name before it gets a row. Pure comparison of worker reports; must not talk to nodes or decide what else happens to
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from realign_cluster.domain.report import WorkerReport
from realign_cluster.domain.tolerance import ROUTER_MARGIN, differences, tolerance_of

MARGIN_KEYS = ("router_margin", "min_router_margin")  # a worker may put one beside the kinds of a mixture model's row


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryProblem:
    compared: str  # "alone and batched", "m3ultra and the reference m4max"
    kind: str  # of score; "" where the reports differ as a whole
    canary: int  # -1 where the reports differ as a whole
    field: str
    values: tuple[Any, Any]
    difference: float | None
    bound: float | None  # None: must be equal

    def text(self) -> str:
        where = f"canary {self.canary}, {self.kind}.{self.field}" if self.canary >= 0 else self.field
        left, right = self.values
        if self.difference is None or self.bound is None:
            return f"{self.compared}: {where}: {left!r} and {right!r}"
        apart = f"differ by {self.difference:.3g}, allowed {self.bound:.3g}"
        return f"{self.compared}: {where}: {left:.6g} and {right:.6g} {apart}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryVerdict:
    problems: tuple[CanaryProblem, ...]
    listed: tuple[
        CanaryProblem, ...
    ]  # rows of a mixture with a router margin below 1e-4: shown, not held against the node

    @property
    def trusted(self) -> bool:
        return not self.problems


def check_canaries(
    report: WorkerReport,
    *,
    node: str,
    reference: WorkerReport | None = None,
    reference_node: str = "",
    expected: int | None = None,
) -> CanaryVerdict:
    """Compare a node's canaries with themselves and with the first trusted report. `expected`: how many were asked
    for.
    """
    problems: list[CanaryProblem] = []
    listed: list[CanaryProblem] = []
    if expected is not None and len(report.canaries_alone) != expected:
        problems.append(_whole(node, "canaries scored", expected, len(report.canaries_alone)))
    _pairwise("alone and batched", report.canaries_alone, report.canaries_batched, report, report, problems, listed)
    if reference is not None:
        label = f"{node} and the reference {reference_node or 'node'}"
        for field in ("model_hash", "dtype"):
            mine, theirs = getattr(report, field), getattr(reference, field)
            if mine != theirs:
                problems.append(_whole(label, field, mine, theirs))
        if report.canary_tokens and reference.canary_tokens and report.canary_tokens != reference.canary_tokens:
            problems.append(_whole(label, "scored tokens", report.canary_tokens, reference.canary_tokens))
        _pairwise(label, report.canaries_alone, reference.canaries_alone, report, reference, problems, listed)
    return CanaryVerdict(problems=tuple(problems), listed=tuple(listed))


def refusal(node: str, verdict: CanaryVerdict, *, most: int = 3) -> tuple[str, str]:
    """(message, fix) for a node that is out of tolerance."""
    shown = "; ".join(problem.text() for problem in verdict.problems[:most])
    more = len(verdict.problems) - most
    message = f"node {node} refused: {shown}{f' (and {more} more)' if more > 0 else ''}"
    compared = {problem.compared for problem in verdict.problems}
    if any(problem.field in ("model_hash", "dtype") for problem in verdict.problems):
        fix = (
            f"the model on {node} is another one: remove its copy (models/ in the daemon's state folder) and run again"
        )
    elif any(problem.field == "scored tokens" for problem in verdict.problems):
        fix = f"{node} tokenises otherwise: bring mlx-lm to the cluster's version (realign-launch --install)"
    elif compared == {"alone and batched"}:
        fix = (
            "this model's scores change with batch or padding: run with --reproducible (every row alone), or update mlx"
        )
    else:
        fix = f"compare versions and BLAS with `realign doctor`; run without {node} by leaving it out of the hostfile"
    return message, fix


def _pairwise(
    compared: str,
    left: Sequence[Mapping[str, Any]],
    right: Sequence[Mapping[str, Any]],
    mine: WorkerReport,
    theirs: WorkerReport,
    problems: list[CanaryProblem],
    listed: list[CanaryProblem],
) -> None:
    if len(left) != len(right):
        problems.append(_whole(compared, "canaries scored", len(left), len(right)))
        return
    nats = max(tolerance_of(mine.dtype), tolerance_of(theirs.dtype))
    mixture = mine.mixture or theirs.mixture
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        tokens = mine.canary_tokens[index] if index < len(mine.canary_tokens) else 1
        close_call = mixture and min(_margin(one), _margin(other)) < ROUTER_MARGIN
        for found in differences(_scores(one), _scores(other), nats_per_token=nats, tokens=tokens):
            problem = CanaryProblem(
                compared=compared,
                kind=found.kind,
                canary=index,
                field=found.field,
                values=(found.left, found.right),
                difference=found.difference,
                bound=found.bound,
            )
            exempt = close_call and found.difference is not None
            (listed if exempt else problems).append(problem)


def _scores(canary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in canary.items() if key not in MARGIN_KEYS}


def _margin(canary: Mapping[str, Any]) -> float:
    margins = [canary[key] for key in MARGIN_KEYS if isinstance(canary.get(key), int | float)]
    return min(margins, default=float("inf"))


def _whole(compared: str, field: str, left: Any, right: Any) -> CanaryProblem:
    return CanaryProblem(
        compared=compared, kind="", canary=-1, field=field, values=(left, right), difference=None, bound=None
    )
