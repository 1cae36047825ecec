"""Which differences between computations refuse a node, and which do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.canary import CanaryVerdict, check_canaries, refusal
from realign_cluster.domain.report import WorkerReport
from realign_cluster.domain.tolerance import differences, probability_bound, tolerance_of

LOGLIK = {"sum": -100.0, "mean": -2.0, "tokens": 50, "truncated": False}
IFD = {"value": 0.75, "nll_conditioned": 1.5, "nll_alone": 2.0, "tokens": 50, "truncated": False}
IFD_PPL = {"value": math.exp(-0.5), "nll_conditioned": 1.5, "nll_alone": 2.0, "tokens": 50, "truncated": False}
PREFERENCE = {
    "chosen": {"sum": -20.0, "mean": -2.0, "tokens": 10},
    "rejected": {"sum": -90.0, "mean": -3.0, "tokens": 30},
    "margin_sum": 70.0,
    "margin_mean": 1.0,
}
JUDGE = {"probabilities": {"yes": 0.7, "no": 0.3}, "label": "yes", "truncated": False}
ROW: dict[str, Any] = {"loglik": LOGLIK, "ifd": IFD, "ifd-ppl": IFD_PPL, "preference": PREFERENCE, "judge": JUDGE}


def report(alone: list[dict[str, Any]], batched: list[dict[str, Any]] | None = None, **extra: Any) -> WorkerReport:
    values: dict[str, Any] = {
        "model_hash": "a" * 32,
        "dtype": "float32",
        "load_seconds": 1.0,
        "weights_bytes": 1000,
        "peak_bytes": 2000,
        "device": "cpu",
        "blas": "openblas",
        "blas_core_type": "Haswell",
        "blas_threads": 1,
        "canaries_alone": alone,
        "canaries_batched": alone if batched is None else batched,
        "canary_tokens": [50] * len(alone),
        **extra,
    }
    return WorkerReport.model_validate(values)


def changed(kind: str, **fields: Any) -> dict[str, Any]:
    return {**ROW, kind: {**ROW[kind], **fields}}


def check(mine: WorkerReport, reference: WorkerReport | None = None) -> CanaryVerdict:
    return check_canaries(mine, node="mini", reference=reference, reference_node="m4max")


def test_equal_canaries_are_trusted() -> None:
    assert check(report([ROW, ROW]), report([ROW, ROW])).trusted


@pytest.mark.parametrize(
    ("kind", "field", "inside", "outside"),
    [
        ("loglik", "sum", -100.0 + 0.049, -100.0 + 0.051),  # 1e-3 nats x 50 tokens
        ("loglik", "mean", -2.0 + 0.0009, -2.0 + 0.0011),
        ("ifd", "nll_alone", 2.0009, 2.0011),
        ("ifd", "value", 0.75 + 0.0008, 0.75 + 0.0010),  # (1 + 0.75) x 1e-3 / 2
        ("ifd-ppl", "value", math.exp(-0.5) * 1.0019, math.exp(-0.5) * 1.0025),
        ("preference", "margin_sum", 70.039, 70.041),  # 10 + 30 tokens
        ("preference", "margin_mean", 1.0019, 1.0021),
    ],
)
def test_bounds_follow_from_nats_per_token(kind: str, field: str, inside: float, outside: float) -> None:
    assert check(report([ROW], [changed(kind, **{field: inside})])).trusted
    (problem,) = check(report([ROW], [changed(kind, **{field: outside})])).problems
    assert (problem.compared, problem.kind, problem.field, problem.canary) == ("alone and batched", kind, field, 0)
    assert problem.difference is not None
    assert problem.bound is not None
    assert problem.difference > problem.bound


def test_nested_sums_use_their_own_tokens() -> None:
    rejected = {**PREFERENCE["rejected"], "sum": -90.0 + 0.029}  # type: ignore[dict-item]
    assert check(report([ROW], [changed("preference", rejected=rejected)])).trusted
    chosen = {**PREFERENCE["chosen"], "sum": -20.0 + 0.029}  # type: ignore[dict-item]
    (problem,) = check(report([ROW], [changed("preference", chosen=chosen)])).problems
    assert problem.field == "chosen.sum"


def test_sixteen_bit_and_quantised_models_have_more_room() -> None:
    batched = [changed("loglik", mean=-2.0 + 0.019)]
    assert not check(report([ROW], batched)).trusted
    for dtype in ("bfloat16", "float16", "4-bit", "8-bit"):
        assert tolerance_of(dtype) == 0.02
        assert check(report([ROW], batched, dtype=dtype)).trusted


def test_a_padding_sensitive_model_is_refused_by_name_with_what_to_do() -> None:
    verdict = check(report([ROW], [changed("loglik", mean=-3.35, sum=-167.5)]))
    message, fix = refusal("mini", verdict)
    assert message.startswith("node mini refused: alone and batched: canary 0, loglik.")
    assert "-3.35" in message
    assert "differ by 1.35, allowed 0.001" in message
    assert "--reproducible" in fix


def test_a_node_that_differs_from_the_reference_is_refused() -> None:
    verdict = check(report([changed("loglik", mean=-2.5)]), report([ROW]))
    (problem,) = verdict.problems
    assert problem.compared == "mini and the reference m4max"
    message, fix = refusal("mini", verdict)
    assert "node mini refused" in message
    assert "realign doctor" in fix


def test_another_model_or_tokenizer_is_its_own_problem() -> None:
    other = check(report([ROW], model_hash="b" * 32), report([ROW]))
    assert [problem.field for problem in other.problems] == ["model_hash"]
    assert "models/" in refusal("mini", other)[1]
    tokens = check(report([ROW], canary_tokens=[49]), report([ROW]))
    assert [problem.field for problem in tokens.problems] == ["scored tokens"]
    assert "tokenises otherwise" in refusal("mini", tokens)[1]


@pytest.mark.parametrize(
    "other",
    [
        changed("ifd", value=None, undefined="no tokens alone"),
        {key: value for key, value in ROW.items() if key != "ifd"},
        {"error": {"code": "too-long", "message": "600 tokens"}},
        changed("loglik", tokens=51),
        changed("loglik", truncated=True),
        changed("loglik", mean=math.nan),
        changed("judge", probabilities={"yes": 0.7, "maybe": 0.3}),
    ],
)
def test_a_difference_of_structure_is_a_problem(other: dict[str, Any]) -> None:
    assert check(report([ROW], [other])).problems
    assert check(report([other]), report([ROW])).problems


def test_what_is_undefined_on_both_agrees() -> None:
    undefined = changed("ifd", value=None, undefined="no tokens alone")
    assert check(report([undefined])).trusted
    assert check(
        report([{"error": {"code": "too-long", "message": "a"}}], [{"error": {"code": "too-long", "message": "b"}}])
    ).trusted
    assert not check(
        report([{"error": {"code": "too-long", "message": "a"}}], [{"error": {"code": "bad", "message": "a"}}])
    ).trusted


def test_missing_canaries_are_a_problem() -> None:
    assert not check(report([ROW, ROW], [ROW])).trusted
    assert not check_canaries(report([]), node="mini", expected=4).trusted
    assert check_canaries(report([]), node="mini", expected=0).trusted


def test_labels_may_differ_only_when_they_are_close() -> None:
    close = {"probabilities": {"yes": 0.5001, "no": 0.4999}, "label": "yes", "truncated": False}
    flipped = {"probabilities": {"yes": 0.4999, "no": 0.5001}, "label": "no", "truncated": False}
    assert check(report([{"judge": close}], [{"judge": flipped}])).trusted
    wrong = {"probabilities": {"yes": 0.7, "no": 0.3}, "label": "no", "truncated": False}
    assert [problem.field for problem in check(report([ROW], [{**ROW, "judge": wrong}])).problems] == ["label"]
    shifted = {"probabilities": {"yes": 0.72, "no": 0.28}, "label": "yes", "truncated": False}
    fields = {problem.field for problem in check(report([ROW], [{**ROW, "judge": shifted}])).problems}
    assert fields == {"probabilities.yes", "probabilities.no"}


def test_close_router_decisions_of_a_mixture_are_listed_not_asserted() -> None:
    moved = {**changed("loglik", mean=-2.2), "router_margin": 5e-5}
    verdict = check(report([{**ROW, "router_margin": 5e-5}], [moved], mixture=True))
    assert verdict.trusted
    assert len(verdict.listed) == 1
    wide = check(report([{**ROW, "router_margin": 0.1}], [{**moved, "router_margin": 0.1}], mixture=True))
    assert not wide.trusted
    assert not check(report([ROW], [changed("loglik", mean=-2.2)], mixture=True)).trusted  # no margin reported
    structural = {**changed("loglik", tokens=49), "router_margin": 5e-5}
    assert not check(report([ROW], [structural], mixture=True)).trusted


@given(st.floats(0.01, 20), st.floats(0.01, 20), st.floats(-1, 1), st.floats(-1, 1), st.sampled_from([1e-3, 0.02]))
def test_errors_within_tolerance_never_refuse_a_ratio(
    conditioned: float, alone: float, first: float, second: float, nats: float
) -> None:
    """Whatever the true losses, moving each by no more than the tolerance stays within the propagated bounds."""
    moved_conditioned, moved_alone = conditioned + 0.999 * first * nats, alone + 0.999 * second * nats
    for kind, ratio in (("ifd", lambda c, a: c / a), ("ifd-ppl", lambda c, a: math.exp(c - a))):
        if moved_alone <= 0:
            continue
        left = {"value": ratio(conditioned, alone), "nll_conditioned": conditioned, "nll_alone": alone, "tokens": 9}
        right = {
            "value": ratio(moved_conditioned, moved_alone),
            "nll_conditioned": moved_conditioned,
            "nll_alone": moved_alone,
            "tokens": 9,
        }
        assert differences({kind: left}, {kind: right}, nats_per_token=nats, tokens=9) == ()


@given(st.lists(st.floats(-30, 0), min_size=2, max_size=4), st.data())
def test_errors_within_tolerance_never_refuse_a_judgement(logs: list[float], data: st.DataObject) -> None:
    labels = ["yes", "no", "maybe", "never"][: len(logs)]
    nats = 0.02  # per token; each label has one here, and the bound allows for more
    moved = [value + data.draw(st.floats(-nats, nats)) for value in logs]

    def judge(values: list[float]) -> dict[str, Any]:
        top = max(values)
        weights = [math.exp(value - top) for value in values]
        probabilities = {label: weight / sum(weights) for label, weight in zip(labels, weights, strict=True)}
        return {"probabilities": probabilities, "label": max(labels, key=lambda label: probabilities[label])}

    assert differences({"judge": judge(logs)}, {"judge": judge(moved)}, nats_per_token=nats, tokens=4) == ()


def test_probability_bound_is_small_at_certainty_and_largest_in_the_middle() -> None:
    assert probability_bound(0.5, 0.001) == pytest.approx(0.0005, rel=0.01)
    assert probability_bound(1.0, 0.001) < 1e-3
    assert probability_bound(0.0, 0.001) <= 1e-12
