from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.domain.divisibility import check_divisible

CONFIGS = Path(__file__).parents[1] / "fixtures" / "configs"


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text()) | changes


@pytest.mark.parametrize(("name", "ranks"), [("llama-3.1-70b", 2), ("llama-3.1-405b", 8), ("qwen3-30b-a3b", 4)])
def test_known_models_can_be_cut(name: str, ranks: int) -> None:
    assert check_divisible(config_of(name), ranks) == ()


def test_every_dimension_in_the_way_is_named() -> None:
    """64 heads, 8 key-value heads, an intermediate width of 28672."""
    assert check_divisible(config_of("llama-3.1-70b"), 3) == (
        "num_attention_heads 64 is not divisible by 3 ranks",
        "num_key_value_heads 8 is not divisible by 3 ranks",
        "intermediate_size 28672 is not divisible by 3 ranks",
    )
    assert check_divisible(config_of("llama-3.1-70b"), 16) == ("num_key_value_heads 8 is not divisible by 16 ranks",)


def test_key_value_heads_default_to_all_heads() -> None:
    config = config_of("llama-3.1-70b")
    del config["num_key_value_heads"]
    assert check_divisible(config, 16) == ()


def test_widths_of_experts_count() -> None:
    (message,) = check_divisible(config_of("qwen3-30b-a3b", moe_intermediate_size=770), 4)
    assert message == "moe_intermediate_size 770 is not divisible by 4 ranks"


def test_types_without_verified_gradients_are_refused() -> None:
    (message,) = check_divisible(config_of("deepseek-v3"), 2)
    assert message.startswith("models of type deepseek_v3 cannot be trained in shards, only exaone_moe, ")


@pytest.mark.parametrize(("width", "fits"), [(28672, True), (28672 + 64, False)])
def test_quantisation_groups_are_not_cut(width: int, fits: bool) -> None:
    config = config_of("llama-3.1-70b", intermediate_size=width, quantization={"group_size": 64, "bits": 4})
    expected = () if fits else ("intermediate_size 28736 over 2 ranks does not end between quantisation groups of 64",)
    assert check_divisible(config, 2) == expected
