"""Whether a node whose worker is ready may take part in this run, and how fast it counts as being.

Pure but for the reference it keeps: the first trusted report is what the others are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from realign_cluster.domain.canary import check_canaries, refusal
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.report import WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    refusal: str | None = None  # with the fix; None: it takes part
    cost_per_second: float = 0.0
    measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    cost_per_second: float
    measured: bool


class Admission:
    """Judges each worker report of one sitting. `speed_of` answers from the report, a stored calibration or a prior."""

    def __init__(
        self,
        *,
        canaries: int,
        reproducible: bool,
        speed_of: Callable[[NodeName, WorkerReport], Speed],
        remember_reference: Callable[[NodeName, WorkerReport], None],
        reference: tuple[NodeName, WorkerReport] | None = None,
    ) -> None:
        self._canaries = canaries
        self._reproducible = reproducible
        self._speed_of = speed_of
        self._remember_reference = remember_reference
        self._reference = reference
        self.reports: dict[NodeName, WorkerReport] = {}
        self.listed: dict[NodeName, tuple[str, ...]] = {}

    def judge(self, node: NodeName, report: WorkerReport) -> Admitted:
        name, reference = self._reference if self._reference is not None else (NodeName(""), None)
        verdict = check_canaries(
            report,
            node=node,
            reference=reference,
            reference_node=name if name != node else f"{node} of an earlier worker",
            expected=self._canaries,
        )
        self.listed[node] = tuple(problem.text() for problem in verdict.listed)
        if not verdict.trusted:
            message, fix = refusal(node, verdict)
            return Admitted(refusal=f"{message}\n  fix: {fix}")
        if self._reproducible and reference is not None:
            unlike = _unlike(report, reference)
            if unlike:
                return Admitted(
                    refusal=f"node {node} refused: --reproducible needs like nodes, and {_text(unlike, node, name)}\n"
                    f"  fix: leave {node} out, make it alike, or run without --reproducible"
                )
        if self._reference is None:
            self._reference = (node, report)
            self._remember_reference(node, report)
        self.reports[node] = report
        speed = self._speed_of(node, report)
        return Admitted(cost_per_second=speed.cost_per_second, measured=speed.measured)


def _unlike(report: WorkerReport, reference: WorkerReport) -> Mapping[str, tuple[object, object]]:
    """What decides the last bits of a score and is not equal: device, BLAS, its kernel family and threads."""
    fields = ("device", "dtype", "blas", "blas_core_type", "blas_threads")
    return {
        field: (getattr(report, field), getattr(reference, field))
        for field in fields
        if getattr(report, field) != getattr(reference, field)
    }


def _text(unlike: Mapping[str, tuple[object, object]], node: str, reference: str) -> str:
    return "; ".join(
        f"{field.replace('_', ' ')} is {mine} on {node}, {theirs} on {reference}"
        for field, (mine, theirs) in unlike.items()
    )
