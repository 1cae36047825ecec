"""Of which models the memory plan is measured besides the llama: what each changes of it. Arrays of megabytes, made."""

from __future__ import annotations

from typing import Any

QWEN2: dict[str, Any] = {"model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": 32768}
GEMMA2 = {**QWEN2, "model_type": "gemma2", "head_dim": 64, "query_pre_attn_scalar": 64}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 384}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "head_dim": 64,
    "moe_intermediate_size": 256,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
FOUR_BITS = {"quantization": {"group_size": 64, "bits": 4}}
