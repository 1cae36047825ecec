from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import LossSettings, Method, TrainJob
from realign_cluster.training.objectives import GlobalCounts, make_objective, mean_metrics, metric_names
from realign_cluster.training.parallel.base import MicroBatch

Floats = npt.NDArray[np.float64]
METHODS: tuple[Method, ...] = ("sft", "dpo", "cdpo", "robust", "ipo", "orpo")
SPEC = ModelSpec(name="none", hash="none")
BETA, SMOOTHING, WEIGHT = 0.3, 0.15, 0.4


def job_of(method: Method, **loss: float) -> TrainJob:
    return TrainJob(method=method, model=SPEC, data=SPEC, steps=1, global_batch=4, loss=LossSettings(**loss))


def batch_of(lengths: list[int], reference: list[float] | None = None) -> MicroBatch:
    """Only what objectives look at is real."""
    owners = [owner for owner, length in enumerate(lengths) for _ in range(max(1, length))]
    nothing = mx.zeros((len(owners),), dtype=mx.int32)
    return MicroBatch(
        tokens=nothing[None],
        positions=nothing,
        targets=nothing,
        owners=mx.array(owners, dtype=mx.int32),
        lengths=mx.array(lengths, dtype=mx.int32),
        sequences=len(lengths),
        reference=None if reference is None else mx.array(reference),
    )


def loss_at(method: Method, values: list[float], lengths: list[int], reference: list[float], **loss: float) -> float:
    counts = GlobalCounts(tokens=sum(lengths[0::2]) if method != "sft" else sum(lengths), pairs=len(lengths) // 2)
    found, _ = make_objective(job_of(method, **loss), counts)(mx.array(values), batch_of(lengths, reference))
    return float(found.item())


# ---- the reference values of the definitions, beta d by beta = 0.1


@pytest.mark.parametrize(("beta_d", "expected"), [(0.0, 0.693147), (1.0, 0.313262), (2.0, 0.126928)])
def test_dpo_is_what_the_definition_gives(beta_d: float, expected: float) -> None:
    # chosen gained 7.5 beta_d over the reference, rejected lost 2.5 beta_d
    values = [-8.0 + 7.5 * beta_d, -6.0 - 2.5 * beta_d]
    assert loss_at("dpo", values, [1, 1], [-8.0, -6.0], beta=0.1) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("method", "expected"), [("cdpo", 0.413262), ("robust", 0.188262)])
def test_smoothed_losses_are_what_the_definition_gives(method: Method, expected: float) -> None:
    found = loss_at(method, [-3.0, -9.0], [1, 1], [-8.0, -4.0], beta=0.1, label_smoothing=0.1)
    assert found == pytest.approx(expected, abs=1e-6)


def test_ipo_divides_every_log_probability_by_its_own_length() -> None:
    # chosen: 4 tokens, sum -6 against -8; rejected: 2 tokens, sum -5 against -4: 0.5 + 0.5 = 1
    found = loss_at("ipo", [-1.0, -1.5, -1.5, -2.0, -2.0, -3.0], [4, 2], [-8.0, -4.0], beta=0.1)
    assert found == pytest.approx(16.0, abs=1e-6)


def test_orpo_term_comes_from_mean_log_probabilities() -> None:
    values, lengths = [-0.25, -0.75, -1.0, -1.5, -0.5], [2, 3]
    counts = GlobalCounts(tokens=2, pairs=1)
    loss, metrics = make_objective(job_of("orpo", orpo_weight=1.0), counts)(mx.array(values), batch_of(lengths))
    assert loss.item() == pytest.approx(0.5 + 0.320300, abs=1e-6)
    means = mean_metrics("orpo", metrics.tolist())
    assert means["margin"] == pytest.approx(0.974077, abs=1e-6)
    assert means["odds_loss"] == pytest.approx(0.320300, abs=1e-6)
    assert means["loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_sft_is_the_mean_over_completion_tokens_of_the_whole_batch() -> None:
    assert loss_at("sft", [-1.0, -2.0, -4.0, -5.0], [1, 3], [0.0, 0.0]) == pytest.approx(3.0, abs=1e-6)


# ---- against the definitions written down again in float64, gradients by finite differences


def loss_again(method: Method, values: Floats, lengths: list[int], reference: Floats, counts: GlobalCounts) -> float:
    ends = np.cumsum(lengths)
    sums = [float(values[end - length : end].sum()) for end, length in zip(ends, lengths, strict=True)]
    if method == "sft":
        return -sum(sums) / counts.tokens

    def softplus(x: float) -> float:
        return max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    total = 0.0
    for first in range(0, len(lengths), 2):
        ours, theirs, tokens = sums[first : first + 2], reference[first : first + 2], lengths[first : first + 2]
        d = (ours[0] - ours[1]) - float(theirs[0] - theirs[1])
        if method == "dpo":
            total += softplus(-BETA * d) / counts.pairs
        elif method == "cdpo":
            total += ((1 - SMOOTHING) * softplus(-BETA * d) + SMOOTHING * softplus(BETA * d)) / counts.pairs
        elif method == "robust":
            both = (1 - SMOOTHING) * softplus(-BETA * d) - SMOOTHING * softplus(BETA * d)
            total += both / (1 - 2 * SMOOTHING) / counts.pairs
        elif method == "ipo":
            gained = [(ours[side] - float(theirs[side])) / tokens[side] for side in (0, 1)]
            total += (gained[0] - gained[1] - 1 / (2 * BETA)) ** 2 / counts.pairs
        else:
            p = [math.exp(ours[side] / tokens[side]) for side in (0, 1)]
            odds = [math.log(chance / (1 - chance)) for chance in p]
            total += WEIGHT * softplus(odds[1] - odds[0]) / counts.pairs - ours[0] / counts.tokens
    return total


def made(method: Method, seed: int) -> tuple[Floats, list[int], Floats, GlobalCounts, Callable[..., Any]]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, size=8).tolist()
    values = random.uniform(-4, -0.05, size=sum(lengths)).astype(np.float32).astype(np.float64)
    reference = random.uniform(-20, -1, size=8).astype(np.float32).astype(np.float64)
    counts = GlobalCounts(tokens=57, pairs=11)  # more than are here: other ranks have the rest
    job = job_of(method, beta=BETA, label_smoothing=SMOOTHING, orpo_weight=WEIGHT)
    return values, lengths, reference, counts, make_objective(job, counts)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_agree_with_float64(method: Method, seed: int) -> None:
    values, lengths, reference, counts, objective = made(method, seed)
    batch = batch_of(lengths, reference.tolist())
    (loss, _), gradient = mx.value_and_grad(objective)(mx.array(values.astype(np.float32)), batch)
    assert loss.item() == pytest.approx(loss_again(method, values, lengths, reference, counts), rel=1e-6)
    step = 1e-6
    expected = np.empty_like(values)
    for at in range(len(values)):
        shift = np.zeros_like(values)
        shift[at] = step
        above = loss_again(method, values + shift, lengths, reference, counts)
        expected[at] = (above - loss_again(method, values - shift, lengths, reference, counts)) / (2 * step)
    assert np.linalg.norm(np.array(gradient) - expected) <= 2e-6 * np.linalg.norm(expected)


# ---- sums over micro-batches, padding, edges


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_sum_to_the_whole(method: Method) -> None:
    values, lengths, reference, _, objective = made(method, 7)
    whole = objective(mx.array(values.astype(np.float32)), batch_of(lengths, reference.tolist()))
    parts = []
    for first, last in ((0, 2), (2, 8)):
        start, end = sum(lengths[:first]), sum(lengths[:last])
        part = batch_of(lengths[first:last], reference[first:last].tolist())
        parts.append(objective(mx.array(values[start:end].astype(np.float32)), part))
    for one, two, both in zip(*parts, whole, strict=True):
        np.testing.assert_allclose(np.array(one) + np.array(two), np.array(both), rtol=2e-6, atol=1e-6)
    assert whole[1].shape == (len(metric_names(method)),)
    assert mean_metrics(method, whole[1].tolist())["loss"] > 0


@pytest.mark.parametrize("reference", [0.0, float("nan")])
@pytest.mark.parametrize("method", METHODS)
def test_padding_contributes_nothing_and_no_nan(method: Method, reference: float) -> None:
    values, lengths, known, _, objective = made(method, 3)
    bare, padded = batch_of(lengths, known.tolist()), batch_of([*lengths, 0, 0], [*known.tolist(), *[reference] * 2])
    own = mx.array(values.astype(np.float32))
    longer = mx.concatenate([own, mx.array([-3.0, 0.0])])  # targets that the padding owns
    (loss, metrics), gradient = mx.value_and_grad(objective)(own, bare)
    (loss_padded, metrics_padded), gradient_padded = mx.value_and_grad(objective)(longer, padded)
    assert loss_padded.item() == loss.item()
    assert metrics_padded.tolist() == metrics.tolist()
    assert gradient_padded.tolist() == [*gradient.tolist(), 0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_padding_is_zero_and_has_no_means(method: Method) -> None:
    objective = make_objective(job_of(method), GlobalCounts(tokens=0, pairs=0))
    (loss, metrics), gradient = mx.value_and_grad(objective)(mx.array([-1.0, -2.0]), batch_of([0, 0], [0.0, 0.0]))
    assert loss.item() == 0
    assert not any(metrics.tolist())
    assert gradient.tolist() == [0.0, 0.0]
    means = mean_metrics(method, metrics.tolist())
    assert "loss" not in means
    assert set(means.values()) == {0.0}


@pytest.mark.parametrize("chosen", [-1e-5, -1e-9, 0.0, 1e-7])
def test_orpo_stays_finite_where_a_completion_is_certain(chosen: float) -> None:
    objective = make_objective(job_of("orpo", orpo_weight=1.0), GlobalCounts(tokens=1, pairs=1))
    for values in ([chosen, -2.0], [-2.0, chosen]):
        (loss, _), gradient = mx.value_and_grad(objective)(mx.array(values), batch_of([1, 1]))
        assert math.isfinite(loss.item())
        assert all(map(math.isfinite, gradient.tolist()))
    odds = math.log(math.exp(-1e-5) / -math.expm1(-1e-5))
    if chosen == -1e-5:
        _, metrics = objective(mx.array([chosen, -2.0]), batch_of([1, 1]))
        assert mean_metrics("orpo", metrics.tolist())["chosen_score"] == pytest.approx(odds, rel=1e-6)


@pytest.mark.parametrize("method", ["dpo", "cdpo", "robust", "orpo"])
def test_extreme_margins_stay_finite(method: Method) -> None:
    objective = make_objective(job_of(method, beta=1.0, label_smoothing=0.1), GlobalCounts(tokens=2, pairs=2))
    batch = batch_of([1, 1, 1, 1], [0.0, 0.0, 0.0, 0.0])
    (loss, _), gradient = mx.value_and_grad(objective)(mx.array([-1e-3, -1e4, -1e4, -1e-3]), batch)
    assert math.isfinite(loss.item())
    assert all(map(math.isfinite, gradient.tolist()))


def test_metrics_of_a_preference_method() -> None:
    objective = make_objective(job_of("dpo", beta=0.5), GlobalCounts(tokens=5, pairs=2))
    batch = batch_of([2, 1, 3, 1], [-4.0, -1.0, -6.0, -2.0])
    _, metrics = objective(mx.array([-1.0, -1.0, -3.0, -2.0, -2.0, -4.0, -1.0]), batch)
    means = mean_metrics("dpo", metrics.tolist())
    assert means["pairs"] == 2
    assert means["accuracy"] == 0.5  # gains 2 against -2, then -2 against 1
    assert means["chosen_score"] == pytest.approx(0.5 * (2 - 2) / 2)
    assert means["rejected_score"] == pytest.approx(0.5 * (-2 + 1) / 2)
    assert means["margin"] == pytest.approx(0.5 * (4 - 3) / 2)
    assert means["chosen_nll"] == pytest.approx((2 + 8) / 5)
    assert means["chosen_tokens"] == 5


def test_beta_factor_scales_beta() -> None:
    counts, batch = GlobalCounts(tokens=2, pairs=1), batch_of([1, 1], [-8.0, -4.0])
    doubled, _ = make_objective(job_of("dpo", beta=0.1), counts, beta_factor=2.0)(mx.array([-3.0, -9.0]), batch)
    assert doubled.item() == pytest.approx(0.126928, abs=1e-6)


@pytest.mark.parametrize("loss", [{"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"beta": 0.0}])
def test_numbers_without_a_loss_are_refused(loss: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        make_objective(job_of("robust", **loss), GlobalCounts(tokens=1, pairs=1))
