"""What tests of tensor parallelism have each rank do, and the same without shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map
from mlx_lm.utils import _get_classes, load_model

from realign_cluster.domain.training import AdapterSettings, FineTune
from realign_cluster.training.adapters import attach
from realign_cluster.training.dropout import salt_of
from realign_cluster.training.parallel.base import MicroBatch, Strategy
from realign_cluster.training.parallel.data import DataParallel
from realign_cluster.training.parallel.sharded_model import ShardedModel
from realign_cluster.training.parallel.tensor import TensorParallel
from realign_cluster.training.pieces import cut, gather

VOCABULARY = 256
SETTINGS = AdapterSettings(rank=4, scale=4.0, dropout=0.2, layers=-1)

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _COMMON | {"model_type": "llama"},
    "llama-tied": _COMMON
    | {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": _COMMON | {"model_type": "mistral"},
    "qwen2": _COMMON | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _COMMON | {"model_type": "qwen3"},
    "ministral3": _COMMON
    | {
        "model_type": "ministral3",
        "rope_parameters": {
            "rope_theta": 10000.0,
            "type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 2048,
        },
    },
    "qwen3_moe": _COMMON | _EXPERTS | {"model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": [0]},
    "gpt_oss": _COMMON
    | _SLIDING
    | {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": None},
    "exaone_moe": _COMMON
    | _EXPERTS
    | _SLIDING
    | {
        "model_type": "exaone_moe",
        "num_shared_experts": 1,
        "is_moe_layer": [False, True],
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
    },
    "glm4_moe": _COMMON
    | {
        "model_type": "glm4_moe",
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "use_qk_norm": True,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
    },
}


def build(name: str, bits: int | None) -> nn.Module:
    """The same random weights wherever it is called."""
    model_class, args_class = _get_classes(CONFIGS[name])
    mx.random.seed(0)
    model = model_class(args_class.from_dict(CONFIGS[name]))
    model.update(
        tree_map(
            lambda value: 2 * value if value.ndim > 1 else value + 0.1 * mx.random.normal(value.shape),
            model.parameters(),
        )
    )
    if bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def micro_batches() -> list[MicroBatch]:
    """Two, of different shapes, with dropout keys."""
    batches = []
    for seed, rows, length in ((1, 3, 24), (2, 2, 40)):
        drawn = mx.random.key(seed)
        count = rows * length // 2
        batches.append(
            MicroBatch(
                tokens=mx.random.randint(1, VOCABULARY, (rows, length), key=drawn),
                positions=mx.arange(0, rows * length, 2, dtype=mx.int32),
                targets=mx.random.randint(1, VOCABULARY, (count,), dtype=mx.int32, key=drawn),
                owners=mx.arange(count, dtype=mx.int32) * 2 // length,
                lengths=mx.full((rows,), length // 2, dtype=mx.int32),
                sequences=rows,
                keys=mx.arange(rows * length, dtype=mx.uint32).reshape(rows, length) * 31 + seed,
            )
        )
    return batches


def objective(log_probabilities: mx.array, batch: MicroBatch) -> tuple[mx.array, mx.array]:
    return -log_probabilities.sum() / 76, mx.stack([-log_probabilities.sum() / 76, mx.array(float(batch.sequences))])


def whole_strategy(name: str, kind: FineTune, bits: int | None) -> tuple[DataParallel, nn.Module]:
    """Of one process, with adapters moved off their initial values."""
    model = build(name, bits)
    strategy = DataParallel(model, dropout=attach(model, SETTINGS, kind, 7).dropout)
    strategy.update({name: moved(name, value, kind) for name, value in strategy.parameters().items()})
    return strategy, model


def sharded_strategy(
    name: str, kind: FineTune, bits: int | None, group: mx.distributed.Group
) -> tuple[TensorParallel, nn.Module]:
    """The same, as this rank's shard."""
    model = build(name, bits)
    strategy = TensorParallel(ShardedModel(model, SETTINGS, kind, 7, group))
    pieces = strategy.pieces()
    whole = gather(strategy.parameters(), pieces, group)
    strategy.update({name: cut(moved(name, value, kind), pieces[name]) for name, value in whole.items()})
    return strategy, model


def moved(name: str, value: mx.array, kind: FineTune) -> mx.array:
    return value if kind == "full" else value + 0.05 * mx.random.normal(value.shape, key=mx.random.key(salt_of(name)))


def answers(strategy: Strategy, model: nn.Module) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """What a strategy says of the micro-batches, and this rank's gradients."""
    batches = micro_batches()
    sums = strategy.gradients(batches, objective, 2)
    said = {
        "metrics": sums.metrics,
        "norm": strategy.norm_squared(sums.gradients),
        "losses": strategy.losses(batches, objective, 2),
        "base": mx.concatenate(strategy.log_probabilities(batches)),
        "logits": model(batches[0].tokens),
    }
    return said, sums.gradients


def train(strategy: Strategy, steps: int) -> None:
    """Adam with a large epsilon: a small one makes as much of gradients that are mere rounding as of others."""
    optimizer = optim.AdamW(learning_rate=0.01, eps=1e-3)
    for _ in range(steps):
        gradients = strategy.gradients(micro_batches(), objective, 2).gradients
        strategy.update(optimizer.apply_gradients(gradients, strategy.parameters()))


def answer(group: mx.distributed.Group, cases: Sequence[tuple[str, FineTune, int | None]]) -> dict[str, mx.array]:
    """For each model, kind and number of bits: answers, and whole gradients as "of NAME"."""
    found = {}
    for case in cases:
        strategy, model = sharded_strategy(*case, group)
        said, gradients = answers(strategy, model)
        whole = gather(gradients, strategy.pieces(), group)
        found |= prefixed(case, said | {f"of {name}": value for name, value in whole.items()})
    return found


def train_three(group: mx.distributed.Group, cases: Sequence[tuple[str, FineTune, int | None]]) -> dict[str, mx.array]:
    """Whole parameters after three steps."""
    found = {}
    for case in cases:
        strategy, _ = sharded_strategy(*case, group)
        train(strategy, 3)
        found |= prefixed(case, gather(strategy.parameters(), strategy.pieces(), group))
    return found


def prefixed(case: Sequence[object], values: Mapping[str, Any]) -> dict[str, Any]:
    return {" ".join(map(str, [*case, key])): value for key, value in values.items()}


def peaks(group: mx.distributed.Group, model_folder: str, kind: FineTune) -> dict[str, float]:
    """Peak bytes of loading a model and one gradient, unsharded and then as a shard."""

    def measure(sharded: bool) -> dict[str, float]:
        mx.reset_peak_memory()
        model, _ = load_model(Path(model_folder), lazy=True)
        if sharded:
            strategy: Strategy = TensorParallel(ShardedModel(model, SETTINGS, kind, 7, group))
        else:
            strategy = DataParallel(model, dropout=attach(model, SETTINGS, kind, 7).dropout)
            mx.eval(model.parameters())
        loaded = mx.get_peak_memory()
        mx.eval(strategy.gradients(micro_batches(), objective, 2).gradients)
        return {"loaded": loaded, "stepped": mx.get_peak_memory()}

    whole, shard = measure(sharded=False), measure(sharded=True)
    return prefixed(["whole"], whole) | prefixed(["shard"], shard)
