"""An adapter folder as content: a LoRA, DoRA or full fine-tune in mlx-lm's format, checked as far as its files tell.

Reads files and safetensors' headers; whether it fits a model is found out where the model is loaded. Never imports MLX.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelFileSpec, ModelSpec
from realign_cluster.store.model_files import hash_file, hash_of_files

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapters.safetensors"
FINE_TUNE_TYPES = ("lora", "dora", "full")
MOST_HEADER_BYTES = 100 * 2**20


def describe_adapter(path: str | Path, option: str = "--adapter") -> ModelSpec:
    """The adapter at a folder by content. Raises UsageError, naming `option`, for one that cannot be used."""
    folder = Path(path).expanduser()
    fix = "give the folder that a training wrote (RUN/output), with adapter_config.json and adapters.safetensors"
    if not folder.is_dir():
        raise UsageError(f"{option}: there is no adapter folder {path}", fix)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UsageError(f"{option}: {folder} has no {name}", fix)
    read_adapter_config(folder, option)
    if not adapter_shapes(folder, option):
        raise UsageError(f"{option}: {folder / WEIGHTS_FILE} holds no weights", fix)
    files = tuple(
        ModelFileSpec(path=name, size=(folder / name).stat().st_size, blake2b=hash_file(folder / name))
        for name in (CONFIG_FILE, WEIGHTS_FILE)
    )
    return ModelSpec(name=folder.resolve().name, hash=hash_of_files(files), files=files)


def read_adapter_config(folder: Path, option: str = "--adapter") -> dict[str, Any]:
    """Raises UsageError for one that mlx-lm would not take."""
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {path} cannot be read as JSON: {error}", "write the adapter again") from error
    if not isinstance(config, dict):
        raise UsageError(f"{option}: {path} does not hold an object", "write the adapter again")
    kind = config.get("fine_tune_type", "lora")
    if kind not in FINE_TUNE_TYPES:
        raise UsageError(
            f"{option}: {path} has fine_tune_type {kind!r}", f"known are {', '.join(FINE_TUNE_TYPES)} (mlx-lm's own)"
        )
    if kind == "full":
        return config
    settings = config.get("lora_parameters")
    missing = [name for name in ("rank", "scale", "dropout") if not isinstance(settings, dict) or name not in settings]
    if missing or "num_layers" not in config:
        names = ", ".join([*(f"lora_parameters.{name}" for name in missing), *([] if missing else ["num_layers"])])
        raise UsageError(
            f"{option}: {path} lacks {names}",
            "an adapter of another library has to be converted to mlx-lm's format first",
        )
    return config


def adapter_shapes(folder: Path, option: str = "--adapter") -> dict[str, tuple[int, ...]]:
    """Names and shapes of the adapter's weights, from the file's header alone."""
    path = folder / WEIGHTS_FILE
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MOST_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UsageError(f"{option}: {path} is not a safetensors file: {error}", "copy the adapter again") from error
