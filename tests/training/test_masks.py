"""Which models may have rows packed into one sequence: those for which that changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx_lm.utils import load_model

from realign_cluster.training.masks import takes_segments
from tests.fixtures import models
from tests.fixtures.models import make_model

ABSOLUTE = {
    "model_type": "gpt2",
    "n_ctx": 64,
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 2,
    "n_positions": 64,
    "num_key_value_heads": 2,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": models.VOCABULARY,
}


@pytest.mark.parametrize(
    ("kind", "takes"),
    [("llama-tied", True), ("gemma3_text", True), ("qwen2_moe", True), ("mamba", False), ("absolute", False)],
)
def test_models_with_absolute_positions_or_a_running_state_are_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, takes: bool
) -> None:
    monkeypatch.setitem(models.CONFIGS, "absolute", ABSOLUTE)
    model, _ = load_model(make_model(tmp_path / "model", kind))
    assert takes_segments(model) == takes
