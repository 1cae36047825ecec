"""From a checkpoint to what other tools load: adapters in mlx-lm's format, or a whole model. A short-lived process.

    python -m realign_cluster.training.export --checkpoint DIR --job FILE --model DIR --out DIR

Started by the coordinator, which never imports MLX itself.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_model, save_config, save_model

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.training import TrainJob
from realign_cluster.store.durable import TEMPORARY_SUFFIX, sync_folder
from realign_cluster.store.model_files import OTHER_FILES, read_config
from realign_cluster.store.resharding import open_parts, pieces_from, whole_pieces
from realign_cluster.training.adapters import save_adapters
from realign_cluster.training.optimizer import WEIGHTS


def export(checkpoint: Path, job: TrainJob, model: Path, out: Path) -> None:
    """Replaces `out` by the result: there whole, or as it was. Raises Corrupt and Misfit for a damaged checkpoint."""
    making = out.with_name(out.name + TEMPORARY_SUFFIX)
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    weights = read_weights(checkpoint)
    if job.fine_tune == "full":
        _save_whole_model(making, model, weights)
    else:
        save_adapters(making, weights, job)
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)
    sync_folder(out.parent)


def read_weights(checkpoint: Path) -> dict[str, mx.array]:
    """Trained parameters, whole, float32, by name in the unsharded model."""
    parts = open_parts(sorted(checkpoint.glob("*.safetensors")))
    wanted = {name: piece for name, piece in whole_pieces(parts).items() if name.startswith(WEIGHTS)}
    return {name.removeprefix(WEIGHTS): mx.array(array) for name, _, array in pieces_from(parts, wanted)}


def _save_whole_model(folder: Path, base: Path, weights: dict[str, mx.array]) -> None:
    """In the dtype that the base model has, with its configuration and tokenizer."""
    model, _ = load_model(base, lazy=True)
    dtypes = {name: value.dtype for name, value in tree_flatten(model.parameters())}
    model.update(tree_unflatten([(name, value.astype(dtypes[name])) for name, value in weights.items()]))
    save_model(folder, model)
    save_config(read_config(base), folder / "config.json")
    for name in OTHER_FILES - {"config.json", "model.safetensors.index.json"}:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="realign_cluster.training.export", description="Writes what was trained.")
    for name in ("checkpoint", "job", "model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        job = TrainJob.model_validate_json(options.job.read_bytes())
        export(options.checkpoint, job, options.model, options.out)
    except (RealignError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
