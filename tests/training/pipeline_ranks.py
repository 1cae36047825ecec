"""What tests of the pipeline have each rank do, and the same in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model

from realign_cluster.domain.training import AdapterSettings, FineTune
from realign_cluster.sharding.wire import Wire
from realign_cluster.training.adapters import adapters_off, attach
from realign_cluster.training.dropout import DropoutContext, salt_of
from realign_cluster.training.parallel.base import MicroBatch, Strategy
from realign_cluster.training.parallel.data import DataParallel
from realign_cluster.training.parallel.pipeline import Pipeline
from realign_cluster.training.parallel.stage_pass import StagePass
from realign_cluster.training.parallel.stages import Stage
from realign_cluster.training.setup import checkpoint_blocks

BLOCKS = 5
VOCABULARY = 256
Layers = list[tuple[int, int]]
# Name of the model, how it is trained, bits, blocks of each rank, blocks with adapters from the last, checkpointing.
Case = tuple[str, FineTune, int | None, Layers, int, bool]

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [0],
}
_GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 16, "sliding_window_pattern": 2}
_WINDOWS = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _COMMON | {"model_type": "llama"},
    "llama-tied": _COMMON | {"model_type": "llama", "tie_word_embeddings": True},
    "llama-windows": _COMMON | {"model_type": "llama", "layer_types": _WINDOWS, "sliding_window": 16},
    "mistral": _COMMON | {"model_type": "mistral"},
    "ministral3": _COMMON
    | {
        "model_type": "ministral3",
        "rope_parameters": {
            "rope_theta": 10000.0,
            "type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2": _COMMON | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _COMMON | {"model_type": "qwen3"},
    "qwen3_moe": _COMMON | _EXPERTS | {"model_type": "qwen3_moe"},
    "mixtral": _COMMON | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": _COMMON
    | {
        "model_type": "gpt_oss",
        "layer_types": _WINDOWS,
        "sliding_window": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_scaling": None,
    },
    "gemma": _COMMON | {"model_type": "gemma"},
    "gemma2": _COMMON | _GEMMA | {"model_type": "gemma2"},
    "gemma3_text": _COMMON | _GEMMA | {"model_type": "gemma3_text"},
    "phi3": _COMMON | {"model_type": "phi3"},
    "cohere": _COMMON | {"model_type": "cohere", "logit_scale": 0.5, "layer_norm_eps": 1e-5},
    "granite": _COMMON
    | {
        "model_type": "granite",
        "embedding_multiplier": 2.0,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.7,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "smollm3": _COMMON | {"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0, 1]},
}


def build(name: str, bits: int | None = None) -> nn.Module:
    """The same random weights wherever it is called; 16 bits are bfloat16, fewer quantised."""
    model_class, args_class = _get_classes(CONFIGS[name])
    mx.random.seed(0)
    model = model_class(args_class.from_dict(CONFIGS[name]))
    model.update(tree_map(lambda value: value * 2 if value.ndim > 1 else value, model.parameters()))
    if bits == 16:
        model.set_dtype(mx.bfloat16)
    elif bits is not None:
        nn.quantize(model, group_size=32, bits=bits)
    mx.eval(model.parameters())
    return model


def micro_batch(seed: int, rows: int, length: int, *, packed: bool = False) -> MicroBatch:
    """Each row one sequence; packed: two, of a third and two thirds of the length. Every second token is a target."""
    key = mx.random.key(seed)
    count, sequences = rows * length // 2, 2 * rows if packed else rows
    positions = mx.arange(0, rows * length, 2, dtype=mx.int32)
    at = mx.arange(length) >= length // 3
    inside = mx.broadcast_to(at if packed else mx.zeros(length, dtype=mx.bool_), (rows, length)).astype(mx.int32)
    owners = mx.arange(rows, dtype=mx.int32)[:, None] * (2 if packed else 1) + inside
    return MicroBatch(
        tokens=mx.random.randint(1, VOCABULARY, (rows, length), key=key),
        positions=positions,
        targets=mx.random.randint(1, VOCABULARY, (count,), dtype=mx.int32, key=key),
        owners=mx.take(owners.flatten(), positions),
        lengths=mx.full((sequences,), length // 2, dtype=mx.int32),
        sequences=sequences,
        segments=inside if packed else None,
        keys=mx.arange(rows * length, dtype=mx.uint32).reshape(rows, length) * 31 + seed,
    )


def micro_batches() -> list[MicroBatch]:
    """More than there are stages, of different shapes, some packed."""
    return [
        micro_batch(1, 2, 24),
        micro_batch(2, 1, 48, packed=True),
        micro_batch(3, 1, 40),
        micro_batch(4, 1, 8),
    ]


def objective(log_probabilities: mx.array, batch: MicroBatch) -> tuple[mx.array, mx.array]:
    """Not linear in what it is given, as preference losses are not."""
    sums = mx.zeros(batch.sequences).at[batch.owners].add(log_probabilities)
    loss = mx.square(sums / batch.lengths + 4).sum()
    return loss, mx.stack([loss, mx.array(float(batch.sequences))])


def _settings(adapted: int) -> AdapterSettings:
    return AdapterSettings(rank=4, scale=4.0, dropout=0.2, layers=adapted)


def _moved(parameters: Mapping[str, mx.array], kind: FineTune) -> dict[str, mx.array]:
    """Adapters that change something, the same for a name wherever it is."""
    if kind == "full":
        return dict(parameters)
    return {
        name: value + 0.05 * mx.random.normal(value.shape, key=mx.random.key(salt_of(name)))
        for name, value in parameters.items()
    }


def whole_strategy(case: Case) -> tuple[DataParallel, nn.Module]:
    """Of one process, with adapters moved off their initial values."""
    name, kind, bits, _, adapted, _ = case
    model = build(name, bits)
    strategy = DataParallel(model, dropout=attach(model, _settings(adapted), kind, 7).dropout)
    strategy.update(_moved(strategy.parameters(), kind))
    return strategy, model


def stage_strategy(case: Case, group: mx.distributed.Group) -> tuple[Pipeline, nn.Module]:
    """The same, as this rank's stage."""
    name, kind, bits, layers, adapted, checkpointing = case
    model = build(name, bits)
    adapters = attach(model, _settings(adapted), kind, 7)
    if checkpointing:
        checkpoint_blocks(model)
    strategy = Pipeline(Stage(model, layers, group.rank()), group, dropout=adapters.dropout)
    strategy.update(_moved(strategy.parameters(), kind))
    return strategy, model


def answers(strategy: Strategy) -> dict[str, mx.array]:
    """What a strategy says of many micro-batches, of one and of none, and its gradients of the many by name."""
    batches = micro_batches()
    sums = strategy.gradients(batches, objective, 2)
    one = strategy.gradients(batches[1:2], objective, 2)
    none = strategy.gradients([], objective, 2)
    said = {
        "metrics": sums.metrics,
        "norm squared": strategy.norm_squared(sums.gradients),
        "norm squared of one": strategy.norm_squared(one.gradients),
        "norm squared of none": strategy.norm_squared(none.gradients),
        "metrics of none": none.metrics,
        "losses": strategy.losses(batches, objective, 2),
        "base": mx.concatenate(strategy.log_probabilities(batches)),
    }
    return said | {f"of {name}": value for name, value in sums.gradients.items()}


def trained(strategy: Strategy) -> dict[str, mx.array]:
    """Parameters after two steps. A large epsilon: a small one makes as much of mere rounding as of gradients."""
    optimizer = optim.AdamW(learning_rate=0.01, eps=1e-3)
    for _ in range(2):
        gradients = strategy.gradients(micro_batches(), objective, 2).gradients
        strategy.update(optimizer.apply_gradients(gradients, strategy.parameters()))
    return strategy.parameters()


def answer(group: mx.distributed.Group, cases: Sequence[Case]) -> dict[str, mx.array]:
    """For each case what this stage answers, as "NUMBER stage KEY", and what one process does, as "NUMBER whole KEY"
    (on one of the ranks: the same arithmetic, whatever BLAS the tests themselves run with). And `large_transfers`.
    """
    found = large_transfers(group)
    for number, case in enumerate(cases):
        pipeline, model = stage_strategy(case, group)
        said = generated(pipeline, model) | answers_and_trained(pipeline)
        found |= {f"{number} stage {key}": value for key, value in said.items()}
    for number in range(group.rank(), len(cases), group.size()):
        strategy, model = whole_strategy(cases[number])
        said = generated(strategy, model) | answers_and_trained(strategy)
        found |= {f"{number} whole {key}": value for key, value in said.items()}
    return found


def generated(strategy: Strategy, model: nn.Module) -> dict[str, mx.array]:
    """Logits of the model called with a cache: a prompt longer than a window, then token by token."""
    found = []
    with strategy.callable_model() if isinstance(strategy, Pipeline) else nullcontext():
        cache = make_prompt_cache(model)
        tokens = micro_batch(9, 1, 20).tokens
        for _ in range(4):
            logits = model(tokens, cache=cache)
            found.append(logits.reshape(-1, VOCABULARY))
            tokens = mx.argmax(logits[:, -1:], axis=-1)
        with adapters_off(model):
            found.append(model(micro_batch(9, 1, 8).tokens)[0])
    return {"generated": mx.concatenate(found).astype(mx.float32)}


def answers_and_trained(strategy: Strategy) -> dict[str, mx.array]:
    said = answers(strategy) | {f"trained {name}": value for name, value in trained(strategy).items()}
    return said | {"loss after training": strategy.losses(micro_batches(), objective, 2)}


def peaks(group: mx.distributed.Group, model_folder: str, layers: Layers) -> dict[str, float]:
    """Peak bytes of loading a model and one gradient, as a stage and whole, by kind of training."""
    found: dict[str, float] = {}

    def measure(what: str, kind: FineTune, made: Callable[[nn.Module, DropoutContext], Strategy]) -> None:
        mx.clear_cache()
        mx.reset_peak_memory()
        model, _ = load_model(Path(model_folder), lazy=True)
        strategy = made(model, attach(model, _settings(-1), kind, 7).dropout)
        found[f"{kind} {what} loaded"] = mx.get_peak_memory()
        mx.eval(strategy.gradients(micro_batches(), objective, 2).gradients)
        found[f"{kind} {what} stepped"] = mx.get_peak_memory()

    def stage(model: nn.Module, dropout: DropoutContext) -> Strategy:
        return Pipeline(Stage(model, layers, group.rank()), group, dropout=dropout)

    def whole(model: nn.Module, dropout: DropoutContext) -> Strategy:
        mx.eval(model.parameters())
        return DataParallel(model, dropout=dropout)

    kinds: tuple[FineTune, ...] = ("lora", "full")
    for kind in kinds:
        measure("stage", kind, stage)
        measure("whole", kind, whole)
    return found


class Multiplier:
    """A stage with one weight and no model: large activations that cost nothing to compute."""

    def __init__(self, group: mx.distributed.Group, width: int) -> None:
        self.rank, self.stages, self.width = group.rank(), group.size(), width
        self.first, self.last = self.rank == 0, self.rank == self.stages - 1
        self.takes = self.gives = mx.float32
        self.backward_from = 0
        self.weight = mx.array(float(self.rank + 2))

    def trainable(self) -> dict[str, mx.array]:
        return {"weight": self.weight}

    def hold(self, parameters: Mapping[str, mx.array]) -> None:
        self.weight = parameters["weight"]

    def run(self, batch: MicroBatch, received: mx.array | None) -> mx.array:
        if received is None:
            received = mx.broadcast_to(batch.tokens[..., None].astype(mx.float32), (*batch.tokens.shape, self.width))
        return received * self.weight


def large_transfers(group: mx.distributed.Group) -> dict[str, Any]:
    """Gradient of an element of what comes out, over three micro-batches that no socket's buffers hold (40 MiB)."""
    nothing = mx.zeros((1,), dtype=mx.int32)
    tokens = mx.ones((40, 256), dtype=mx.int32)
    batch = MicroBatch(tokens=tokens, positions=nothing, targets=nothing, owners=nothing, lengths=nothing, sequences=1)
    stage: Any = Multiplier(group, 1024)
    through = StagePass(
        stage, Wire(group), [batch] * 3, lambda found, _: (found[0, 0, 0], found[0, 0, :1]), DropoutContext()
    )
    through.run(lambda: None)
    return {
        "large gradient": through.gradients["weight"],
        "large seen": np.array([float(one.item()) for one in through.metrics]),
    }
