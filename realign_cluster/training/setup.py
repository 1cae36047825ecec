"""What a rank loads before it may join: the model, in the dtype of the job, and its tokenizer.

Weights stay on disk until they are used: a rank that will hold a part of the model never reads the rest. Safetensors
and built-in model types only. Must not know steps or ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_config, load_model, load_tokenizer

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.memory import dtype_of
from realign_cluster.domain.training import TrainJob
from realign_cluster.scoring.encode import Tokenizer, has_chat_template
from realign_cluster.store.model_files import describe_model, read_config

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    model: nn.Module
    tokenizer: Tokenizer
    vocabulary: int
    stop_tokens: frozenset[int]
    dtype: str

    @property
    def parameters(self) -> int:
        """Numbers that the weights stand for: of quantised ones, those that they were made from."""
        count = 0
        for module in self.model.modules():
            for name, value in module.items():
                if isinstance(value, mx.array) and name not in ("scales", "biases"):
                    packed = "scales" in module and name == "weight"
                    count += value.size * (32 // module.bits if packed else 1)
        return count


class CannotLoad(RealignError):
    """This job cannot be done with this model, on this node or on any."""


def load(folder: Path, job: TrainJob, progress: Callable[[], None]) -> LoadedModel:
    """The job's model, lazily. `progress` is called with each of its files. Raises CannotLoad or UsageError, with the
    fix.
    """
    if (found := describe_model(folder, progress).hash) != job.model.hash:
        raise CannotLoad(
            f"the model in {folder} has the hash {found}, the run's model {job.model.name} has {job.model.hash}",
            "delete that folder; the node asks for the model again",
        )
    config = read_config(folder)
    try:
        model, _ = load_model(folder, lazy=True)
        progress()
        tokenizer = load_tokenizer(folder, eos_token_ids=load_config(folder).get("eos_token_id"))
    except Exception as error:  # any model type's own code runs here
        raise CannotLoad(
            f"mlx-lm cannot load {job.model.name}: {type(error).__name__}: {error}",
            "check that the folder is a complete mlx-lm model: mlx_lm.generate --model FOLDER",
        ) from error
    if job.chat == "chat" and not has_chat_template(tokenizer):
        raise UsageError(f"the tokenizer of {job.model.name} has no chat template", "train with --plain")
    if job.dtype != "auto":
        model.set_dtype(DTYPES[job.dtype])
    model.train()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        vocabulary=int(_text_config(config).get("vocab_size", 0)) or len(getattr(tokenizer, "vocab", ())),
        stop_tokens=frozenset(getattr(tokenizer, "eos_token_ids", ())),
        dtype=job.dtype if job.dtype != "auto" else dtype_of(config),
    )


def read_weights(model: nn.Module, progress: Callable[[], None]) -> None:
    """Block by block, so that a slow disk is no hang."""
    for block in model.layers:
        mx.eval(block.parameters())
        progress()
    mx.eval(model.parameters())


def checkpoint_blocks(model: nn.Module) -> None:
    """Activations inside a block are computed again in the backward pass, for every type of block there is."""
    from mlx_lm.tuner.trainer import grad_checkpoint

    first: dict[type, Any] = {}
    for block in model.layers:
        first.setdefault(type(block), block)
    for block in first.values():
        grad_checkpoint(block)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
