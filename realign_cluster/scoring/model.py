"""Loads a model folder for scoring: checked, hashed, fitted to the memory there is, split into body and head.

Of a group's model the weights stay on disk until it is cut. Safetensors and built-in model types only; no code that
comes with a model is ever run. Knows mlx-lm; must not know jobs' rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_config, load_model, load_tokenizer

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.group import Place, share_of
from realign_cluster.domain.job import ModelSpec, ScoreJob, bytes_beside
from realign_cluster.domain.memory import WHOLE, Fit, MemoryLimit, dtype_of, judge_fit, model_facts
from realign_cluster.scoring import device
from realign_cluster.scoring.adapters import put_adapter, twin
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
    reference: SplitModel | None = None  # what kl compares with


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model as mlx-lm makes it, before it is run. In a group `fit` and `limit` are those of this rank's share."""

    folder: Path
    config: dict[str, Any]
    model: nn.Module
    hash: str
    fit: Fit
    limit: MemoryLimit
    dtype: str  # of the model itself, whatever adapters are in
    started: float  # time.monotonic() when it was begun
    reference: nn.Module | None = None

    @property
    def bytes(self) -> int:
        """Of those that are here."""
        return sum(value.nbytes for _, value in tree_flatten(self.model.parameters()))


def load(folder: Path, job: ScoreJob, others: Mapping[str, Path] = MappingProxyType({})) -> LoadedModel:
    """The model in `folder`, ready to run, with the job's adapter and beside its reference. `others`: their folders by
    hash.

    Raises JobRefused if it is not the job's model, does not fit or cannot be loaded.
    """
    weights = open_weights(folder, job, others=others)
    return complete(weights, job, SplitModel(weights.model))


def open_weights(
    folder: Path,
    job: ScoreJob,
    place: Place | None = None,
    *,
    others: Mapping[str, Path] = MappingProxyType({}),
) -> Weights:
    """Raises JobRefused. With a place in a group nothing is read yet but what the files hold."""
    started = time.monotonic()
    if place is not None and job.whole_model_only:
        raise JobRefused("group", f"{job.whole_model_only}\n  fix: --shard none, or a model that a node holds")
    digest = _verify(folder, job.model)
    config = read_config(folder)
    files = [folder / name for name in check_model_folder(folder)]
    weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    limit = device.find_memory_limit(job.memory_limit_bytes)
    facts = model_facts(config, weights, name=job.model.name, model_hash=digest)
    share = WHOLE if place is None else share_of(facts, place.world, place.rank)
    beside = bytes_beside(job.model, job)
    fit = judge_fit(
        facts, limit, longest_row_tokens=job.max_tokens, backend=device.backend(), share=share, beside_bytes=beside
    )
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
        raise _cannot_load(job.model, config, error) from error
    model.eval()
    dtype = _dtype(config, dict(tree_flatten(model.parameters())))
    reference = _reference(folder, model, job, others) if "kl" in job.kinds else None
    if job.adapter is not None:
        put_adapter(model, _folder_of(job.adapter, others), job.adapter, model_name=job.model.name)
    return Weights(
        folder=folder,
        config=config,
        model=model,
        hash=digest,
        fit=fit,
        limit=limit,
        dtype=dtype,
        started=started,
        reference=reference,
    )


def _reference(folder: Path, model: nn.Module, job: ScoreJob, others: Mapping[str, Path]) -> nn.Module:
    """What kl compares with: another model, or this one's weights without the adapter; with an adapter of its own."""
    spec = job.reference_model or job.model
    if spec.hash == job.model.hash:
        reference = twin(folder, model)
    else:
        _verify(_folder_of(spec, others), spec)
        try:
            reference, _ = load_model(_folder_of(spec, others))
        except Exception as error:  # any model type's own code runs here
            raise _cannot_load(spec, read_config(_folder_of(spec, others)), error) from error
        reference.eval()
    if job.reference_adapter is not None:
        put_adapter(reference, _folder_of(job.reference_adapter, others), job.reference_adapter, model_name=spec.name)
    return reference


def _folder_of(spec: ModelSpec, others: Mapping[str, Path]) -> Path:
    if spec.hash not in others:
        raise JobRefused("model", f"{spec.name} is not on this node\n  fix: run the command again")
    return others[spec.hash]


def complete(weights: Weights, job: ScoreJob, split: SplitModel) -> LoadedModel:
    """With its tokenizer; `split` is of these weights. Raises JobRefused."""
    folder, config = weights.folder, weights.config
    try:
        tokenizer = load_tokenizer(folder, eos_token_ids=load_config(folder).get("eos_token_id"))
    except Exception as error:  # a tokenizer's own code runs here
        raise _cannot_load(job.model, config, error) from error
    if job.chat == "chat" and not has_chat_template(tokenizer):
        raise JobRefused("chat", f"the tokenizer of {job.model.name} has no chat template\n  fix: score with --plain")
    names = [name for name, _ in tree_flatten(weights.model.parameters())]
    reference = SplitModel(weights.reference) if weights.reference is not None else None
    if reference is not None:
        _check_same_vocabulary(split, reference, job)
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
        reference=reference,
    )


def _check_same_vocabulary(split: SplitModel, reference: SplitModel, job: ScoreJob) -> None:
    own, other = (each.model(mx.array([[0]])).shape[-1] for each in (split, reference))
    if own != other:
        name = job.reference_model.name if job.reference_model is not None else job.model.name
        raise JobRefused(
            "reference",
            f"{job.model.name} gives {own} logits a token, the reference {name} gives {other}: their distributions "
            "cannot be compared\n  fix: a reference with the same tokenizer and vocabulary",
        )


def _config_value(config: dict[str, Any], name: str, default: int) -> Any:
    """From the config, or from the text part of a multimodal one."""
    inner = config.get("text_config")
    found = config.get(name, inner.get(name) if isinstance(inner, dict) else None)
    return found if isinstance(found, int) else default


def _verify(folder: Path, spec: ModelSpec) -> str:
    try:
        digest = describe_model(folder).hash
    except UsageError as error:
        raise JobRefused("model", str(error)) from error
    if digest != spec.hash:
        raise JobRefused(
            "model_hash",
            f"the model in {folder} has the hash {digest}, the run's model {spec.name} has {spec.hash}\n"
            "  fix: delete that folder; the node asks for the model again",
        )
    return digest


def _cannot_load(spec: ModelSpec, config: dict[str, Any], error: Exception) -> JobRefused:
    return JobRefused(
        "load",
        f"mlx-lm cannot load {spec.name}: {type(error).__name__}: {error}\n  fix: {_fix_for(config, error)}",
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
