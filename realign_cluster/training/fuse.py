"""A model with adapters put into its weights: what the next stage trains and scores. A short-lived process.

    python -m realign_cluster.training.fuse --model DIR --adapters DIR --out DIR

A quantised layer stays quantised: its weights are rounded again, so what is measured afterwards is the fused model.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from mlx.utils import tree_unflatten
from mlx_lm.utils import load_adapters, load_model, save_config, save_model

from realign_cluster.domain.errors import RealignError
from realign_cluster.store.durable import TEMPORARY_SUFFIX, sync_folder
from realign_cluster.store.model_files import OTHER_FILES, read_config, resolve_model


def fuse(model: Path, adapters: Path, out: Path) -> None:
    """Replaces `out` by the fused model: there whole, or as it was."""
    making = out.with_name(out.name + TEMPORARY_SUFFIX)
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    loaded, _ = load_model(model, lazy=True)
    loaded = load_adapters(loaded, str(adapters))
    fused = [(name, layer.fuse()) for name, layer in loaded.named_modules() if hasattr(layer, "fuse")]
    loaded.update_modules(tree_unflatten(fused))
    save_model(making, loaded)
    save_config(read_config(model), making / "config.json")
    for name in OTHER_FILES - {"config.json", "model.safetensors.index.json"}:
        if (model / name).is_file():
            shutil.copyfile(model / name, making / name)
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)
    sync_folder(out.parent)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="realign_cluster.training.fuse", description="Puts adapters into a model.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        fuse(resolve_model(options.model), options.adapters, options.out)
    except (RealignError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
