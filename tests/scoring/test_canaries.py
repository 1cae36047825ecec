"""Canaries alone and batched, for every model type; and what a coordinator makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import orjson
import pytest

from realign_cluster.domain.canary import check_canaries
from realign_cluster.domain.report import WorkerReport
from realign_cluster.scoring.canaries import Canaries, score_canaries
from realign_cluster.scoring.router import watch_routers
from tests.scoring.making import make_scorer

ROWS = [
    orjson.dumps({"prompt": f"Explain {'a lease ' * at}", "response": f"{'It is a promise. ' * (9 - at)}"})
    for at in range(1, 8, 2)
]


def report_of(canaries: Canaries, *, mixture: bool) -> WorkerReport:
    return WorkerReport(
        model_hash="same",
        dtype="float32",
        load_seconds=0,
        weights_bytes=0,
        peak_bytes=0,
        device="here",
        blas="bundled",
        blas_core_type="",
        blas_threads=1,
        mixture=mixture,
        canaries_alone=canaries.alone,
        canaries_batched=canaries.batched,
        canary_tokens=canaries.tokens,
    )


@pytest.mark.parametrize("name", ["tiny", "qwen3", "mixtral", "qwen2_moe"])
def test_canaries_are_trusted(name: str, model_folder: Callable[..., Path]) -> None:
    mixture = name in ("mixtral", "qwen2_moe")
    scorer = make_scorer(model_folder(name), "loglik", "ifd")
    canaries = score_canaries(scorer, ROWS, mixture=mixture)
    verdict = check_canaries(report_of(canaries, mixture=mixture), node="here", expected=len(ROWS))
    assert verdict.trusted, verdict.problems
    assert [("router_margin" in scores) for scores in canaries.alone] == [mixture] * len(ROWS)
    assert all(0 <= scores.get("router_margin", 0) < 1 for scores in canaries.alone)
    assert canaries.tokens_per_byte is not None


def test_a_wrong_build_is_noticed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(tiny_model, "loglik")
    right = score_canaries(scorer, ROWS, mixture=False)
    original = scorer.forward.split.logits
    monkeypatch.setattr(scorer.forward.split, "logits", lambda hidden: original(hidden) * 1.01)
    wrong = score_canaries(scorer, ROWS, mixture=False)
    verdict = check_canaries(
        report_of(wrong, mixture=False),
        node="wrong",
        reference=report_of(right, mixture=False),
        reference_node="right",
        expected=len(ROWS),
    )
    assert not verdict.trusted


def test_watching_changes_nothing(model_folder: Callable[..., Path]) -> None:
    scorer = make_scorer(model_folder("mixtral"), "loglik")
    model, tokens = scorer.forward.split.model, mx.array([[1, 2, 3, 4, 5]])
    before = model(tokens)
    with watch_routers(model) as margin:
        during = model(tokens)
        mx.eval(during)
    after = model(tokens)
    assert mx.array_equal(before, during)
    assert mx.array_equal(before, after)
    assert margin.smallest is not None
