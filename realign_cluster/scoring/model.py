"""Loads a model folder for scoring: checked, hashed, fitted to the memory there is, split into body and head.

Of a group's model the weights stay on disk until it is cut. Safetensors and built-in model types only; no code that
comes with a model is ever run. Knows mlx-lm; must not know jobs' rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_config, load_model, load_tokenizer

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.group import Place, share_of
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.memory import WHOLE, Fit, MemoryLimit, dtype_of, judge_fit, model_facts
from realign_cluster.scoring import device
from realign_cluster.scoring.encode import Tokenizer, has_chat_template
from realign_cluster.scoring.errors import JobRefused
from realign_cluster.scoring.head import SplitModel
from realign_cluster.store.model_files import check_model_folder, describe_model, read_config


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    split: SplitModel
    tokenizer: Tokenizer
    hash: str
    dtype: str  # "float32", "bfloat16", "float16", or "4-bit" and the like
    weights_bytes: int
    mixture: bool
    fit: Fit
    limit: MemoryLimit
    load_seconds: float
    vocabulary: int
    longest_tokens: int  # that its positions allow


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model as mlx-lm makes it, before it is run. In a group `fit` and `limit` are those of this rank's share."""

    folder: Path
    config: dict[str, Any]
    model: nn.Module
    hash: str
    fit: Fit
    limit: MemoryLimit
    started: float  # time.monotonic() when it was begun

    @property
    def bytes(self) -> int:
        """Of those that are here."""
        return sum(value.nbytes for _, value in tree_flatten(self.model.parameters()))

    @property
    def dtype(self) -> str:
        return _dtype(self.config, dict(tree_flatten(self.model.parameters())))


def load(folder: Path, job: ScoreJob) -> LoadedModel:
    """The model in `folder`, ready to run. Raises JobRefused if it is not the job's model, does not fit or cannot be
    loaded.
    """
    weights = open_weights(folder, job)
    return complete(weights, job, SplitModel(weights.model))


def open_weights(folder: Path, job: ScoreJob, place: Place | None = None) -> Weights:
    """Raises JobRefused. With a place in a group nothing is read yet but what the files hold."""
    started = time.monotonic()
    digest = _verify(folder, job)
    config = read_config(folder)
    files = [folder / name for name in check_model_folder(folder)]
    weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    limit = device.find_memory_limit(job.memory_limit_bytes)
    facts = model_facts(config, weights, name=job.model.name, model_hash=digest)
    share = WHOLE if place is None else share_of(facts, place.world, place.rank)
    fit = judge_fit(facts, limit, longest_row_tokens=job.max_tokens, backend=device.backend(), share=share)
    if not fit.fits:
        raise JobRefused(
            "memory",
            f"the model {job.model.name}, or this node's share of it, does not fit: {fit.text}\n"
            "  fix: a quantised copy (mlx_lm.convert -q), a smaller --max-tokens, or a node with more memory",
        )
    if place is not None:
        fit = replace(fit, batch_tokens=min(fit.batch_tokens, place.batch_tokens))
    device.apply_memory_limits(limit)
    try:
        model, _ = load_model(folder, lazy=place is not None)
    except Exception as error:  # any model type's own code runs here; the node stays, the job is refused
        raise _cannot_load(job, config, error) from error
    model.eval()
    return Weights(folder=folder, config=config, model=model, hash=digest, fit=fit, limit=limit, started=started)


def complete(weights: Weights, job: ScoreJob, split: SplitModel) -> LoadedModel:
    """With its tokenizer; `split` is of these weights. Raises JobRefused."""
    folder, config = weights.folder, weights.config
    try:
        tokenizer = load_tokenizer(folder, eos_token_ids=load_config(folder).get("eos_token_id"))
    except Exception as error:  # a tokenizer's own code runs here
        raise _cannot_load(job, config, error) from error
    if job.chat == "chat" and not has_chat_template(tokenizer):
        raise JobRefused("chat", f"the tokenizer of {job.model.name} has no chat template\n  fix: score with --plain")
    names = [name for name, _ in tree_flatten(weights.model.parameters())]
    return LoadedModel(
        split=split,
        tokenizer=tokenizer,
        hash=weights.hash,
        dtype=weights.dtype,
        weights_bytes=weights.bytes,
        mixture=any("switch_mlp" in name or "experts" in name for name in names),
        fit=weights.fit,
        limit=weights.limit,
        load_seconds=time.monotonic() - weights.started,
        vocabulary=int(_config_value(config, "vocab_size", 256)),
        longest_tokens=int(_config_value(config, "max_position_embeddings", 2048)),
    )


def _config_value(config: dict[str, Any], name: str, default: int) -> Any:
    """From the config, or from the text part of a multimodal one."""
    inner = config.get("text_config")
    found = config.get(name, inner.get(name) if isinstance(inner, dict) else None)
    return found if isinstance(found, int) else default


def _verify(folder: Path, job: ScoreJob) -> str:
    try:
        digest = describe_model(folder).hash
    except UsageError as error:
        raise JobRefused("model", str(error)) from error
    if digest != job.model.hash:
        raise JobRefused(
            "model_hash",
            f"the model in {folder} has the hash {digest}, the run's model {job.model.name} has {job.model.hash}\n"
            "  fix: delete that folder; the node asks for the model again",
        )
    return digest


def _cannot_load(job: ScoreJob, config: dict[str, Any], error: Exception) -> JobRefused:
    return JobRefused(
        "load",
        f"mlx-lm cannot load {job.model.name}: {type(error).__name__}: {error}\n  fix: {_fix_for(config, error)}",
    )


def _fix_for(config: dict[str, Any], error: Exception) -> str:
    if isinstance(error, ValueError) and "not supported" in str(error):
        return f"model type {config.get('model_type')!r} needs a newer mlx-lm, or is not one that it has"
    return "check that the folder is a complete mlx-lm model: mlx_lm.generate --model FOLDER"


def _dtype(config: dict[str, Any], leaves: dict[str, mx.array]) -> str:
    if any(name.endswith(".scales") for name in leaves):
        return dtype_of(config)
    floating = [value.dtype for value in leaves.values() if mx.issubdtype(value.dtype, mx.floating)]
    return str(max(set(floating), key=floating.count)).removeprefix("mlx.core.") if floating else dtype_of(config)
