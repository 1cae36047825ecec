"""Who may take part: canaries against the reference of the run, which outlives a sitting."""

from __future__ import annotations

from typing import Any

import pytest

from realign_cluster.coordinator.admission import Admission, Speed
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.report import WorkerReport

A, B = NodeName("a"), NodeName("b")


def report(total: float, **values: Any) -> WorkerReport:
    scores = ({"loglik": {"sum": total, "mean": total / 10, "tokens": 10, "truncated": False}},)
    given: dict[str, Any] = {
        "model_hash": "h",
        "dtype": "float32",
        "load_seconds": 1.0,
        "weights_bytes": 1,
        "peak_bytes": 1,
        "device": "cpu",
        "blas": "openblas",
        "blas_core_type": "ZEN",
        "blas_threads": 1,
        "canaries_alone": scores,
        "canaries_batched": scores,
        "canary_tokens": (10,),
    }
    return WorkerReport(**(given | values))


def admission(reference: tuple[NodeName, WorkerReport] | None = None, *, reproducible: bool = False) -> Admission:
    return Admission(
        canaries=1,
        reproducible=reproducible,
        speed_of=lambda _node, _report: Speed(cost_per_second=5.0, measured=True),
        remember_reference=lambda _node, _report: None,
        reference=reference,
    )


def test_the_first_that_is_trusted_is_the_reference() -> None:
    judge = admission()
    assert judge.judge(A, report(-20.0)).refusal is None
    assert judge.judge(B, report(-20.005)).cost_per_second == 5.0
    assert "node b refused" in (judge.judge(B, report(-20.5)).refusal or "")


def test_the_node_that_was_the_reference_is_held_against_it_too_when_it_comes_again() -> None:
    """Its MLX or BLAS may have been changed between two sittings of the run."""
    judge = admission((A, report(-20.0)))
    assert judge.judge(A, report(-20.0)).refusal is None
    assert "node a refused" in (judge.judge(A, report(-20.5)).refusal or "")


@pytest.mark.parametrize("node", [A, B])
def test_reproducible_needs_like_nodes(node: NodeName) -> None:
    judge = admission((A, report(-20.0)), reproducible=True)
    assert judge.judge(node, report(-20.0)).refusal is None
    refusal = judge.judge(node, report(-20.0, blas_core_type="HASWELL")).refusal or ""
    assert "blas core type is HASWELL" in refusal
