"""Puts a trained adapter on a loaded model, and makes the second model that is compared with it, on the same weights.

mlx-lm's own adapter layers do the work. Must not know jobs' rows or kinds.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelSpec
from realign_cluster.scoring.errors import JobRefused
from realign_cluster.store.adapter_files import describe_adapter

LISTED_DIFFERENCES = 3


def put_adapter(model: nn.Module, folder: Path, spec: ModelSpec, *, model_name: str) -> None:
    """Changes `model` in place; it computes as without dropout. Raises JobRefused, naming what does not fit."""
    try:
        found = describe_adapter(folder)
    except UsageError as error:
        raise JobRefused("adapter", error.message + f"\n  fix: {error.fix}") from error
    if found.hash != spec.hash:
        raise JobRefused(
            "model_hash",
            f"the adapter in {folder} has the hash {found.hash}, the run's adapter {spec.name} has {spec.hash}\n"
            "  fix: delete that folder; the node asks for it again",
        )
    try:
        load_adapters(model, str(folder))
    except Exception as error:  # mlx-lm raises what it likes for layers that are not there
        raise JobRefused(
            "adapter",
            f"the adapter {spec.name} does not fit the model {model_name}: {_difference(error)}\n"
            "  fix: give the model that it was trained on (adapter_config.json names it)",
        ) from error
    model.eval()
    mx.eval(model.parameters())


def twin(folder: Path, model: nn.Module) -> nn.Module:
    """Another model of the same weights, which are not read or held again. To be made before an adapter is put on."""
    other, _ = load_model(folder, lazy=True)
    other.update(model.parameters())
    other.eval()
    return other


def _difference(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2:
        return f"{type(error).__name__}: {error}"
    shown, more = sorted(lines[1:])[:LISTED_DIFFERENCES], len(lines) - 1 - LISTED_DIFFERENCES
    return "; ".join(shown) + (f" (and {more} more)" if more > 0 else "")
