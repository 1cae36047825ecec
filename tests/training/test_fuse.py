"""A model with adapters put into its weights answers as the model with its adapters beside it."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters, load_model

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import AdapterSettings, FineTune, TrainJob
from realign_cluster.training.adapters import attach, save_adapters
from realign_cluster.training.dropout import salt_of
from realign_cluster.training.fuse import main
from tests.fixtures.models import make_model

TOKENS = mx.random.randint(1, 2000, (3, 24), key=mx.random.key(1))


def log_likelihoods(model: nn.Module) -> mx.array:
    """Of every next token."""
    model.eval()
    logits = model(TOKENS[:, :-1]).astype(mx.float32)
    return -nn.losses.cross_entropy(logits, TOKENS[:, 1:], reduction="none")


def make_adapters(base: Path, out: Path, kind: FineTune) -> None:
    """As a training leaves them, of weights that moved off their first values."""
    model, _ = load_model(base)
    spec = ModelSpec(name="made", hash="0" * 32)
    settings = AdapterSettings(rank=4, scale=8.0, layers=-1, dropout=0.1)
    job = TrainJob(model=spec, data=spec, fine_tune=kind, adapter=settings, steps=1, global_batch=1)
    attach(model, settings, kind, seed=0)
    moved = {
        name: value + 0.05 * mx.random.normal(value.shape, key=mx.random.key(salt_of(name)))
        for name, value in tree_flatten(model.trainable_parameters())
    }
    save_adapters(out, moved, job)


@pytest.mark.parametrize(
    ("name", "kind", "bits", "within"),
    [
        ("llama-tied", "lora", None, 1e-4),
        ("qwen2", "dora", None, 1e-4),
        ("mixtral", "lora", None, 1e-4),
        ("llama", "lora", 8, 0.2),  # rounded to 8 bits again
    ],
)
def test_fused_is_as_beside(tmp_path: Path, name: str, kind: FineTune, bits: int | None, within: float) -> None:
    base, adapters, out = make_model(tmp_path / "base", name, bits=bits), tmp_path / "adapters", tmp_path / "out"
    make_adapters(base, adapters, kind)
    assert main(["--model", str(base), "--adapters", str(adapters), "--out", str(out)]) == 0
    fused, config = load_model(out)
    assert not [path for path, _ in tree_flatten(fused.parameters()) if "lora" in path]
    said, known = (json.loads((folder / "config.json").read_text()) for folder in (out, base))
    assert {key: said[key] for key in known} == known
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert ("quantization" in config) == (bits is not None)

    plain, _ = load_model(base)
    before = log_likelihoods(plain)
    beside = log_likelihoods(load_adapters(plain, str(adapters)))
    assert mx.abs(beside - before).max() > 1.0, "the adapters change nothing"
    assert mx.abs(log_likelihoods(fused) - beside).max() < within
