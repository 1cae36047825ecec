"""Which parameters of a model are trained: adapters attached to its linear layers, or all of them; and adapters' files.

What is written loads with mlx_lm.load(adapter_path=...) and fuses with mlx_lm.fuse. Must not know steps or optimizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import AdapterSettings, FineTune, TrainJob
from realign_cluster.store.durable import durable_file, write_durably
from realign_cluster.training.adapter_layers import (
    LINEAR,
    SWITCH,
    Adapter,
    DoraLinear,
    LoraLinear,
    LoraSwitch,
    Site,
    whole_site,
)
from realign_cluster.training.dropout import DropoutContext, remember_routing

WEIGHTS_FILE, CONFIG_FILE = "adapters.safetensors", "adapter_config.json"
# The first number in a parameter's path is its block's; a module's path within the block follows.
_ADAPTER_NAME = re.compile(r"^\D.*?\.\d+\.(?P<key>.+)\.(?:lora_a|lora_b|m)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What `attach` made trainable. Run forward and backward passes within `dropout.keyed(batch.keys)`."""

    kind: FineTune
    names: tuple[str, ...]  # of the trainable parameters, sorted
    dropout: DropoutContext


def attach(
    model: nn.Module,
    settings: AdapterSettings,
    kind: FineTune,
    seed: int,
    *,
    linear_types: tuple[type, ...] = LINEAR,
    site_of: Callable[[str, nn.Module], Site] = whole_site,
) -> Adapters:
    """Changes `model` in place: adapters on the chosen layers of its last blocks, everything else frozen.

    Computes nothing yet. "full" makes all floating-point parameters trainable. A sharded model brings its own
    `linear_types` and says by `site_of(path, layer)` what of a layer is here. Raises UsageError for keys that name no
    layer, and for what cannot be trained that way.
    """
    dropout = DropoutContext()
    if kind == "full":
        _unfreeze_all(model)
    else:
        model.freeze()
        paths = {id(module): path for path, module in model.named_modules()}
        blocks = model.layers[-max(settings.layers, 0) :]  # as mlx-lm counts: 0 and -1 are all
        chosen = [(block, _choose(block, settings.keys, linear_types)) for block in blocks]
        _check_keys(settings.keys, chosen, blocks, linear_types)
        for block, layers in chosen:
            for key, layer in layers.items():
                site = site_of(f"{paths[id(block)]}.{key}", layer)
                adapter = _adapter_class(kind, layer, site.name, linear_types)(layer, site, settings, dropout, seed)
                adapter.unfreeze(recurse=False, keys=["lora_a", "lora_b", "m"])
                block.update_modules(tree_unflatten([(key, adapter)]))
            if settings.dropout:
                for experts in block.modules():
                    if isinstance(experts, SwitchGLU | SwitchMLP):
                        remember_routing(experts, dropout)
    names = tuple(sorted(name for name, _ in tree_flatten(model.trainable_parameters())))
    return Adapters(kind=kind, names=names, dropout=dropout)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Only the base model is run until the end of the block: what adapters are compared with."""
    layers = [module for module in model.modules() if isinstance(module, Adapter)]
    for layer in layers:
        layer.off = True
    try:
        yield
    finally:
        for layer in layers:
            layer.off = False


def save_adapters(folder: Path, parameters: Mapping[str, mx.array], job: TrainJob) -> None:
    """`parameters`: all trainable ones, whole, by name in the unsharded model. The files are durable on return."""
    folder.mkdir(parents=True, exist_ok=True)
    with durable_file(folder / WEIGHTS_FILE) as file:
        mx.save_safetensors(file, dict(sorted(parameters.items())), metadata={"format": "mlx"})
    settings = job.adapter
    config = {
        "fine_tune_type": job.fine_tune,
        "model": job.model.name,
        "num_layers": settings.layers,
        "lora_parameters": {
            "rank": settings.rank,
            "scale": settings.scale,
            "dropout": settings.dropout,
            "keys": sorted({match["key"] for name in parameters if (match := _ADAPTER_NAME.match(name))}),
        },
    }
    write_durably(folder / CONFIG_FILE, json.dumps(config, indent=2).encode() + b"\n")


def _choose(block: nn.Module, keys: tuple[str, ...], linear_types: tuple[type, ...]) -> dict[str, nn.Module]:
    return {
        path: module
        for path, module in block.named_modules()
        if isinstance(module, linear_types + SWITCH) and (not keys or path in keys)
    }


def _check_keys(
    keys: tuple[str, ...],
    chosen: list[tuple[nn.Module, dict[str, nn.Module]]],
    blocks: list[nn.Module],
    linear_types: tuple[type, ...],
) -> None:
    found = {key for _, layers in chosen for key in layers}
    known = ", ".join(sorted({key for block in blocks for key in _choose(block, (), linear_types)}))
    if unknown := [key for key in keys if key not in found]:
        raise UsageError(
            f"adapter keys name no linear layer of the last {len(blocks)} blocks: {', '.join(unknown)}",
            f"keys are paths within a block; this model has {known}",
        )
    if not found:
        raise UsageError("the model has no linear layers that adapters could be attached to", "--fine-tune full")
    for _, layers in chosen:
        for key, layer in layers.items():
            if hasattr(layer, "to_lora"):
                raise UsageError(f"adapters on the fused layer {key} of this model are not supported")


def _adapter_class(
    kind: FineTune, layer: nn.Module, name: str, linear_types: tuple[type, ...]
) -> type[LoraLinear | LoraSwitch]:
    if isinstance(layer, linear_types):
        return DoraLinear if kind == "dora" else LoraLinear
    if kind == "dora":
        raise UsageError(
            f"DoRA is not defined for mixture layers, and {name} is one",
            "--fine-tune lora, or adapter keys without such layers",
        )
    return LoraSwitch


def _unfreeze_all(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if "scales" in module and hasattr(module, "bits"):
            raise UsageError(
                f"full fine-tuning needs weights that are not quantised; {path} has {module.bits} bits",
                "--fine-tune lora, or the model without quantisation",
            )
    model.unfreeze()
    for module in model.modules():
        arrays = [name for name, value in module.items() if isinstance(value, mx.array)]
        fixed = [name for name in arrays if not mx.issubdtype(module[name].dtype, mx.floating)]
        if fixed:
            module.freeze(recurse=False, keys=fixed)
