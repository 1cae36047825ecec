"""KL from the base model: exact over the vocabulary, on what the policy itself draws, as metrics.md defines it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from mlx_lm.utils import load_model

from realign_cluster.domain.training import AdapterSettings
from realign_cluster.training.adapters import adapters_off, attach
from realign_cluster.training.divergence import divergence, sample_completion
from tests.fixtures.models import TINY_MODEL

PROMPTS = [(0, [1, 5, 9]), (3, [7])]
STOP = 2


@pytest.fixture
def policy() -> nn.Module:
    """The tiny model with adapters that change what it says."""
    model, _ = load_model(Path(TINY_MODEL))
    names = attach(model, AdapterSettings(rank=2, scale=2.0, layers=-1), "lora", 1).names
    moved = {name: mx.full(parameter(model, name).shape, 0.02) for name in names if name.endswith("lora_b")}
    model.update(tree_unflatten(list(moved.items())))
    return model


def parameter(model: nn.Module, name: str) -> mx.array:
    found = model
    for part in name.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


def measured(model: nn.Module, reference: nn.Module | None = None) -> tuple[float, int]:
    return divergence(
        model, reference, PROMPTS, new_tokens=6, stop=[STOP], seed=4, step=9, progress=lambda tokens: None
    )


def test_it_is_the_mean_over_drawn_tokens_of_the_exact_divergence(policy: nn.Module) -> None:
    total, count = 0.0, 0
    for number, prompt in PROMPTS:
        drawn = sample_completion(policy, prompt, new_tokens=6, stop=[STOP], key=(4, 9, number))
        assert 1 <= len(drawn) <= 6
        assert STOP not in drawn[:-1]
        tokens = mx.array([prompt + drawn])
        own = np.array(policy(tokens)[0], dtype=np.float64)
        with adapters_off(policy):
            base = np.array(policy(tokens)[0], dtype=np.float64)
        for at in range(len(prompt) - 1, len(prompt) + len(drawn) - 1):
            p, q = (np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in (own[at], base[at]))
            total += float((p * np.log(p / q)).sum())
            count += 1
    assert total > 0.01
    found, tokens_counted = measured(policy)
    assert tokens_counted == count
    assert found == pytest.approx(total, rel=1e-4)


def test_the_base_model_may_be_another_one(policy: nn.Module) -> None:
    base, _ = load_model(Path(TINY_MODEL))
    assert measured(policy, base) == pytest.approx(measured(policy), rel=1e-5)


def test_a_model_is_nothing_away_from_itself() -> None:
    model, _ = load_model(Path(TINY_MODEL))
    attach(model, AdapterSettings(), "lora", 1)
    assert measured(model)[0] == pytest.approx(0.0, abs=1e-6)


def test_ranks_take_the_token_that_they_agree_on(policy: nn.Module) -> None:
    agreed = iter([11, 12, STOP])
    drawn = sample_completion(
        policy, [1, 5], new_tokens=6, stop=[STOP], key=(0, 0, 0), agree=lambda token: next(agreed)
    )
    assert drawn == [11, 12, STOP]
