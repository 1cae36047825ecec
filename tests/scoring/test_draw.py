"""Which token is drawn: the distribution, what top_k and top_p leave, and that both backends draw alike."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from realign_cluster.domain.job import Sampling
from realign_cluster.scoring.draw import draw, draw_on_cpu, uniforms

LOGITS = np.random.default_rng(7).normal(0, 3, size=(64, 300)).astype(np.float32)
NUMBERS = uniforms(1, 0, 64)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(),
        Sampling(temperature=0.3),
        Sampling(temperature=1.7, top_k=5),
        Sampling(top_p=0.6),
        Sampling(temperature=0.8, top_k=40, top_p=0.9),
        Sampling(top_k=100_000),
    ],
)
def test_both_backends_draw_alike(sampling: Sampling) -> None:
    device, cpu = (each(mx.array(LOGITS), NUMBERS, sampling) for each in (draw, draw_on_cpu))
    assert np.array(device.tokens).tolist() == cpu.tokens.tolist()
    assert np.array(device.logprobs) == pytest.approx(np.array(cpu.logprobs), abs=1e-4)
    own = LOGITS.astype(np.float64)
    own -= np.log(np.exp(own).sum(axis=-1, keepdims=True))
    assert cpu.logprobs == pytest.approx(own[np.arange(64), cpu.tokens], abs=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=4, top_p=0.8)])
def test_frequencies_are_the_probabilities(sampling: Sampling) -> None:
    """20,000 draws of one distribution: each frequency within four standard errors of its probability."""
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    weights = np.exp(logits / sampling.temperature)
    if sampling.top_k:
        weights[np.argsort(-weights)[sampling.top_k :]] = 0
        weights /= weights.sum()
        above = np.cumsum(weights) - weights  # they fall already
        weights[above >= sampling.top_p] = 0
    right = weights / weights.sum()
    count = 20_000
    rows = mx.array(np.tile(logits.astype(np.float32), (count, 1)))
    found = np.bincount(draw_on_cpu(rows, uniforms(3, 0, count), sampling).tokens, minlength=6) / count
    assert np.all(np.abs(found - right) <= 4 * np.sqrt(right * (1 - right) / count))


def test_uniform_numbers_belong_to_row_and_sample() -> None:
    numbers = uniforms(11, 2, 1000)
    assert np.all((numbers >= 0) & (numbers < 1))
    assert abs(float(numbers.mean()) - 0.5) < 4 * (1 / 12 / 1000) ** 0.5
    assert uniforms(11, 2, 10).tolist() == numbers[:10].tolist()
    assert uniforms(11, 3, 10).tolist() != numbers[:10].tolist()
    assert uniforms(12, 2, 10).tolist() != numbers[:10].tolist()


def test_a_rows_seed_is_the_runs_and_the_rows() -> None:
    one, other = bytes(16), bytes(15) + b"\1"
    seeds = {Sampling(seed=seed).row_seed(row) for seed in (0, 1) for row in (one, other)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert Sampling(seed=1, temperature=0.2).row_seed(one) == Sampling(seed=1).row_seed(one)
