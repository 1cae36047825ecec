"""KL as callers get it, from a process of its own: the exact one, on what the policy draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model, load_tokenizer

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import AdapterSettings, TrainJob
from realign_cluster.training.adapters import attach, save_adapters
from realign_cluster.training.divergence import sample_completion
from realign_cluster.training_metrics import kl_divergence
from tests.fixtures.models import TINY_MODEL, make_model

PROMPTS = ["Why is the sky blue?", "What does a node do?"]
NO_SPEC = ModelSpec(name="tiny", hash="0" * 32)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes what the tiny model says, in the files that a training writes."""
    folder = tmp_path_factory.mktemp("adapter")
    settings = AdapterSettings(rank=2, scale=2.0, layers=-1)
    job = TrainJob(model=NO_SPEC, data=NO_SPEC, steps=1, global_batch=1, adapter=settings)
    model, _ = load_model(Path(TINY_MODEL))
    names = attach(model, settings, "lora", 1).names
    parameters = dict(tree_flatten(model.trainable_parameters()))
    assert set(parameters) == set(names)
    moved = {
        name: mx.full(value.shape, 0.03) if name.endswith("lora_b") else value for name, value in parameters.items()
    }
    save_adapters(folder, moved, job)
    return folder


def log_probabilities(model: Any, tokens: list[int]) -> Any:
    logits = np.array(model(mx.array([tokens]))[0].astype(mx.float32), dtype=np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_an_adapters_divergence_is_the_exact_one(adapter: Path, write: Callable[..., Path]) -> None:
    path = write("prompts.jsonl", [{"q": prompt} for prompt in (*PROMPTS, "One too many")])
    found = kl_divergence(
        TINY_MODEL, path, prompt_field="q", limit=2, adapter=adapter, chat="plain", new_tokens=8, seed=5, cores=1
    )
    assert (found.prompts, len(found.by_prompt)) == (2, 2)
    base, _ = load_model(Path(TINY_MODEL))
    policy, _ = load_model(Path(TINY_MODEL))
    linear_to_lora_layers(policy, -1, {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": None})
    policy.load_weights(str(adapter / "adapters.safetensors"), strict=False)
    policy.eval()
    tokenizer = load_tokenizer(Path(TINY_MODEL))
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer.encode(prompt)
        drawn = sample_completion(policy, ids, new_tokens=8, stop=tokenizer.eos_token_ids, key=(5, 0, number))
        pi, ref = (log_probabilities(model, [*ids, *drawn])[len(ids) - 1 : -1] for model in (policy, base))
        total, tokens = found.by_prompt[number]
        assert tokens == len(drawn)
        assert total == pytest.approx(float((np.exp(pi) * (pi - ref)).sum()), rel=1e-3)
    assert found.nats_per_token is not None
    assert found.nats_per_token > 0.01
    assert found.nats_per_token == pytest.approx(sum(total for total, _ in found.by_prompt) / found.tokens)
    assert found.within_budget == (found.nats_per_token <= 0.1)


def test_what_cannot_be_measured(adapter: Path, write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("prompts.jsonl", [{"q": prompt} for prompt in PROMPTS])
    with pytest.raises(UsageError, match="compared with itself"):
        kl_divergence(TINY_MODEL, PROMPTS)
    with pytest.raises(UsageError, match="holds no adapter"):
        kl_divergence(TINY_MODEL, PROMPTS, adapter=tmp_path)
    with pytest.raises(UsageError, match=r"prompts.jsonl:1: prompt: missing"):
        kl_divergence(TINY_MODEL, path, adapter=adapter)
    with pytest.raises(UsageError, match="are no texts"):
        kl_divergence(TINY_MODEL, [], adapter=adapter)


def test_models_of_other_vocabularies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fixtures import models

    monkeypatch.setitem(models.CONFIGS, "narrow", models.CONFIGS["llama-tied"] | {"vocab_size": 1024})
    narrow = make_model(tmp_path / "narrow", "narrow")
    with pytest.raises(UsageError, match="vocabularies of 2048 and 1024 tokens") as refused:
        kl_divergence(TINY_MODEL, PROMPTS, reference=narrow, cores=1)
    assert refused.value.fix.startswith("compare a model with the one")
