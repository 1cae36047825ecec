"""Models with adapters, and how far they are from models without: against mlx-lm's own loading, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.tuner.utils import load_adapters

from realign_cluster.domain.job import ModelSpec
from realign_cluster.scoring.errors import JobRefused
from realign_cluster.scoring.model import load
from realign_cluster.scoring.model_session import make_scorer
from realign_cluster.store.adapter_files import describe_adapter
from realign_cluster.store.model_files import describe_model
from tests.fixtures.models import make_adapter
from tests.scoring.making import make_job, score
from tests.scoring.reference import Floats, Reference

ROWS = [
    {"prompt": "Name a prime number.", "response": "Seven is a prime number, and so is eleven."},
    {"prompt": "Why?", "response": "Because."},
    {"prompt": "List five nodes. " * 20, "response": "1. amber. 2. basalt. 3. cedar. " * 6},
]


def scores_of(folder: Path, *kinds: str, others: Mapping[str, tuple[ModelSpec, Path]], **options: Any) -> Any:
    """`others`: what the job calls adapter, reference_model, reference_adapter, with their folders."""
    named = {name: spec for name, (spec, _) in others.items()}
    job = make_job(folder, *kinds, chat="plain", batch_tokens=128, **named, **options)
    folders = {spec.hash: place for spec, place in others.values()}
    found, _ = score(make_scorer(job, load(folder, job, folders)), ROWS)
    return found


def adapted(folder: Path, adapter: Path) -> Reference:
    reference = Reference(folder)
    load_adapters(reference.model, str(adapter))
    reference.model.eval()
    return reference


def log_softmax(reference: Reference, ids: list[int]) -> Floats:
    import mlx.core as mx

    logits = np.array(reference.model(mx.array([ids]))[0].astype(mx.float32)).astype(np.float64)
    highest = logits.max(axis=-1, keepdims=True)
    result: Floats = logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
    return result


def kl(model: Reference, other: Reference, row: Mapping[str, str]) -> Floats:
    ids, before = (model.ids(text, special=True) for text in (row["prompt"] + row["response"], row["prompt"]))
    start = next(at for at in range(len(ids)) if before[at : at + 1] != ids[at : at + 1])
    own, reference = (log_softmax(each, ids)[start - 1 : -1] for each in (model, other))
    result: Floats = (np.exp(own) * (own - reference)).sum(axis=-1)
    return result


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_a_model_scores_with_its_adapter(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / kind, tiny_model, kind)
    others = {"adapter": (describe_adapter(folder), folder)}
    with_adapter = scores_of(tiny_model, "loglik", "kl", others=others)
    plain = scores_of(tiny_model, "loglik", others={})
    peer, base = adapted(tiny_model, folder), Reference(tiny_model)
    for row, found, without in zip(ROWS, with_adapter, plain, strict=True):
        right = peer.completion(row["prompt"], row["response"], chat=False)
        assert found["loglik"]["mean"] == pytest.approx(right.mean(), abs=1e-4)
        assert abs(found["loglik"]["mean"] - without["loglik"]["mean"]) > 1e-3
        divergence = kl(peer, base, row)
        assert found["kl"]["tokens"] == len(divergence)
        assert found["kl"]["sum"] == pytest.approx(divergence.sum(), rel=1e-3, abs=1e-4)
        assert found["kl"]["mean"] == pytest.approx(divergence.mean(), rel=1e-3, abs=1e-5)
        assert found["kl"]["mean"] > 1e-3


def test_kl_with_another_reference(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Another model, one with an adapter, and the model itself, from which it is at no distance."""
    model, other = model_folder("llama"), model_folder("qwen3")
    adapter = make_adapter(tmp_path / "adapter", model)
    named = (describe_adapter(adapter), adapter)
    found = scores_of(model, "kl", others={"reference_model": (describe_model(other), other)})
    for row, scores in zip(ROWS, found, strict=True):
        right = kl(Reference(model), Reference(other), row)
        assert scores["kl"]["mean"] == pytest.approx(right.mean(), rel=1e-3)
    found = scores_of(model, "kl", others={"reference_adapter": named}, reproducible=True)
    for row, scores in zip(ROWS, found, strict=True):
        right = kl(Reference(model), adapted(model, adapter), row)
        assert scores["kl"]["mean"] == pytest.approx(right.mean(), rel=1e-3)
    for scores in scores_of(model, "kl", others={"adapter": named, "reference_adapter": named}):
        assert scores["kl"]["sum"] == pytest.approx(0.0, abs=1e-4)


def test_an_adapter_goes_on_a_quantised_model(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    model = model_folder("llama", 4)
    adapter = make_adapter(tmp_path / "adapter", model)
    found = scores_of(model, "loglik", "kl", others={"adapter": (describe_adapter(adapter), adapter)})
    peer = adapted(model, adapter)
    for row, scores in zip(ROWS, found, strict=True):
        assert scores["loglik"]["mean"] == pytest.approx(
            peer.completion(row["prompt"], row["response"], chat=False).mean(), abs=0.02
        )
        assert scores["kl"]["mean"] == pytest.approx(kl(peer, Reference(model), row).mean(), rel=0.05)


def test_an_adapter_of_another_model_is_refused_by_its_differences(
    model_folder: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", model_folder("llama-deep"))
    spec = describe_adapter(adapter)
    with pytest.raises(
        JobRefused, match=r"adapter does not fit the model tiny-model.*lora_a.*does not match"
    ) as refused:
        scores_of(tiny_model, "loglik", others={"adapter": (spec, adapter)})
    assert refused.value.code == "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"num_layers": 1}))
    with pytest.raises(JobRefused, match="has the hash"):
        scores_of(model_folder("llama-deep"), "loglik", others={"adapter": (spec, adapter)})


def test_a_reference_with_another_vocabulary_is_refused(
    model_folder: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    import mlx.core as mx

    other = Path(shutil.copytree(model_folder("llama"), tmp_path / "other"))
    weights = mx.load(str(other / "model.safetensors"))
    weights |= {name: value[:100] for name, value in weights.items() if value.shape[0] == 2048}  # type: ignore[union-attr]
    mx.save_safetensors(str(other / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(JobRefused, match="gives 2048 logits a token, the reference other gives 100"):
        scores_of(tiny_model, "kl", others={"reference_model": (describe_model(other), other)})
