"""Sizes of a transformer from the dictionary of its config.json: llama-like dense, mixture of experts, latent
attention.

Knows the names config files use for the same thing. Must not read files, and says None rather than guess when a
config is of another family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNGATED_MLP = frozenset(
    {"gpt2", "gpt_neox", "phi", "starcoder2", "gpt_bigcode", "stablelm_epoch", "nemotron", "phi-msft"}
)
CAPPED = frozenset({"gemma2"})  # attention scores and logits go through a tanh, whatever the config names
POST_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text"})  # also what attention and MLP give is normed
# an RMS norm over the head dimension for queries and keys
HEAD_NORMS = frozenset({"qwen3", "qwen3_moe", "gemma3", "gemma3_text"})
QKV_BIAS = frozenset({"qwen2", "qwen2_moe"})  # not named in their configs


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """DeepSeek's MLA: keys and values are cached as one latent per token and layer."""

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    intermediate: int  # of a dense MLP
    tied: bool
    gated: bool = True
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0  # all shared experts together
    mixture_layers: int = 0
    caching_layers: int = 0  # layers whose cache grows with the sequence
    latent: LatentAttention | None = None
    head_norms: bool = False
    qkv_bias: bool = False
    capped: bool = False
    post_norms: bool = False

    @property
    def kv_elements_per_token(self) -> int:
        if self.latent is not None:
            return self.caching_layers * (self.latent.kv_rank + self.latent.rope_dim)
        return self.caching_layers * 2 * self.kv_heads * self.head_dim

    @property
    def active_intermediate(self) -> int:
        """Widest MLP that one token goes through."""
        mixture = self.experts_per_token * self.expert_intermediate + self.shared_intermediate
        return max(self.intermediate if self.mixture_layers < self.layers else 0, mixture if self.mixture_layers else 0)

    @property
    def attention_width(self) -> int:
        return (2 * self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    total: int
    active: int  # that one token's forward pass multiplies with: fewer than total in a mixture
    source: str


def read_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """None when a size this arithmetic needs is missing or not a number (another family of model)."""
    nested = config.get("text_config")
    merged: dict[str, Any] = {**config, **nested} if isinstance(nested, Mapping) else dict(config)
    hidden = _size(merged, "hidden_size", "n_embd", "d_model", "dim")
    layers = _size(merged, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _size(merged, "num_attention_heads", "n_head", "n_heads")
    vocabulary = _size(merged, "vocab_size")
    if hidden is None or layers is None or heads is None or vocabulary is None:
        return None
    model_type = str(merged.get("model_type", ""))
    intermediate = _size(merged, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim") or 4 * hidden
    experts = _size(merged, "num_local_experts", "num_experts", "n_routed_experts") or 0
    expert_intermediate = _size(merged, "moe_intermediate_size", "expert_intermediate_size") or intermediate
    shared = _size(merged, "shared_expert_intermediate_size") or 0
    shared += (_size(merged, "n_shared_experts", "num_shared_experts") or 0) * expert_intermediate
    tied = merged.get("tie_word_embeddings")
    return Architecture(
        model_type=model_type,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=_size(merged, "num_key_value_heads", "num_kv_heads") or heads,
        head_dim=_size(merged, "head_dim") or hidden // heads,
        vocabulary=vocabulary,
        intermediate=intermediate,
        tied=tied if isinstance(tied, bool) else model_type == "gpt2",
        gated=model_type not in UNGATED_MLP,
        experts=experts,
        experts_per_token=(_size(merged, "num_experts_per_tok", "num_experts_per_token", "moe_top_k") or 1)
        if experts
        else 0,
        expert_intermediate=expert_intermediate if experts else 0,
        shared_intermediate=shared if experts else 0,
        mixture_layers=_mixture_layers(merged, layers) if experts else 0,
        caching_layers=_caching_layers(merged, layers),
        latent=_latent(merged),
        head_norms=model_type in HEAD_NORMS,
        qkv_bias=model_type in QKV_BIAS or bool(merged.get("attention_bias")),
        capped=model_type in CAPPED,
        post_norms=model_type in POST_NORMS,
    )


def count_parameters(shape: Architecture) -> Parameters:
    """Weights of embeddings, attention, MLPs or experts, routers and norms. Exact for llama, mixtral and qwen3
    models.
    """
    attention = _attention(shape)
    norms = (4 if shape.post_norms else 2) * shape.hidden
    matrices = 3 if shape.gated else 2
    dense = matrices * shape.hidden * shape.intermediate
    expert = matrices * shape.hidden * shape.expert_intermediate
    around = (
        matrices * shape.hidden * shape.shared_intermediate + shape.hidden * shape.experts
    )  # shared experts, router
    dense_layers = shape.layers - shape.mixture_layers
    embedding = shape.vocabulary * shape.hidden
    head = 0 if shape.tied else embedding
    common = shape.layers * (attention + norms) + dense_layers * dense + shape.mixture_layers * around + shape.hidden
    total = common + shape.mixture_layers * shape.experts * expert + embedding + head
    # A token looks one row of the embedding up and multiplies with the whole output matrix, tied or not.
    active = common + shape.mixture_layers * shape.experts_per_token * expert + embedding
    return Parameters(total=total, active=active, source="its config.json")


def _attention(shape: Architecture) -> int:
    latent = shape.latent
    if latent is not None:
        query_width = shape.heads * (latent.nope_dim + latent.rope_dim)
        query = (
            shape.hidden * query_width
            if latent.q_rank is None
            else shape.hidden * latent.q_rank + latent.q_rank + latent.q_rank * query_width
        )
        down = shape.hidden * (latent.kv_rank + latent.rope_dim) + latent.kv_rank
        up = latent.kv_rank * shape.heads * (latent.nope_dim + latent.value_dim)
        return query + down + up + shape.heads * latent.value_dim * shape.hidden
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = 2 * shape.hidden * wide + 2 * shape.hidden * narrow
    if shape.qkv_bias:
        weights += wide + 2 * narrow
    if shape.head_norms:
        weights += 2 * shape.head_dim
    return weights


def _mixture_layers(config: Mapping[str, Any], layers: int) -> int:
    dense_first = _size(config, "first_k_dense_replace") or 0
    every = _size(config, "decoder_sparse_step", "moe_layer_freq") or 1
    named_dense = config.get("mlp_only_layers")
    dense = set(named_dense) if isinstance(named_dense, list) else set()
    # decoder_sparse_step counts from one (qwen), moe_layer_freq from zero (deepseek); both are 1 in every released
    # model
    return sum(1 for layer in range(layers) if layer >= dense_first and layer not in dense and (layer + 1) % every == 0)


def _caching_layers(config: Mapping[str, Any], layers: int) -> int:
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        return sum(1 for kind in types if kind not in ("linear_attention", "mamba", "recurrent"))
    every = _size(config, "full_attention_interval")
    return layers // every if every else layers


def _latent(config: Mapping[str, Any]) -> LatentAttention | None:
    kv_rank = _size(config, "kv_lora_rank")
    rope = _size(config, "qk_rope_head_dim")
    nope = _size(config, "qk_nope_head_dim")
    value = _size(config, "v_head_dim")
    if kv_rank is None or rope is None or nope is None or value is None:
        return None
    return LatentAttention(
        q_rank=_size(config, "q_lora_rank"), kv_rank=kv_rank, nope_dim=nope, rope_dim=rope, value_dim=value
    )


def _size(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of `names` that holds a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
