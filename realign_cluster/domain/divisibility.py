"""Whether a model can be cut between ranks for tensor parallelism, judged from its config.json before anything starts.

Heads and intermediate widths are cut into equal parts, and the weights of a quantised layer between groups that share a
scale. The hidden width is never cut. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Types that mlx-lm shards and whose gradients were compared with the unsharded model's. Of the others some lose
# gradients: latent attention and norms over all heads were not made for training in shards.
TENSOR_MODEL_TYPES = frozenset(
    {
        "exaone_moe",
        "glm4_moe",
        "gpt_oss",
        "iquestcoder",
        "llama",
        "ministral3",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "xverse",
    }
)
_WIDTHS = ("intermediate_size", "moe_intermediate_size")


def check_divisible(config: Mapping[str, Any], ranks: int) -> tuple[str, ...]:
    """What is in the way of cutting this model between `ranks`, each with its numbers; nothing: it can be done."""
    found = [f"{name} {size} is not divisible by {ranks} ranks" for name, size in _sizes(config) if size % ranks]
    if config.get("model_type") not in TENSOR_MODEL_TYPES:
        known = ", ".join(sorted(TENSOR_MODEL_TYPES))
        found.insert(0, f"models of type {config.get('model_type')} cannot be trained in shards, only {known}")
    quantisation = config.get("quantization")
    group = quantisation.get("group_size") if isinstance(quantisation, Mapping) else None
    if isinstance(group, int) and not found:
        found = [
            f"{name} {size} over {ranks} ranks does not end between quantisation groups of {group}"
            for name, size in _inner_widths(config)
            if size % (ranks * group)
        ]
    return tuple(found)


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    heads = config.get("num_attention_heads")
    for name, size in (
        ("num_attention_heads", heads),
        ("num_key_value_heads", config.get("num_key_value_heads") or heads),
        *((name, config.get(name)) for name in _WIDTHS),
    ):
        if isinstance(size, int):
            yield name, size


def _inner_widths(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Inputs of the layers that are cut along their inputs."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int):
        yield "the width of all heads", heads * int(config.get("head_dim") or hidden // heads)
    for name in _WIDTHS:
        if isinstance(size := config.get(name), int):
            yield name, size
